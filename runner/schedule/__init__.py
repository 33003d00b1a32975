"""Schedules: when tasks run by themselves, each due time once in the whole fleet.

`triggers` says when (with `zones`), `missed` what of it is made up for, `schedule` is what users
declare, `book` the store in Redis, `ticker` a worker's part in it, `schedules` the API at run
time. Due times are decided by Redis's clock, and counted once by `schedule_offer.lua`.
"""

from runner.schedule.book import CRON_OPTION, Book
from runner.schedule.records import ScheduleInfo
from runner.schedule.run import ScheduledRun, decide_next
from runner.schedule.schedule import (
    Schedule,
    check_for_worker,
    check_names,
    cron,
    functions_of,
    scheduled,
    split,
)
from runner.schedule.schedules import Schedules
from runner.schedule.ticker import Ticker, Tickers
from runner.schedule.triggers import Cron, Every, Perpetual, every, perpetual

__all__ = [
    "CRON_OPTION",
    "Book",
    "Cron",
    "Every",
    "Perpetual",
    "Schedule",
    "ScheduleInfo",
    "ScheduledRun",
    "Schedules",
    "Ticker",
    "Tickers",
    "check_for_worker",
    "check_names",
    "cron",
    "decide_next",
    "every",
    "functions_of",
    "perpetual",
    "scheduled",
    "split",
]
