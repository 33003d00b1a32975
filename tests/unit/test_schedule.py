"""What users declare: `cron` in its two forms, and what it refuses."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from arq.cron import CronJob, next_cron
from arq.cron import cron as arq_cron

import runner
from runner import Context, WorkerSettings, cron, every, perpetual, task
from runner.errors import ArgumentsError, ScheduleError
from runner.schedule import Cron, Schedule, scheduled, split

if TYPE_CHECKING:
    from collections.abc import Sequence

NEW_YORK = ZoneInfo("America/New_York")
odd: Any = cron


@task
async def report(ctx: Context, region: str = "north") -> None:
    """Do nothing."""


@task(queue="slow", expires=60)
async def slow(ctx: Context) -> None:
    """Do nothing."""


async def plain(ctx: Any) -> None:
    """Do nothing."""


def made_worker(functions: Sequence[Any] = (), **settings: Any) -> runner.Worker:
    """Make a worker; it wants a loop that runs, and to leave the process's signals alone."""
    return runner.Worker(functions, handle_signals=False, **settings)


def test_keywords_alone_are_arqs_own_form() -> None:
    made = cron(report, hour={3, 15}, minute=30)
    assert isinstance(made, CronJob)
    assert (made.name, made.hour, made.minute) == ("cron:report", {3, 15}, 30)


def test_expression_makes_a_schedule() -> None:
    made = cron(report, "0 1 * * *", timezone=NEW_YORK, jitter=timedelta(seconds=5), args=["x"])
    assert made == Schedule(
        name="report",
        task="report",
        trigger=Cron("0 1 * * *", "America/New_York"),
        args=("x",),
        jitter_ms=5000,
    )
    assert made.function is report


def test_options_of_the_task_are_those_of_its_runs() -> None:
    made = cron(slow, every(1))
    assert (made.queue, made.expires) == ("slow", 60)
    assert cron(slow, every(1), queue="other", expires=5).queue == "other"


@pytest.mark.parametrize(("target", "name"), [(report, "report"), (plain, "plain"), ("x", "x")])
def test_task_function_or_name_is_scheduled(target: Any, name: str) -> None:
    made = cron(target, every(1))
    assert (made.name, made.task) == (name, name)


def test_perpetual_task_does_not_overlap_by_default() -> None:
    assert cron(report, perpetual()).overlap == "skip"
    assert cron(report, every(1)).overlap == "allow"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: odd(5, every(1)), ScheduleError, "a task, an async function or a task's name"),
        (lambda: odd(report, 5), ScheduleError, "takes an expression, every"),
        (
            lambda: odd(report, every(1), timezone="UTC"),
            ScheduleError,
            "belongs to an expression",
        ),
        (lambda: odd(report, every(1), args=(1, 2)), ArgumentsError, "report"),
        (
            lambda: odd(report, every(1), overlap="queue"),
            ScheduleError,
            "'allow', 'skip', 'can",
        ),
        (
            lambda: odd(report, every(1), catch_up="some"),
            ScheduleError,
            "'skip', 'once', 'all'",
        ),
        (lambda: odd(report, every(1), catch_up_max=0), ScheduleError, "must be 1 to 1000"),
        (lambda: odd(report, every(1), jitter=1e9), ScheduleError, "30 days at most"),
        (lambda: odd(report, every(1e10)), ScheduleError, "ten years at most"),
        (lambda: odd(report, every(1), jitter=-1), ScheduleError, "jitter must be a number"),
        (lambda: odd(report, every(1), grace="1"), ScheduleError, "grace must be a number"),
        (lambda: odd(report, every(1), name=""), ScheduleError, "a text of 1 to 200 bytes"),
        (lambda: odd(report, every(1), name="a\nb"), ScheduleError, "printable"),
        (
            lambda: odd(report, every(1), catch_up="all", overlap="skip"),
            ScheduleError,
            "take one or the other",
        ),
        (lambda: odd(report, every(1), colour="red"), TypeError, "colour"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_jitter_is_spread_over_its_window_and_the_same_for_all() -> None:
    made = cron(report, every(60), jitter=10)
    offsets = [made.start_ms(due) - due for due in range(0, 60_000_000, 60_000)]
    assert offsets == [made.start_ms(due) - due for due in range(0, 60_000_000, 60_000)]
    assert min(offsets) >= 0
    assert max(offsets) <= 10_000
    tenths = [
        sum(low <= offset < low + 1000 for offset in offsets) for low in range(0, 10_000, 1000)
    ]
    assert min(tenths) > 50, "1,000 runs, and about 100 in each second of the window"
    other = cron(report, every(60), jitter=10, name="other")
    assert other.start_ms(0) != made.start_ms(0)


def test_schedule_is_read_as_it_was_written() -> None:
    made = cron(report, "0 1 * * *", jitter=1, catch_up="all", grace=3, queue="q", expires=9)
    assert Schedule.of(made.name, made.task, made.args, dict(made.kwargs), made.fields()) == made


RULES = cron(report, every(60)).fields()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"trigger": 5},
        {"trigger": ["every", 5]},
        {**RULES, "queue": 5},
        {**RULES, "job_id": b"x"},
        {**RULES, "expires": "soon"},
        {**RULES, "jitter": float("inf")},
    ],
)
def test_rules_that_cannot_be_read_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ScheduleError):
        Schedule.of("x", "x", (), {}, fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"minute": {0, 15, 30, 45}},
        {"hour": 3, "minute": 30},
        {"hour": {1, 13}, "second": 7},
        {"weekday": "mon", "hour": 9},
        {"weekday": {5, 6}, "hour": 9, "minute": {0, 1}},
        {"weekday": 6},
        {"day": 13, "weekday": 4, "hour": 0, "minute": 0},
        {"month": {2, 8}, "day": 29, "hour": 12, "minute": 0},
        {"second": set(range(0, 60, 5)), "microsecond": 500_000},
    ],
)
def test_arqs_form_is_due_when_arq_says(fields: dict[str, Any]) -> None:
    given = {"month": None, "day": None, "weekday": None, "hour": None, "minute": None, **fields}
    made = scheduled(arq_cron(plain, **fields), UTC)
    assert made is not None
    at = datetime(2026, 1, 1, 12, 34, 56, tzinfo=UTC)
    due = round(at.timestamp() * 1000)
    for _ in range(20):
        at = next_cron(at, **given)
        due = made.trigger.after(due) or 0
        assert due == int(at.timestamp() * 1000)
        assert made.job_id_at(due) == f"cron:plain:{due}", "the id that arq gives it"


def test_arqs_form_in_a_zone_follows_its_wall_clock() -> None:
    made = scheduled(arq_cron(plain, hour=9, minute=0, microsecond=0), NEW_YORK)
    assert made is not None
    summer = made.trigger.after(round(datetime(2026, 7, 1, tzinfo=UTC).timestamp() * 1000))
    assert summer == round(datetime(2026, 7, 1, 13, tzinfo=UTC).timestamp() * 1000)


def test_several_of_arqs_crons_may_have_one_function() -> None:
    jobs = [arq_cron(plain, hour=hour) for hour in (3, 15, 15)]
    stock, made = split(jobs, UTC, keeps=True)
    assert stock == []
    assert [schedule.name for schedule in made] == ["cron:plain", "cron:plain 0 * 15 * * *"]
    assert {schedule.job_id_at(5) for schedule in made} == {"cron:plain:5"}
    assert split(jobs, UTC, keeps=False) == (jobs, [])


def test_arqs_cron_with_a_name_keeps_arqs_ids() -> None:
    made = scheduled(arq_cron(plain, name="nightly", hour=3), UTC)
    assert made is not None
    assert (made.name, made.task, made.job_id_at(5)) == ("nightly", "nightly", "nightly:5")


def test_arqs_cron_of_every_worker_is_no_schedule_of_the_fleet() -> None:
    assert scheduled(arq_cron(plain, hour=9, unique=False), UTC) is None


def test_two_schedules_of_one_name_are_refused_by_settings() -> None:
    with pytest.raises(ScheduleError, match="two schedules are called 'report'"):

        class Settings(WorkerSettings):
            cron_jobs = (cron(report, every(1)), cron(report, every(2)))


async def test_worker_knows_the_tasks_of_its_schedules() -> None:
    worker = made_worker(cron_jobs=[cron(report, every(1)), cron(plain, every(1))])
    assert set(worker.functions) == {"report", "plain"}


async def test_worker_without_the_task_of_a_schedule_is_refused() -> None:
    with pytest.raises(ScheduleError, match="has no task 'raport'; did you mean 'report'"):
        made_worker([report], cron_jobs=[cron("raport", every(1))])


async def test_cancelling_older_runs_needs_a_worker_that_aborts() -> None:
    jobs = [cron(report, every(1), overlap="cancel_older")]
    with pytest.raises(ScheduleError, match="allow_abort_jobs"):
        made_worker(cron_jobs=jobs)
    made_worker(cron_jobs=jobs, allow_abort_jobs=True)


async def test_task_in_the_queue_of_other_workers_need_not_be_known() -> None:
    made_worker([report], cron_jobs=[cron("theirs", every(1), queue="theirs")])


@pytest.mark.parametrize("documented", [cron, every, perpetual])
def test_examples_in_the_documentation_run(documented: Any) -> None:
    tasks = ("daily_report", "collect", "poll_sensor", "clean_up", "tidy")
    names = {**dict.fromkeys(tasks, report), **vars(runner), "look": None}
    (example,) = doctest.DocTestFinder(recurse=False).find(documented, "x", globs=names)
    outcome = doctest.DocTestRunner().run(example)
    assert outcome.attempted > 1
    assert outcome.failed == 0
