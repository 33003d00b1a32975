"""Schedules that fit: the type checker has nothing to say."""

from __future__ import annotations

from typing import assert_type
from zoneinfo import ZoneInfo

from arq.cron import CronJob

from runner import Client, Context, Schedule, ScheduleInfo, cron, every, perpetual, task


@task
async def report(ctx: Context, region: str = "north") -> None:
    assert_type(await ctx.reschedule(60 if region else None), bool)
    assert_type(await ctx.reschedule(60, args=("south",), kwargs={}), bool)


async def plain(_ctx: object) -> None:
    """Do nothing."""


async def schedules(client: Client) -> None:
    assert_type(cron(report, "0 1 * * *", timezone="Asia/Ho_Chi_Minh", jitter=5), Schedule)
    assert_type(cron(report, "0 1 * * *", timezone=ZoneInfo("Europe/Zurich")), Schedule)
    assert_type(cron("report", every(minutes=5), args=["south"], overlap="skip"), Schedule)
    assert_type(cron(report, perpetual(otherwise=60), kwargs={"region": "south"}), Schedule)
    assert_type(cron(report, minute={0, 30}), CronJob)
    info = await client.schedules.add(cron(plain, every(1)))
    assert_type(info, ScheduleInfo)
    assert_type(await client.schedules.list(), list[ScheduleInfo])
    assert_type(await client.schedules.run("report"), str)
