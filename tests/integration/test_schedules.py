"""Schedules against a real Redis: the book, the ticker, and what `client.schedules` offers."""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from arq.cron import cron as arq_cron

import runner
from runner import Context, cron, errors, every, keys, perpetual, task
from runner.codec import JobRecord, MsgpackCodec, encode_job
from runner.schedule import Book, Schedule, Schedules, Ticker, scheduled
from runner.schedule.book import TURN_MS
from runner.schedule.records import DueSchedule
from runner.signing import SignedCodec
from tests.engine import drain, raw, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import ChaosServers

pytestmark = pytest.mark.lasting_keys("runner:schedules:*", "runner:schedule:*")

QUEUE = keys.DEFAULT_QUEUE
HOUR_MS = 3_600_000
LIFETIME_MS = 60_000


@task
async def work(ctx: Context, *_: Any) -> None:
    redis: Any = ctx.client
    await redis.rpush("runs", ctx.job_id)


@task
async def linger(ctx: Context) -> None:
    redis: Any = ctx.client
    await redis.rpush("runs", ctx.job_id)
    await asyncio.sleep(60)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    async with raw(redis_url) as client:
        yield client


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@pytest.fixture
def book(redis: Any) -> Book:
    return Book(redis, MsgpackCodec(), QUEUE, lifetime_ms=LIFETIME_MS)


def ticker(book: Book, *schedules: Schedule, aborts: bool = False) -> Ticker:
    return Ticker(book, schedules=schedules, tasks=["work"], aborts=aborts)


async def set_due(redis: Any, name: str, due_ms: int) -> None:
    """Put the next due time of a schedule where a test wants it."""
    await redis.hset(keys.schedule_book(QUEUE) + name, "due", due_ms)
    await redis.zadd(keys.schedules(QUEUE), {name: due_ms})


async def jobs(redis: Any) -> list[str]:
    return [raw_id.decode() for raw_id in await redis.zrange(QUEUE, 0, -1)]


async def runs(redis: Any) -> list[str]:
    return [raw_id.decode() for raw_id in await redis.lrange("runs", 0, -1)]


async def overdue(redis: Any, book: Book, schedule: Schedule, *, hours: int = 0) -> int:
    """Write an hourly schedule down that is so many hours late; return the last due time."""
    await book.put("add", [schedule])
    now_ms = await book.now_ms()
    last_ms = now_ms // HOUR_MS * HOUR_MS
    await set_due(redis, schedule.name, last_ms - hours * HOUR_MS)
    return last_ms


async def test_due_time_is_enqueued_once_by_ten_who_look_at_the_same_moment(
    redis: Any, book: Book
) -> None:
    hourly = cron(work, "0 * * * *", grace=7200)
    last_ms = await overdue(redis, book, hourly)
    await asyncio.gather(*(ticker(book).tick() for _ in range(10)))
    assert await jobs(redis) == [f"cron:work:{last_ms}"]
    info = (await book.infos(["work"]))[0]
    assert info.runs == 1
    assert info.next_due == datetime.fromtimestamp(last_ms / 1000 + 3600, UTC)


async def test_turn_of_a_worker_that_died_passes_on(redis: Any, book: Book) -> None:
    last_ms = await overdue(redis, book, cron(work, "0 * * * *", grace=7200))
    assert (await book.look("dead")).due, "it has the turn, and is killed"
    other = ticker(book)
    assert 0 < await other.tick() <= TURN_MS / 1000 + 0.001, "it waits for its turn"
    assert await jobs(redis) == []
    await wait_until(lambda: ticked(other, redis), description="its turn has come")
    assert await jobs(redis) == [f"cron:work:{last_ms}"]


async def test_due_time_that_a_stock_worker_has_just_run_is_not_run_again(
    redis: Any, book: Book
) -> None:
    last_ms = await overdue(redis, book, cron(work, "0 * * * *", grace=7200))
    await redis.set(keys.in_progress(f"cron:work:{last_ms}"), "1", px=60_000)
    await ticker(book).tick()
    assert await jobs(redis) == []


async def test_one_id_for_all_runs_makes_one_job_at_a_time(redis: Any, book: Book) -> None:
    stock = scheduled(arq_cron(work, minute=0, job_id="only"), None)
    assert stock is not None
    last_ms = await overdue(redis, book, replace(stock, grace_ms=2 * HOUR_MS))
    for later_ms in range(3):
        await set_due(redis, "cron:work", last_ms + later_ms)
        await ticker(book).tick()
    assert await jobs(redis) == ["only"]
    await redis.delete(QUEUE, keys.job("only"))
    await redis.set(keys.in_progress("only"), "1", px=60_000)  # as arq leaves it for a minute
    await set_due(redis, "cron:work", last_ms + 3)
    await ticker(book).tick()
    assert await jobs(redis) == ["only"]


async def test_late_offer_for_a_due_time_that_was_run_is_refused(redis: Any, book: Book) -> None:
    last_ms = await overdue(redis, book, cron(work, "0 * * * *", grace=7200))
    slow = ticker(book)
    look = await book.look("slow")
    offers = [slow._offer(due, look.now_ms) for due in look.due]
    await redis.delete(keys.schedule_turn(QUEUE))  # its turn is over, another takes it
    await ticker(book).tick()
    await redis.delete(QUEUE, keys.job(f"cron:work:{last_ms}"))  # and the job has run
    assert await book.offer("slow", offers) == [-1]
    assert await jobs(redis) == []


async def test_clock_that_is_ahead_cannot_make_a_run_early(redis: Any, book: Book) -> None:
    await book.put("add", [cron(work, "0 * * * *")])
    (info,) = await book.infos(["work"])
    assert info.next_due is not None
    due_ms = int(info.next_due.timestamp() * 1000)
    fast = ticker(book)
    offer = fast._offer(runner_due(info, due_ms), due_ms + 1)
    assert offer.due_ms == (due_ms,)
    assert await book.offer("fast", [offer]) == [-2]
    assert await jobs(redis) == []


def runner_due(info: runner.ScheduleInfo, due_ms: int) -> Any:
    return DueSchedule(info.name, info.schedule, due_ms, "")


@pytest.mark.parametrize(
    ("catch_up", "most", "made"), [("skip", 100, 0), ("once", 100, 1), ("all", 3, 3), ("all", 9, 6)]
)
async def test_what_was_missed_is_caught_up_by_policy(
    redis: Any, book: Book, catch_up: Any, most: int, made: int
) -> None:
    hourly = cron(work, "0 * * * *", catch_up=catch_up, catch_up_max=most, grace=0)
    last_ms = await overdue(redis, book, hourly, hours=5)
    await ticker(book).tick()
    wanted = {f"cron:work:{last_ms - hours * HOUR_MS}" for hours in range(made)}
    assert set(await jobs(redis)) == wanted


async def test_long_line_of_missed_runs_is_made_in_parts(redis: Any, book: Book) -> None:
    quick = cron(work, every(0.1), catch_up="all", catch_up_max=1000)
    await book.put("add", [quick])
    now_ms = await book.now_ms()
    await set_due(redis, "work", now_ms // 100 * 100 - 60_000)
    fresh = ticker(book)
    await wait_until(lambda: caught_up(fresh), description="nothing is due")
    dues = sorted(int(job_id.rpartition(":")[2]) for job_id in await jobs(redis))
    assert dues == list(range(dues[0], dues[-1] + 1, 100))
    assert dues[0] == now_ms // 100 * 100 - 60_000


async def caught_up(fresh: Ticker) -> bool:
    return await fresh.tick() > 0


async def test_jitter_defers_the_job_within_its_window(redis: Any, book: Book) -> None:
    hourly = cron(work, "0 * * * *", jitter=86_400)
    await book.put("add", [hourly])
    now_ms = await book.now_ms()
    due_ms = next(at for at in range(now_ms, 0, -1) if hourly.start_ms(at) > now_ms + HOUR_MS)
    await set_due(redis, "work", due_ms)
    await ticker(book).tick()
    assert await redis.zscore(QUEUE, f"cron:work:{due_ms}") == hourly.start_ms(due_ms)


async def test_overlap_skip_leaves_a_run_out_while_the_one_before_is_queued(
    redis: Any, book: Book
) -> None:
    hourly = cron(work, "0 * * * *", overlap="skip", grace=HOUR_MS)
    last_ms = await overdue(redis, book, hourly)
    await ticker(book).tick()
    await set_due(redis, "work", last_ms + 1)
    await ticker(book).tick()
    assert await jobs(redis) == [f"cron:work:{last_ms}"]
    (info,) = await book.infos(["work"])
    assert (info.runs, info.skipped) == (1, 1)
    await redis.delete(QUEUE)  # the run before has ended
    await set_due(redis, "work", last_ms + 2)
    await ticker(book).tick()
    assert await jobs(redis) == [f"cron:work:{last_ms + 2}"]


async def test_overlap_cancel_older_aborts_the_run_before(redis_url: str, redis: Any) -> None:
    quick = cron(linger, every(0.3), overlap="cancel_older")
    settings = {"cron_jobs": [quick], "allow_abort_jobs": True, "poll_delay": 0.05}
    async with serving(redis_url, [], **settings):
        await wait_until(lambda: ended(redis, "CancelledError"), description="a run was aborted")
        await wait_until(lambda: several(redis, 2), description="the one behind it runs")
    started = await runs(redis)
    assert len(set(started)) == len(started)


async def ended(redis: Any, kind: str) -> bool:
    for key in await redis.keys(keys.RESULT + "*"):
        if kind.encode() in (await redis.get(key) or b""):
            return True
    return False


async def test_worker_runs_its_schedules_and_their_arguments(redis_url: str) -> None:
    seen: list[Any] = []

    @task(name="seen")
    async def see(ctx: Context, a: int, b: timedelta = timedelta(0)) -> None:
        seen.append((a, b, ctx.due))

    quick = cron(see, every(0.1), args=(1,), kwargs={"b": timedelta(seconds=2)}, name="quick")
    async with serving(redis_url, [], cron_jobs=[quick]):
        await wait_until(lambda: len(seen) >= 3, description="three runs")
    assert {(a, b) for a, b, _ in seen} == {(1, timedelta(seconds=2))}
    dues = [due for _, _, due in seen]
    assert all(due.timestamp() * 1000 % 100 == pytest.approx(0, abs=0.01) for due in dues)
    assert len(set(dues)) == len(dues)


async def test_arqs_cron_jobs_are_in_the_book_of_a_worker_with_history(
    redis_url: str, redis: Any, client: runner.Client
) -> None:
    stock = cron(work, second=set(range(60)))
    async with serving(redis_url, [work], cron_jobs=[stock]):
        done = await wait_until(lambda: runs(redis), description="a run")
    assert done[0].startswith("cron:work:")
    assert done[0].endswith("123"), "arq's crons are due at .123456 s"
    (info,) = await client.schedules.list()
    assert (info.name, info.source) == ("cron:work", "settings")


async def test_bare_worker_leaves_arqs_cron_jobs_to_arq(redis_url: str, redis: Any) -> None:
    stock = cron(work, second=set(range(60)))
    async with serving(redis_url, [work], cron_jobs=[stock], history=False) as worker:
        assert worker.cron_jobs == [stock]
        await wait_until(lambda: runs(redis), description="a run")
        assert await redis.keys("runner:schedule*") == []
        assert await redis.keys("runner:fleet*") == []


async def test_cron_that_each_worker_runs_for_itself_stays_arqs() -> None:
    stock = cron(work, second=0, unique=False)
    worker = runner.Worker([work], cron_jobs=[stock], history=True, handle_signals=False)
    assert worker.cron_jobs == [stock]
    assert worker._tickers.schedules == []


async def test_workers_that_start_together_share_one_run_at_startup(redis: Any, book: Book) -> None:
    hourly = cron(work, "0 * * * *", run_at_startup=True)
    await asyncio.gather(*(ticker(book, hourly).open() for _ in range(5)))
    assert len(await jobs(redis)) == 1
    await redis.hset(keys.schedule_book(QUEUE) + "work", "started", 0)  # long ago
    await ticker(book, hourly).open()
    assert len(await jobs(redis)) == 2


async def test_burst_worker_does_what_is_due_and_ends(redis_url: str, redis: Any) -> None:
    await drain(redis_url, [], cron_jobs=[cron(work, "0 1 * * *", run_at_startup=True)])
    assert len(await runs(redis)) == 1


# The settings are the source of theirs.


async def test_restart_keeps_the_due_time_of_a_schedule_that_is_the_same(
    redis: Any, book: Book
) -> None:
    hourly = cron(work, "0 * * * *")
    await ticker(book, hourly).open()
    await set_due(redis, "work", 12345)
    await ticker(book, replace(hourly, args=(1,))).open()
    (info,) = await book.infos(["work"])
    assert info.next_due == datetime.fromtimestamp(12.345, UTC)
    assert info.schedule is not None
    assert info.schedule.args == (1,)


async def test_schedule_with_another_time_gets_another_due_time(redis: Any, book: Book) -> None:
    await ticker(book, cron(work, "0 * * * *")).open()
    await set_due(redis, "work", 12345)
    await ticker(book, cron(work, "30 * * * *")).open()
    (info,) = await book.infos(["work"])
    assert info.next_due is not None
    assert info.next_due.minute == 30


async def test_schedule_that_left_the_settings_is_retired_when_no_worker_has_it(
    book: Book,
) -> None:
    old = ticker(book, cron(work, "0 * * * *", name="old"), cron(work, "1 * * * *", name="both"))
    new = ticker(book, cron(work, "1 * * * *", name="both"))
    for each in (old, new):
        await each.open()
        await each._keep_enlisted()
    await new.retire()
    assert set(await book.names()) == {"old", "both"}, "a worker of before still lives"
    await old.stop()
    await new.retire()
    assert await book.names() == ["both"]


async def test_worker_that_leaves_takes_nothing_from_its_like(book: Book) -> None:
    hourly = cron(work, "0 * * * *")
    one, two = ticker(book, hourly), ticker(book, hourly)
    for each in (one, two):
        await each._keep_enlisted()
    await one.stop()
    fleet = await book.fleet()
    assert fleet.complete
    assert fleet.tasks == fleet.schedules == {"work"}
    await two.stop()
    assert await book.redis.keys("runner:fleet*") == []


async def test_name_that_the_api_has_taken_is_a_named_conflict_for_settings(
    book: Book, client: runner.Client, caplog: pytest.LogCaptureFixture
) -> None:
    await client.schedules.add(cron("work", "0 5 * * *"))
    await ticker(book, cron(work, "0 1 * * *")).open()
    assert "schedule 'work' was added at run time" in caplog.text
    info = await client.schedules.get("work")
    assert info.source == "api"
    assert str(info.schedule and info.schedule.trigger) == "0 5 * * *"


# At run time.


async def test_schedule_is_added_listed_paused_resumed_run_and_removed(
    client: runner.Client, redis: Any, book: Book
) -> None:
    added = await client.schedules.add(cron("work", "0 1 * * *", args=("north",), name="nightly"))
    assert (added.name, added.source, added.paused) == ("nightly", "api", False)
    assert added.schedule is not None
    assert added.schedule.args == ("north",)
    assert added.next_due is not None
    await client.schedules.pause("nightly")
    paused = await client.schedules.get("nightly")
    assert (paused.paused, paused.next_due) == (True, None)
    await ticker(book).tick()
    await client.schedules.resume("nightly")
    assert await client.schedules.list() == [added]
    job_id = await client.schedules.run("nightly")
    assert await jobs(redis) == [job_id]
    await client.schedules.remove("nightly")
    assert await client.schedules.list() == []


async def test_example_in_the_documentation_runs(client: runner.Client) -> None:
    names: dict[str, Any] = {"client": client, "cron": cron, "replace": replace}
    examples = doctest.DocTestParser().get_examples(
        f"{Schedules.__doc__}\n{Schedules.change.__doc__}"
    )
    for example in examples:
        kind = "eval" if example.want else "exec"
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        value = eval(compile(example.source, "<example>", kind, flags), names)
        value = await value if inspect.isawaitable(value) else value
        assert not example.want or repr(value) == example.want.strip()
    (info,) = await client.schedules.list()
    assert info.schedule is not None
    assert info.schedule.jitter_ms == 5_000


async def test_paused_schedule_makes_no_runs_and_resuming_makes_up_for_none(
    client: runner.Client, redis: Any, book: Book
) -> None:
    hourly = cron(work, "0 * * * *", catch_up="all", grace=0)
    await client.schedules.add(hourly)
    await client.schedules.pause("work")
    await redis.hset(keys.schedule_book(QUEUE) + "work", "due", 12345)
    await ticker(book).tick()
    await client.schedules.resume("work")
    await ticker(book).tick()
    assert await jobs(redis) == []


async def test_offer_for_a_schedule_that_was_paused_meanwhile_is_refused(
    client: runner.Client, redis: Any, book: Book
) -> None:
    await overdue(redis, book, cron(work, "0 * * * *", grace=7200))
    slow = ticker(book)
    look = await book.look("slow")
    offers = [slow._offer(due, look.now_ms) for due in look.due]
    await client.schedules.pause("work")
    assert await book.offer("slow", offers) == [-1]


async def test_change_keeps_the_due_time_unless_the_times_change(client: runner.Client) -> None:
    before = await client.schedules.add(cron("work", "0 1 * * *"))
    assert before.schedule is not None
    same = await client.schedules.change(replace(before.schedule, jitter_ms=5_000))
    assert same.next_due == before.next_due
    assert same.schedule is not None
    assert same.schedule.jitter_ms == 5_000
    other = await client.schedules.change(cron("work", "30 2 * * *"))
    assert other.next_due is not None
    assert (other.next_due.hour, other.next_due.minute) == (2, 30)


async def test_settings_schedule_can_be_paused_and_run_but_not_changed_or_removed(
    client: runner.Client, book: Book, redis: Any
) -> None:
    hourly = cron(work, "0 * * * *")
    await ticker(book, hourly).open()
    for attempt in (
        client.schedules.add(hourly),
        client.schedules.change(hourly),
        client.schedules.remove("work"),
    ):
        with pytest.raises(errors.ScheduleConflict, match="comes from the workers' settings") as e:
            await attempt
        assert (e.value.name, e.value.source) == ("work", "settings")
    await client.schedules.pause("work")
    await ticker(book, hourly).open()  # a worker that starts does not undo it
    assert (await client.schedules.get("work")).paused
    await client.schedules.run("work")
    assert len(await jobs(redis)) == 1


async def test_name_that_nobody_has_gets_a_suggestion(client: runner.Client) -> None:
    await client.schedules.add(cron("work", "0 1 * * *", name="nightly"))
    hint = "there is no schedule 'nightli'; did you mean 'nightly'"
    for attempt in (
        client.schedules.get("nightli"),
        client.schedules.pause("nightli"),
        client.schedules.resume("nightli"),
        client.schedules.run("nightli"),
        client.schedules.remove("nightli"),
        client.schedules.change(cron("work", "0 1 * * *", name="nightli")),
    ):
        with pytest.raises(errors.ScheduleNotFound, match=hint):
            await attempt


async def test_task_that_no_live_worker_has_is_refused(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, [work]):
        await wait_until(
            lambda: client.exists(keys.fleet(QUEUE)), description="the worker is enlisted"
        )
        with pytest.raises(errors.TaskNotFound, match="no worker has a task 'wrok'; did you mean"):
            await client.schedules.add(cron("wrok", "0 1 * * *"))
        await client.schedules.add(cron("work", "0 1 * * *"))


async def test_schedule_added_at_run_time_runs(
    redis_url: str, redis: Any, client: runner.Client
) -> None:
    async with serving(redis_url, [work]):
        await client.schedules.add(cron("work", every(0.2)))
        await wait_until(lambda: runs(redis), description="it runs")


async def test_altered_schedule_is_not_run_where_jobs_are_signed(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    signed = Book(
        redis,
        SignedCodec(MsgpackCodec(), {"k": b"0" * 32}),
        QUEUE,
        lifetime_ms=LIFETIME_MS,
    )
    forged = Book(redis, MsgpackCodec(), QUEUE, lifetime_ms=LIFETIME_MS)
    await overdue(redis, forged, cron(work, "0 * * * *", grace=7200))
    await ticker(signed).tick()
    assert "schedule 'work' is not run" in caplog.text
    assert await jobs(redis) == []
    (info,) = await signed.infos(["work"])
    assert info.schedule is None
    assert info.error
    definition = await redis.hget(keys.schedule_book(QUEUE) + "work", "definition")
    await signed.put("add", [cron(work, "0 * * * *", name="mine")])
    await redis.hset(keys.schedule_book(QUEUE) + "mine", "definition", definition)
    (other,) = await signed.infos(["mine"])
    assert other.schedule is None


async def test_signed_schedule_makes_signed_jobs(redis_url: str, redis: Any) -> None:
    signing: Any = {"k": b"0" * 32}
    await drain(
        redis_url,
        [],
        cron_jobs=[cron(work, "0 1 * * *", run_at_startup=True)],
        signing_keys=signing,
    )
    assert len(await runs(redis)) == 1


# Perpetual tasks.


async def test_perpetual_task_decides_when_it_runs_next(
    redis_url: str, redis: Any, client: runner.Client
) -> None:
    @task(name="own")
    async def own(ctx: Context) -> None:
        redis: Any = ctx.client
        count = await redis.rpush("runs", ctx.job_id)
        await ctx.reschedule(0.05 if count < 4 else None)

    async with serving(redis_url, [], cron_jobs=[cron(own, perpetual())]) as worker:
        await wait_until(lambda: several(redis, 4), description="four runs")
        await wait_until(lambda: not worker.tasks, description="the last has ended")
        info = await client.schedules.get("own")
    assert info.next_due is None
    assert max(Counter(await runs(redis)).values()) == 1
    assert info.runs == 4


async def several(redis: Any, count: int) -> bool:
    return len(await runs(redis)) >= count


async def test_perpetual_task_that_does_not_decide_runs_again_otherwise(
    redis_url: str, redis: Any
) -> None:
    @task(name="own")
    async def own(ctx: Context) -> None:
        redis: Any = ctx.client
        await redis.rpush("runs", ctx.job_id)
        raise ValueError

    async with serving(redis_url, [], cron_jobs=[cron(own, perpetual(otherwise=0.1))]):
        await wait_until(lambda: several(redis, 3), description="three runs")


async def test_perpetual_task_waits_for_its_own_end(redis: Any, book: Book) -> None:
    own = cron(work, perpetual())
    await ticker(book, own).open()
    first = ticker(book)
    await first.tick()
    (job_id,) = await jobs(redis)
    await runner.schedule.decide_next(
        redis, queue=QUEUE, name="work", job_id=job_id, delay_ms=0, at_ms=None
    )
    await first.tick()
    assert await jobs(redis) == [job_id], "it still runs"
    await redis.delete(QUEUE)
    await wait_until(lambda: ticked(first, redis), description="the next run")


async def ticked(one: Ticker, redis: Any) -> bool:
    await one.tick()
    return bool(await jobs(redis))


async def test_decision_for_a_time_that_was_run_is_for_the_moment_after(
    redis: Any, book: Book
) -> None:
    await ticker(book, cron(work, perpetual())).open()
    await ticker(book).tick()
    (job_id,) = await jobs(redis)
    due_ms = int(job_id.rpartition(":")[2])
    await runner.schedule.decide_next(
        redis, queue=QUEUE, name="work", job_id=job_id, delay_ms=None, at_ms=due_ms
    )
    (info,) = await book.infos(["work"])
    assert info.next_due == datetime.fromtimestamp((due_ms + 1) / 1000, UTC)


async def test_only_the_latest_run_decides(redis: Any, book: Book) -> None:
    await ticker(book, cron(work, perpetual())).open()
    await ticker(book).tick()
    decided = await runner.schedule.decide_next(
        redis, queue=QUEUE, name="work", job_id="another", delay_ms=0, at_ms=None
    )
    assert not decided


async def test_job_without_a_schedule_cannot_reschedule(
    redis_url: str, client: runner.Client
) -> None:
    @task(name="alone")
    async def alone(ctx: Context) -> None:
        assert ctx.due is None
        await ctx.reschedule(1)

    async with serving(redis_url, [alone]):
        job = await client.enqueue(alone)
        with pytest.raises(errors.RemoteError, match="was not made by a schedule"):
            await job.result(timeout=10)


# When Redis goes away.


async def test_due_times_while_redis_was_away_are_run_when_it_is_back(
    chaos_servers: ChaosServers,
) -> None:
    dues: list[int] = []

    @task(name="noted")
    async def note(ctx: Context) -> None:
        dues.append(ctx["cron"][2])

    def past(ms: int) -> bool:
        return bool(dues) and dues[-1] >= ms

    jobs = [cron(note, every(0.1), grace=120)]
    async with serving(chaos_servers.redis_url, [], cron_jobs=jobs):
        await wait_until(lambda: len(dues) > 3, description="it runs")
        await chaos_servers.stop_redis(kill=True)
        stopped_at = dues[-1]
        await chaos_servers.start_redis()
        await wait_until(lambda: past(stopped_at + 3000), description="it goes on", timeout_s=30)
    dues.sort()
    assert dues == list(range(dues[0], dues[-1] + 1, 100))


# What anybody may have written there


@pytest.mark.parametrize(
    "rubbish",
    [
        "name",
        "key of another type",
        "definition",
        "due time",
        "due time beyond all time",
        "queue",
        "call",
        "no schedule",
    ],
)
async def test_schedule_that_is_none_stops_no_other(
    redis: Any, book: Book, client: runner.Client, rubbish: str
) -> None:
    odd = cron("work", every(3600), grace=7200, name="odd")
    name, key = b"odd", (keys.schedule_book(QUEUE) + "odd").encode()
    await book.put("add", [odd])
    due_ms = await book.now_ms() - 5
    await redis.hset(key, "due", due_ms)
    match rubbish:
        case "name":
            name = b"odd \xff"
            await redis.rename(key, key + b" \xff")
            await redis.zrem(keys.schedules(QUEUE), "odd")
        case "key of another type":
            await redis.set(key, "x", ex=60)
        case "definition":
            await redis.hset(key, "definition", b"\xff\x00")
        case "due time":
            await redis.hset(key, "due", "soon")
        case "due time beyond all time":
            await redis.hset(key, "due", "9" * 30)
        case "queue":
            fields = {**odd.fields(), "queue": 5}
            await redis.hset(key, "definition", encoded(odd, fields))
        case "call":
            await redis.hset(key, "call", b"no call")
        case _:
            await redis.delete(key)
    await redis.zadd(keys.schedules(QUEUE), {name: 1})
    last_ms = await overdue(redis, book, cron("work", "0 * * * *", grace=7200, name="good"))
    await ticker(book).tick()
    assert await jobs(redis) == [f"cron:good:{last_ms}"]
    listed = [info.name for info in await client.schedules.list()]
    assert "good" in listed
    shown_name = name.decode(errors="surrogateescape")
    if shown_name in listed:
        await client.schedules.remove(shown_name)
        assert not await redis.exists(key)
    assert [info.name for info in await client.schedules.list()] == ["good"]


def encoded(schedule: Schedule, fields: dict[str, Any]) -> bytes:
    """Return a definition with these fields."""
    options = {"id": f"schedule:{QUEUE}:{schedule.name}", "schedule": fields}
    record = JobRecord(
        task=schedule.task, args=(), kwargs={}, attempt=None, enqueued_ms=0, options=options
    )
    return encode_job(MsgpackCodec(), record)


async def test_settings_write_over_a_key_that_is_no_schedule(redis: Any, book: Book) -> None:
    await redis.set(keys.schedule_book(QUEUE) + "work", "x", ex=60)
    await ticker(book, cron(work, every(3600))).open()
    (info,) = await book.infos(["work"])
    assert (info.source, info.error) == ("settings", "")


async def test_settings_write_their_schedules_again_when_redis_has_lost_them(
    redis_url: str, redis: Any
) -> None:
    async with serving(redis_url, [work], cron_jobs=[cron(work, every(0.1))]):
        await wait_until(lambda: runs(redis), description="it runs")
        await redis.flushdb()
        await wait_until(lambda: runs(redis), description="it runs again")


async def both_exist(redis: Any, *names: str) -> bool:
    return bool(await redis.exists(*names) == len(names))


async def test_a_schedule_that_was_lost_alone_is_written_again(
    redis: Any, book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.schedule.ticker.RENEW_S", 0.0)
    monkeypatch.setattr("runner.schedule.ticker.MOST_WAIT_S", 0.05)
    one, other = (cron(work, every(3600), name=name) for name in ("one", "other"))
    started = ticker(book, one, other)
    started.start()
    try:
        key = keys.schedule_book(QUEUE) + "one"
        await wait_until(lambda: both_exist(redis, key, keys.fleet(QUEUE)), description="they are")
        await redis.zrem(keys.schedules(QUEUE), "one")
        await redis.delete(key, keys.fleet(QUEUE))
        await wait_until(lambda: redis.exists(key), description="it is there again")
        assert await redis.zscore(keys.schedules(QUEUE), "one")
    finally:
        await started.stop()


async def test_runs_are_made_though_the_tokens_key_is_none(redis: Any, book: Book) -> None:
    last_ms = await overdue(redis, book, cron(work, "0 * * * *", grace=7200))
    await redis.zadd(keys.idle(QUEUE), {"worker": 2**53})
    await redis.set(keys.wake(QUEUE), "no list", ex=60)
    await redis.expire(keys.idle(QUEUE), 60)
    await ticker(book).tick()
    assert await jobs(redis) == [f"cron:work:{last_ms}"]
