"""A shop whose workers the tests of the dashboard look at.

Its jobs take a moment, log, say how far they are, fail now and then, and write.
"""

from __future__ import annotations

import asyncio
import logging
import os

import runner
from runner import Context, RedisSettings, RunningLimit, cron, task

logger = logging.getLogger("shop")


@task
async def send_mail(_ctx: Context, address: str, template: str = "welcome") -> str:
    """Take a moment."""
    await asyncio.sleep(0.02)
    return f"{template} to {address}"


@task(retries=1)
async def charge_card(_ctx: Context, order_id: int, cents: int) -> int:
    """Fail for some orders."""
    logger.info("charging order %d", order_id)
    await asyncio.sleep(0.03)
    if order_id % 17 == 0:
        logger.warning("the bank said no to order %d", order_id)
        raise ConnectionError(f"bank: the card of order {order_id} was declined")
    return cents


@task
async def place_order(ctx: Context, order_id: int) -> None:
    """Write a row."""
    ctx.db.upsert("orders", {"id": order_id, "state": "placed"})


@task
async def import_catalogue(ctx: Context, file: str, rows: int) -> int:
    """Say how far it is."""
    for number in range(1, rows + 1):
        await asyncio.sleep(0.05)
        await ctx.progress(number, rows, f"row {number} of {file}")
    return rows


@task(limits=[RunningLimit("reports-database", 2)])
async def monthly_report(_ctx: Context, month: str) -> str:
    """Share two slots."""
    await asyncio.sleep(0.5)
    return month


@task
async def extract(_ctx: Context, source: str) -> list[int]:
    """Begin a flow."""
    await asyncio.sleep(0.2)
    return [len(source)]


@task
async def clean(_ctx: Context, rows: list[int], source: str) -> int:
    """Go on with it."""
    await asyncio.sleep(0.3)
    return len(rows) + len(source)


@task
async def load(_ctx: Context, counts: list[int], *, fails: bool = False) -> int:
    """Join it."""
    await asyncio.sleep(0.3)
    if fails:
        raise RuntimeError("the warehouse is closed")
    return sum(counts)


@task
async def publish(_ctx: Context, total: int) -> str:
    """End it."""
    return f"{total} rows"


@task
async def tidy_up(_ctx: Context) -> None:
    """Do nothing, by schedule."""


class WorkerSettings(runner.WorkerSettings):
    """The shop's workers."""

    functions = (
        *(send_mail, charge_card, place_order, import_catalogue, monthly_report),
        *(extract, clean, load, publish, tidy_up),
    )
    cron_jobs = (
        cron(tidy_up, "0 4 * * *", name="tidy_up", timezone="Europe/Zurich"),
        cron(tidy_up, "*/10 * * * *", name="often"),
    )
    redis_settings = RedisSettings.from_dsn(os.environ.get("REDIS_URL", "redis://localhost"))
    database_url = os.environ.get("DATABASE_URL")
    max_jobs = 20
    allow_abort_jobs = True
