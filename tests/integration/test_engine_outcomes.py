"""Every end of a job: what its result, its hooks, its events and its dead letter say agree."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import pytest

import runner
from runner import Cancel, Context, Outcome, Retry, RetryPolicy, Snooze, keys, task
from runner.events import Event, JobEnded, JobStarted, LeaseLost, WorkerStarted, WorkerStopped
from runner.worker import Worker
from tests.engine import Gate, Rig, drain, result_of, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client, DeadLetter

LASTING = ("runner:held:*", "runner:units", "runner:writer", "runner:limits")
pytestmark = [pytest.mark.timeout(30), pytest.mark.lasting_keys(*LASTING)]

QUEUE = keys.DEFAULT_QUEUE
NO_HOOKS = {"delayed", "parked"}
FINAL_WITHOUT_LETTER = {Outcome.SUCCEEDED, Outcome.ABORTED}


@task
async def succeed(_ctx: Context) -> int:
    return 42


@task
async def fail(_ctx: Context) -> None:
    raise ValueError("broken")


@task
async def again(ctx: Context) -> int:
    if ctx.attempt < 2:
        raise Retry
    return ctx.attempt


@task
async def snooze_once(ctx: Context) -> int:
    if ctx["seen"].add(ctx.job_id) is None and len(ctx["runs"]) < 1:
        ctx["runs"].append(1)
        raise Snooze(0)
    return ctx.attempt


@task
async def give_up(_ctx: Context) -> None:
    raise Cancel("no use")


@task(timeout=0.05)
async def overrun(_ctx: Context) -> None:
    await asyncio.Event().wait()


@task
async def hang(ctx: Context) -> str:
    await ctx["gate"]()
    return "passed"


@task(rate="1/300ms")
async def rated(_ctx: Context) -> int:
    return 42


@task(max_running=1)
async def alone(_ctx: Context) -> int:
    return 42


@task(soft_timeout=0.05)
async def soften(_ctx: Context) -> None:
    await asyncio.Event().wait()


@task
def in_thread(_ctx: Context) -> int:
    return 42


@task
def fail_in_thread(_ctx: Context) -> None:
    raise ValueError("broken")


@task(retries=1, backoff=RetryPolicy(base=0))
async def fail_again(_ctx: Context) -> None:
    raise ValueError("broken")


@task(max_crashes=1)
async def fragile(_ctx: Context) -> int:
    return 42


TASKS: list[Any] = [
    *(succeed, fail, again, snooze_once, give_up, overrun, hang, rated, alone),
    *(soften, in_thread, fail_in_thread, fail_again, fragile),
]


@dataclass
class Seen:
    """What subscribers and hooks of one worker saw."""

    gate: Gate = field(default_factory=Gate)
    events: list[Event] = field(default_factory=list)
    hooks: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ends(self) -> list[JobEnded]:
        return [event for event in self.events if isinstance(event, JobEnded)]

    def settings(self, **more: Any) -> dict[str, Any]:
        def hook(name: str) -> Any:
            async def note(ctx: Any) -> None:
                self.hooks.append((name, ctx.get("outcome", "")))

            return note

        names = ("on_job_start", "on_job_end", "after_job_end")
        return {
            "subscribers": [self.events.append],
            "ctx": {"gate": self.gate, "seen": set(), "runs": []},
            **{name: hook(name) for name in names},
            **more,
        }


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


# Each brings one job named "j" to its end, and says nothing of what is to be seen.
Way: TypeAlias = Callable[["Client", str, Seen], Awaitable[None]]


def burst(name: str, **settings: Any) -> Way:
    async def way(client: Client, url: str, seen: Seen) -> None:
        await put(client, name)
        await drain(url, TASKS, **seen.settings(**settings))

    return way


async def put(client: Client, name: str, **options: Any) -> None:
    await client.enqueue_job(name, _job_id="j", **options)


async def aborted_during(client: Client, url: str, seen: Seen) -> None:
    await put(client, "hang")
    async with serving(url, TASKS, **seen.settings(allow_abort_jobs=True)):
        await seen.gate.runs.wait()
        assert await client.job("j").abort(timeout=5)


async def aborted_before(client: Client, url: str, seen: Seen) -> None:
    await put(client, "succeed", _defer_by=60)
    async with serving(url, TASKS, **seen.settings(allow_abort_jobs=True)):
        assert await client.job("j").abort(timeout=5)


async def expired(client: Client, url: str, seen: Seen) -> None:
    await client.enqueue(succeed.options(key="j", expires=0.001))
    due = asyncio.get_running_loop().time() + 0.01
    await wait_until(lambda: asyncio.get_running_loop().time() > due, description="time is up")
    await drain(url, TASKS, **seen.settings())


async def payload_gone(client: Client, url: str, seen: Seen) -> None:
    await put(client, "succeed")
    await client.delete(keys.job("j"))
    await drain(url, TASKS, **seen.settings())


async def undecodable(client: Client, url: str, seen: Seen) -> None:
    await put(client, "succeed")
    await client.set(keys.job("j"), b"\x80\x04not a job")
    await drain(url, TASKS, **seen.settings())


async def too_many_crashes(client: Client, url: str, seen: Seen) -> None:
    await put(client, "succeed")
    rig = Rig(client)
    for _ in range(2):
        await rig.lapse(*await rig.claim())
    await drain(url, TASKS, **seen.settings(max_crashes=2))


async def fragile_crashed(client: Client, url: str, seen: Seen) -> None:
    await put(client, "fragile")
    rig = Rig(client)
    await rig.lapse(*await rig.claim())
    await drain(url, TASKS, **seen.settings())


async def lost_at_the_end(client: Client, url: str, seen: Seen) -> None:
    """Somebody else has the job when its end is to be settled."""
    await put(client, "hang")
    async with serving(url, TASKS, **seen.settings()):
        await seen.gate.runs.wait()
        await client.set(keys.in_progress("j"), "r:somebody:1")
        seen.gate.opens.set()
        await wait_until(lambda: seen.ends, description="its end is told")


async def lost_by_renewal(client: Client, url: str, seen: Seen) -> None:
    """The thread that renews leases hears that somebody else has the job."""
    await put(client, "hang")
    async with serving(url, TASKS, **seen.settings(lease=0.3)):
        await seen.gate.runs.wait()
        await client.set(keys.in_progress("j"), "r:somebody:1")
        await wait_until(lambda: seen.ends, description="its end is told")


async def handed_back(client: Client, url: str, seen: Seen) -> None:
    await put(client, "hang")
    async with serving(url, TASKS, **seen.settings()):
        await seen.gate.runs.wait()


async def handed_back_unstarted(client: Client, url: str, seen: Seen) -> None:
    """It was claimed in the moment in which the worker was told to stop."""
    await put(client, "succeed")
    async with serving(url, TASKS, **seen.settings(), queue_name="elsewhere") as worker:
        await wait_until(lambda: client.exists(keys.idle("elsewhere")), description="it runs")
        worker.allow_pick_jobs = False
        (claimed,) = await Rig(client).claim()
        claimed.queue = "elsewhere"
        await client.rename(QUEUE, "elsewhere")
        await client.rename(keys.held(QUEUE), keys.held("elsewhere"))
        worker._start_job(claimed)
        await wait_until(lambda: seen.ends, description="its end is told")


async def delayed(client: Client, url: str, seen: Seen) -> None:
    """The one admission of the moment was somebody else's."""
    redis: Any = client
    second, micros = await redis.time()
    await redis.lpush(keys.WINDOW + "rated.rate", second * 1_000_000 + micros)
    await redis.expire(keys.WINDOW + "rated.rate", 10)
    await burst("rated")(client, url, seen)


async def parked(client: Client, url: str, seen: Seen) -> None:
    """The slot is another job's, until there is one more."""
    holder = await Rig(client, queue="elsewhere").claim_one("holder")
    await client.zadd(keys.RUNNING + "alone.running", {f"elsewhere\n{holder.job_id}": 1})
    await client.expire(keys.RUNNING + "alone.running", 10)
    await put(client, "alone")
    async with serving(url, TASKS, **seen.settings()):
        await wait_until(lambda: seen.ends, description="it is parked")
        await client.limits.set("alone.running", max_running=2)
        await wait_until(lambda: len(seen.ends) == 2, description="it has run")


@dataclass(frozen=True)
class Case:
    way: Way
    outcomes: tuple[str, ...]
    error: str = ""
    ran: bool = True


CASES = {
    "success": Case(burst("succeed"), ("succeeded",)),
    "failure": Case(burst("fail"), ("failed",), "ValueError"),
    "retry": Case(burst("again"), ("retried", "succeeded")),
    "snooze": Case(burst("snooze_once"), ("snoozed", "succeeded")),
    "cancel": Case(burst("give_up"), ("cancelled",), "Cancel"),
    "timeout": Case(burst("overrun"), ("timed_out",), "TimeoutError"),
    "abort during": Case(aborted_during, ("aborted",), "CancelledError"),
    "abort before": Case(aborted_before, ("aborted",), "CancelledError", ran=False),
    "expired": Case(expired, ("expired",), "JobExpired", ran=False),
    "payload gone": Case(payload_gone, ("expired",), "JobExpired", ran=False),
    "unknown": Case(burst("nowhere"), ("unknown_task",), "TaskNotFound", ran=False),
    "undecodable": Case(undecodable, ("undecodable",), "DeserializationError", ran=False),
    "tries": Case(burst("again", max_tries=1), ("retried", "too_many_tries"), "TooManyTries"),
    "soft limit": Case(burst("soften"), ("timed_out",), "TimeoutError"),
    "thread": Case(burst("in_thread"), ("succeeded",)),
    "failure in a thread": Case(burst("fail_in_thread"), ("failed",), "ValueError"),
    "policy": Case(burst("fail_again"), ("retried", "failed"), "ValueError"),
    "crashes of its task": Case(
        fragile_crashed, ("too_many_crashes",), "TooManyCrashes", ran=False
    ),
    "crashes": Case(too_many_crashes, ("too_many_crashes",), "TooManyCrashes", ran=False),
    "lost at the end": Case(lost_at_the_end, ("lost_lease",)),
    "lost by renewal": Case(lost_by_renewal, ("lost_lease",), "CancelledError"),
    "delayed": Case(delayed, ("delayed", "succeeded"), ran=False),
    "parked": Case(parked, ("parked", "succeeded"), ran=False),
    "shutdown": Case(handed_back, ("handed_back",), "CancelledError"),
    "shutdown before start": Case(handed_back_unstarted, ("handed_back",), ran=False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_result_hooks_events_and_dead_letter_agree(
    redis_url: str, client: Client, case: Case
) -> None:
    seen = Seen()
    await case.way(client, redis_url, seen)
    assert [end.outcome.value for end in seen.ends] == list(case.outcomes)
    last = seen.ends[-1]
    assert last.job_id == "j"
    assert last.error_type.rpartition(".")[2] == case.error
    check_hooks(seen, case)
    check_starts(seen)
    await check_redis(client, last)


def check_hooks(seen: Seen, case: Case) -> None:
    after = [outcome for name, outcome in seen.hooks if name == "after_job_end"]
    before_start = case.outcomes == ("handed_back",) and not case.ran
    heard = [outcome for outcome in case.outcomes if outcome not in NO_HOOKS]
    assert after == ([] if before_start else heard)
    begun = [name for name, _ in seen.hooks if name == "on_job_start"]
    assert len(begun) == sum(end.ran for end in seen.ends)
    assert case.ran == seen.ends[0].ran


def check_starts(seen: Seen) -> None:
    kinds = [type(event) for event in seen.events]
    assert kinds[0] is WorkerStarted
    assert kinds[-1] is WorkerStopped
    starts = [event for event in seen.events if isinstance(event, JobStarted)]
    assert [start.attempt for start in starts] == [end.attempt for end in seen.ends if end.ran]
    workers = {event.worker for event in seen.events}
    assert len(workers) == 1


async def check_redis(client: Client, last: JobEnded) -> None:
    letters: list[DeadLetter] = await client.dead_letters()
    kept = await client.exists(keys.result("j"))
    assert bool(kept) == last.is_final
    expects_letter = last.is_final and last.outcome not in FINAL_WITHOUT_LETTER
    assert last.has_letter == expects_letter
    assert [letter.outcome for letter in letters] == [last.outcome.value] * expects_letter
    if kept:
        result = await result_of(client, "j")
        assert result.success == (last.outcome is Outcome.SUCCEEDED)
        assert result.attempt == last.attempt
    if expects_letter:
        (letter,) = letters
        assert (letter.error_type, letter.error) == (last.error_type, last.error)
        assert (letter.task, letter.attempt) == (last.task, last.attempt)
    assert (await client.zscore(QUEUE, "j") is None) or not last.is_final


async def test_every_outcome_has_its_case() -> None:
    told = {outcome for case in CASES.values() for outcome in case.outcomes}
    assert told == {outcome.value for outcome in Outcome}


async def test_lost_lease_is_told_when_it_is_noticed(redis_url: str, client: Client) -> None:
    seen = Seen()
    await lost_by_renewal(client, redis_url, seen)
    kinds = [type(event) for event in seen.events]
    assert kinds.index(LeaseLost) < kinds.index(JobEnded)


async def test_success_that_wrote_is_committing(
    redis_url: str, client: Client, database_url: str
) -> None:
    @task
    async def write(ctx: Context) -> None:
        ctx.db.insert("anything", id=1)

    seen = Seen()
    job = await client.enqueue(write)
    settings = seen.settings(database_url=database_url, writer=False)
    async with serving(redis_url, [write], **settings):
        (end,) = await wait_until(lambda: seen.ends, description="it has ended")
    assert (end.outcome, end.committing) == (Outcome.SUCCEEDED, True)
    assert (await client.get(keys.in_progress(job.job_id))).startswith(b"committing:")
    assert not await client.exists(keys.result(job.job_id))


async def test_event_names_times_in_their_order(redis_url: str, client: Client) -> None:
    seen = Seen()
    await burst("succeed")(client, redis_url, seen)
    (end,) = seen.ends
    assert 0 < end.enqueued_ms <= end.started_ms <= end.ended_ms
    assert abs(end.due_ms - end.started_ms) < 10_000
    assert (end.queue, end.task, end.attempt, end.crashes) == (QUEUE, "succeed", 1, 0)
    assert end.exception is None


async def test_failing_subscriber_harms_nothing_and_is_logged(
    redis_url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(_event: Event) -> None:
        raise RuntimeError("no room for metrics")

    seen = Seen()
    await put(client, "succeed")
    await drain(redis_url, TASKS, **seen.settings(subscribers=[bad, seen.events.append]))
    assert [end.outcome for end in seen.ends] == [Outcome.SUCCEEDED]
    assert "no room for metrics" in caplog.text
    assert caplog.text.count("failed on JobEnded") == 1


async def test_subscription_can_begin_and_end_while_a_worker_runs(
    redis_url: str, client: Client
) -> None:
    seen = Seen()
    async with serving(redis_url, TASKS, **seen.settings(subscribers=[])) as worker:
        assert not worker.events.wanted
        await (await client.enqueue(succeed)).result(timeout=5)
        end = worker.subscribe(seen.events.append)
        await (await client.enqueue(succeed)).result(timeout=5)
        await wait_until(lambda: seen.ends, description="it is told")
        end()
        assert not worker.events.wanted
    assert [type(event) for event in seen.events] == [JobStarted, JobEnded]


def test_coroutine_function_is_no_subscriber() -> None:
    async def slow(_event: Event) -> None: ...

    with pytest.raises(runner.errors.SettingsError, match="plain function"):
        Worker(TASKS, subscribers=[slow], handle_signals=False)
    with pytest.raises(runner.errors.SettingsError, match="subscribers"):
        type("Settings", (runner.WorkerSettings,), {"functions": TASKS, "subscribers": [slow]})


# What crashed before is remembered


async def test_crashes_before_and_after_a_retry_count_together(
    redis_url: str, client: Client
) -> None:
    """Retries and hand-backs between crashes do not hide a job that kills its workers."""
    await put(client, "again")
    rig = Rig(client)
    await rig.lapse(*await rig.claim())
    await drain(redis_url, [again], max_burst_jobs=1)  # it asks for a retry
    await rig.lapse(*await rig.claim())
    seen = Seen()
    await drain(redis_url, TASKS, **seen.settings(max_crashes=2))
    assert [(end.outcome.value, end.crashes) for end in seen.ends] == [("too_many_crashes", 2)]


async def test_hand_back_keeps_the_count_of_crashes(redis_url: str, client: Client) -> None:
    await put(client, "hang")
    rig = Rig(client)
    await rig.lapse(*await rig.claim())
    await handed_back_by_a_worker(redis_url)
    await rig.lapse(*await rig.claim())
    seen = Seen()
    await drain(redis_url, TASKS, **seen.settings(max_crashes=2))
    assert [(end.outcome.value, end.crashes) for end in seen.ends] == [("too_many_crashes", 2)]


async def handed_back_by_a_worker(url: str) -> None:
    seen = Seen()
    async with serving(url, TASKS, **seen.settings()):
        await seen.gate.runs.wait()
    assert [end.outcome.value for end in seen.ends] == ["handed_back"]


async def test_kept_count_of_crashes_costs_no_try_and_goes_with_the_job(
    redis_url: str, client: Client
) -> None:
    await put(client, "again")
    rig = Rig(client)
    await rig.lapse(*await rig.claim())
    seen = Seen()
    await drain(redis_url, TASKS, **seen.settings(max_tries=2))
    assert [(end.outcome.value, end.attempt, end.crashes) for end in seen.ends] == [
        ("retried", 1, 1),
        ("succeeded", 2, 1),
    ]
    assert (await client.queue_stats()).crashed == 1
    assert not await client.exists(keys.held(QUEUE))


async def test_deferred_job_that_crashed_before_is_aborted_at_once(
    redis_url: str, client: Client
) -> None:
    @task
    async def later(_ctx: Context) -> None:
        raise Retry(defer=600)

    job = await client.enqueue(later)
    rig = Rig(client)
    await rig.lapse(*await rig.claim())
    seen = Seen()
    async with serving(redis_url, [later], **seen.settings(allow_abort_jobs=True)):
        await wait_until(lambda: seen.ends, description="it is tried once")
        assert await job.abort(timeout=5)
    assert [end.outcome.value for end in seen.ends] == ["retried", "aborted"]


# Tries that the enqueuer asks for, and bounds


async def test_lease_of_a_job_with_a_try_of_its_own_outlives_a_pause(
    redis_url: str, client: Client
) -> None:
    """Its lease is held by the number that the payload asks for, also without a time limit."""
    seen = Seen()
    await put(client, "hang", _job_try=3)
    async with serving(redis_url, [hang], **seen.settings(lease=0.3, job_timeout=None)):
        await seen.gate.runs.wait()
        await client.delete(keys.in_progress("j"))  # as if the lease had run out in a pause
        await wait_until(
            lambda: client.exists(keys.in_progress("j")), description="it is renewed all the same"
        )
        seen.gate.opens.set()
        await wait_until(lambda: seen.ends, description="it ends")
    assert [(end.outcome, end.attempt) for end in seen.ends] == [(Outcome.SUCCEEDED, 3)]


@pytest.mark.parametrize("kept", [2**63, 2e18, 101 * 365 * 24 * 3600])
def test_result_cannot_be_kept_for_longer_than_redis_can_count(kept: float) -> None:
    with pytest.raises(runner.errors.SettingsError, match="keep_result_forever"):
        type("Settings", (runner.WorkerSettings,), {"functions": TASKS, "keep_result": kept})
    with pytest.raises(runner.errors.SettingsError, match="keep_result_forever"):
        task(name="kept", keep_result=kept)(succeed.function)


async def test_result_that_arqs_func_keeps_for_ages_is_kept_for_ever(
    redis_url: str, client: Client
) -> None:
    await put(client, "aeons")
    kept_long = runner.func(cast(Any, succeed.function), name="aeons", keep_result=2**70)
    await drain(redis_url, [kept_long])
    assert (await result_of(client, "j")).result == 42
    assert await client.ttl(keys.result("j")) == -1


@pytest.mark.parametrize("lease", [0, -1, 0.05, float("inf"), float("nan")])
def test_lease_that_is_none_is_refused(lease: float) -> None:
    with pytest.raises(runner.errors.SettingsError, match="lease is"):
        Worker(TASKS, lease=lease, handle_signals=False)


async def test_no_event_is_made_where_nobody_subscribes(
    redis_url: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: Any, **__: Any) -> None:
        raise AssertionError("an event was made for nobody")

    monkeypatch.setattr("runner.execution.report.ended", made)
    monkeypatch.setattr("runner.execution.calls.started", made)
    await put(client, "succeed")
    worker = await drain(redis_url, TASKS)
    assert worker.jobs_complete == 1


async def test_lease_that_is_lost_in_the_start_hook_starts_no_job(
    redis_url: str, client: Client
) -> None:
    gate, seen = Gate(), Seen()

    async def wait_first(_ctx: dict[str, Any]) -> None:
        await gate()

    @task
    async def run_here(ctx: Context) -> None:
        ctx["runs"].append(ctx.job_id)

    runs: list[str] = []
    settings: dict[str, Any] = {"on_job_start": wait_first, "ctx": {"runs": runs}, "lease": 0.6}
    async with serving(redis_url, [run_here], subscribers=[seen.events.append], **settings):
        job = await client.enqueue(run_here)
        await wait_until(gate.runs.is_set, description="the hook runs")
        await client.set(keys.in_progress(job.job_id), "somebody else's")
        await wait_until(
            lambda: any(isinstance(event, LeaseLost) for event in seen.events),
            description="the loss is noticed",
        )
        gate.opens.set()
        await wait_until(
            lambda: any(isinstance(event, JobEnded) for event in seen.events),
            description="the attempt is over",
        )
        await client.delete(keys.in_progress(job.job_id))
    assert runs == []


@task
async def fail_in_groups(_ctx: Context) -> None:
    raise BaseExceptionGroup("two", [ValueError("broken"), asyncio.CancelledError()])


async def test_group_that_holds_a_cancellation_ends_its_job(redis_url: str, client: Client) -> None:
    job = await client.enqueue(fail_in_groups)
    ended: list[Event] = []
    async with serving(redis_url, [fail_in_groups], subscribers=[ended.append]):
        with pytest.raises(Exception, match="two"):
            await job.result(timeout=10)
    (end,) = [event for event in ended if isinstance(event, JobEnded)]
    assert end.outcome is Outcome.FAILED
