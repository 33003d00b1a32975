"""Run one attempt: load → admit → perform → classify → settle.

Exactly one place decides what became of an attempt (`classify`, and `admit` for those that
never start), and exactly one acts on it (`settlement`). Every end goes through the same
hooks, results and dead letters.

    claimed ──load──▶ job ──admit──▶ perform ──▶ ending ──settlement──▶ cycle
                │              │                   ▲
                └──────────────┴───────────────────┘   undecodable, expired, unknown task,
                                                       too many tries or crashes, aborted
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, assert_never

import msgspec
import structlog
from arq.constants import keep_cronjob_progress
from arq.jobs import DeserializationError, SerializationError
from arq.utils import args_to_string, ms_to_datetime, truncate
from arq.worker import RetryJob

from runner import codec, errors
from runner.broker import Claimed, Settlement
from runner.codec import Codec, JobRecord, ResultRecord
from runner.errors import Cancel, DecodeError, Retry, Snooze
from runner.tasks import Task, seconds
from runner.types import DeadLetter, Outcome
from runner.writer import JobDatabase, ReadPool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.client import Client

logger = logging.getLogger("arq.worker")


class Context(dict[Any, Any]):
    """What a task gets as its first argument: arq's dict, with our parts as attributes.

    The dict holds what arq puts there (``redis``, ``job_id``, ``job_try``, ``enqueue_time``,
    ``score``) and whatever ``on_startup`` left in it.

    Example:
        >>> @task
        ... async def ship(ctx: Context, order_id: int) -> None:
        ...     ctx.db.update("orders", key={"id": order_id}, shipped=True)
    """

    __slots__ = ("_db", "_reads")

    def __init__(self, values: Mapping[Any, Any], reads: ReadPool | None = None) -> None:
        super().__init__(values)
        self._reads = reads
        self._db: JobDatabase | None = None

    @property
    def db(self) -> JobDatabase:
        """The job's writes, submitted together with its completion; and its reads."""
        if self._db is None:
            self._db = JobDatabase(self._reads)
        return self._db

    @property
    def client(self) -> Client:
        """The worker's client, to enqueue more jobs."""
        client: Client = self["redis"]
        return client

    @property
    def job_id(self) -> str:
        """The id of this job."""
        job_id: str = self["job_id"]
        return job_id

    @property
    def attempt(self) -> int:
        """The number of this try, counted from 1."""
        attempt: int = self["job_try"]
        return attempt

    def unit(self) -> bytes:
        """Return the encoded unit of writes, or b"" when the job wrote nothing."""
        if self._db is None or len(self._db) == 0:
            return b""
        return self._db.encode()


class Function(Protocol):
    """What arq knows of a function or a cron job."""

    name: str
    coroutine: Any
    timeout_s: float | None
    keep_result_s: float | None
    keep_result_forever: bool | None
    max_tries: int | None


class Host(Protocol):
    """What an attempt needs of its worker; arq's names, read when they are needed."""

    functions: dict[str, Any]
    queue_name: str
    ctx: dict[Any, Any]
    codec: Codec
    reads: ReadPool | None
    history: bool
    stopping: bool
    job_timeout_s: Any
    keep_result_s: Any
    keep_result_forever: bool
    max_tries: int
    max_crashes: int
    retry_jobs: bool
    log_results: bool
    aborting_tasks: set[str]
    job_tasks: dict[str, asyncio.Task[Any]]
    on_job_start: Any
    on_job_end: Any
    after_job_end: Any
    jobs_complete: int
    jobs_failed: int
    jobs_retried: int

    async def settle(self, settlement: Settlement, job: Job) -> int | str:
        """Free the job's slot, and hand its settlement to the next cycle."""
        ...

    def limit_lease(self, job: Job, timeout_s: float) -> None:
        """Stop renewing the lease some time after the job's time limit."""
        ...

    async def remember_try(self, job_id: str, attempt: int) -> None:
        """Set the count of tries to what the enqueuer asked for."""
        ...


@dataclass(slots=True)
class Job:
    """One claimed job as it passes through the steps."""

    claimed: Claimed
    started_ms: int
    record: JobRecord
    function: Function | None = None
    attempt: int = 0
    context: Context | None = None
    lost_lease: bool = False
    timed_out: bool = False
    released: bool = False

    @property
    def is_cron(self) -> bool:
        """Whether a schedule made it: arq keeps its in-progress key for a while."""
        return hasattr(self.function, "next_run")

    @property
    def ref(self) -> str:
        """How log lines name the job, as arq does."""
        if self.is_cron:
            return self.record.task
        return f"{self.claimed.job_id}:{self.record.task}"

    @property
    def task(self) -> Task[..., Any] | None:
        """The declared task, None for a plain function."""
        coroutine = self.function.coroutine if self.function else None
        return coroutine if isinstance(coroutine, Task) else None


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of one attempt.

    Attributes:
        result: the value, or the exception.
        delay_s: until the next try; None: the job takes its old place in the queue.
    """

    outcome: Outcome
    result: Any = None
    delay_s: float | None = None
    extra: Any = field(default=None, compare=False)


async def run(host: Host, claimed: Claimed, job: Job | None = None) -> None:
    """Run one attempt from its claim to its settlement."""
    job = job or begin(claimed)
    ending = load(host, job) or await admit(host, job)
    if ending is None:
        ending = await perform(host, job)
    log(host, job, ending)
    count(host, ending)
    await end(host, job, ending)


def begin(claimed: Claimed) -> Job:
    """Return the job as it is before anything of it is known."""
    record = JobRecord(
        task="<unknown>",
        args=(),
        kwargs={},
        attempt=None,
        enqueued_ms=0,
        options={},
    )
    return Job(claimed, started_ms=now_ms(), record=record, attempt=claimed.attempt)


def load(host: Host, job: Job) -> Ending | None:
    """Decode the payload and find the function, or return how the job ends."""
    payload = job.claimed.payload
    if payload is None:
        return Ending(Outcome.EXPIRED, errors.JobExpired("job expired"))
    try:
        job.record = codec.decode_job(host.codec, payload)
    except DecodeError as exc:
        failure = DeserializationError("unable to deserialize job")
        failure.__cause__ = exc
        return Ending(Outcome.UNDECODABLE, failure)
    job.function = host.functions.get(job.record.task)
    return None


async def admit(host: Host, job: Job) -> Ending | None:
    """Return None when the job may run now, or how it ends without having run."""
    record, claimed = job.record, job.claimed
    if claimed.job_id in host.aborting_tasks:
        return Ending(Outcome.ABORTED, asyncio.CancelledError())
    if job.function is None:
        hint = errors.did_you_mean(record.task, host.functions)
        message = f"function {record.task!r} not found{hint}"
        return Ending(Outcome.UNKNOWN_TASK, errors.TaskNotFound(message))
    expires_ms = record.options.get("exp")
    if expires_ms is not None and job.started_ms > expires_ms:
        return Ending(Outcome.EXPIRED, errors.JobExpired("job expired before it could start"))
    most = job.task.task_options.max_crashes if job.task else None
    most = host.max_crashes if most is None else most
    if claimed.crashes >= max(most, 1):
        message = f"the job lost its worker {claimed.crashes} times, max_crashes is {most}"
        return Ending(Outcome.TOO_MANY_CRASHES, errors.TooManyCrashes(message))
    if record.attempt and record.attempt > job.attempt:
        job.attempt = claimed.attempt = record.attempt
        await host.remember_try(claimed.job_id, record.attempt)
    max_tries = max_tries_of(host, job)
    if job.attempt > max_tries:
        message = f"max {max_tries} retries exceeded"
        return Ending(Outcome.TOO_MANY_TRIES, errors.TooManyTries(message))
    return None


def max_tries_of(host: Host, job: Job) -> int:
    """Return how often this job may be tried."""
    declared = job.function.max_tries if job.function else None
    return host.max_tries if declared is None else declared


def timeout_of(host: Host, job: Job) -> float | None:
    """Return the seconds this attempt may take; None means without end."""
    declared = job.function.timeout_s if job.function else None
    timeout: float | None = host.job_timeout_s if declared is None else declared
    return timeout


async def perform(host: Host, job: Job) -> Ending:
    """Call the function under its time limit, and classify how it ended."""
    context = job.context = make_context(host, job)
    structlog.contextvars.bind_contextvars(
        job_id=job.claimed.job_id,
        task=job.record.task,
        attempt=job.attempt,
    )
    this_task = asyncio.current_task()
    assert this_task is not None
    timer: asyncio.TimerHandle | None = None
    timeout_s = timeout_of(host, job)

    def overrun() -> None:
        job.timed_out = True
        this_task.cancel()

    try:
        if host.on_job_start:
            await host.on_job_start(context)
        args, kwargs = arguments(job)
        log_start(job)
        host.job_tasks[job.claimed.job_id] = this_task
        if timeout_s is not None:
            host.limit_lease(job, timeout_s)
            timer = asyncio.get_running_loop().call_later(timeout_s, overrun)
        assert job.function is not None
        value = await job.function.coroutine(context, *args, **kwargs)
    except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  every end is classified
        if isinstance(exc, asyncio.CancelledError):
            # The cancellation ends here: what follows is the settlement.
            this_task.uncancel()
        return classify(host, job, exc)
    finally:
        if timer is not None:
            timer.cancel()
        host.job_tasks.pop(job.claimed.job_id, None)
    return Ending(Outcome.SUCCEEDED, value)


def make_context(host: Host, job: Job) -> Context:
    """Return arq's dict for this attempt, with our parts."""
    context = Context(host.ctx, host.reads)
    context["job_id"] = job.claimed.job_id
    context["job_try"] = job.attempt
    context["enqueue_time"] = ms_to_datetime(job.record.enqueued_ms)
    context["score"] = int(job.claimed.run_at_ms)
    return context


def arguments(job: Job) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments as the task's annotations want them; raise what does not fit."""
    record = job.record
    if job.task is None:
        return record.args, record.kwargs
    job.task.signature.check(record.task, record.args, record.kwargs)
    return job.task.signature.convert(record.args, record.kwargs)


def classify(  # noqa: C901, PLR0911  a list of rules, the first that fits decides
    host: Host,
    job: Job,
    exc: BaseException,
) -> Ending:
    """Decide what an exception means. The only place that does."""
    cancelled = isinstance(exc, asyncio.CancelledError)
    extra = getattr(exc, "extra", None)
    extra = extra() if callable(extra) else extra
    if job.lost_lease:
        return Ending(Outcome.LOST_LEASE, exc)
    if job.timed_out and (cancelled or isinstance(exc, TimeoutError)):
        timeout = TimeoutError()
        timeout.__cause__ = exc
        return Ending(Outcome.TIMED_OUT, timeout)
    if job.claimed.job_id in host.aborting_tasks and cancelled:
        return Ending(Outcome.ABORTED, exc)
    if isinstance(exc, Snooze):
        return Ending(Outcome.SNOOZED, exc, seconds(exc.defer))
    if isinstance(exc, Cancel):
        return Ending(Outcome.CANCELLED, exc)
    if host.retry_jobs:
        if isinstance(exc, Retry):
            return Ending(Outcome.RETRIED, exc, (exc.defer_score or 0) / 1000 or None)
        if cancelled and host.stopping:
            return Ending(Outcome.HANDED_BACK, exc)
        if cancelled or isinstance(exc, RetryJob):
            return Ending(Outcome.RETRIED, exc)
        again_s = retry_delay(job, exc)
        if again_s is not None:
            return Ending(Outcome.RETRIED, exc, again_s)
    return Ending(Outcome.FAILED, exc, extra=extra)


def retry_delay(job: Job, exc: BaseException) -> float | None:
    """Return the seconds until a task with `retries` is tried again, None to give it up."""
    if job.task is None or job.task.task_options.retries is None:
        return None
    if isinstance(exc, errors.ArgumentsError | errors.CodecError | errors.UnitError):
        return None  # the same bytes will not fit the next time either
    options = job.task.task_options
    if job.attempt > (options.retries or 0):
        return None
    return options.policy.delay(attempt=job.attempt, random=random.random())  # noqa: S311  jitter


def log_start(job: Job) -> None:
    """Write arq's line for a job that starts."""
    if not logger.isEnabledFor(logging.INFO):
        return
    record = job.record
    extra = f" try={job.attempt}" if job.attempt > 1 else ""
    delayed_ms = job.started_ms - job.claimed.run_at_ms
    if delayed_ms > 1200:  # noqa: PLR2004  arq's threshold
        extra += f" delayed={delayed_ms / 1000:0.2f}s"
    logger.info(
        "%6.2fs → %s(%s)%s",
        (job.started_ms - record.enqueued_ms) / 1000,
        job.ref,
        args_to_string(record.args, record.kwargs),
        extra,
    )


def log(host: Host, job: Job, ending: Ending) -> None:  # noqa: C901, PLR0912  a line each
    """Write arq's line for how an attempt ended."""
    took_s = (now_ms() - job.started_ms) / 1000
    waited_s = (now_ms() - job.record.enqueued_ms) / 1000
    job_id, ref, exc = job.claimed.job_id, job.ref, ending.result
    match ending.outcome:
        case Outcome.SUCCEEDED:
            if logger.isEnabledFor(logging.INFO):
                shown = "" if exc is None or not host.log_results else _shown(exc)
                logger.info("%6.2fs ← %s ● %s", took_s, ref, shown)
        case Outcome.RETRIED | Outcome.SNOOZED if ending.delay_s or isinstance(exc, Retry):
            logger.info("%6.2fs ↻ %s retrying job in %0.2fs", took_s, ref, ending.delay_s or 0)
        case Outcome.RETRIED | Outcome.HANDED_BACK | Outcome.SNOOZED:
            logger.info("%6.2fs ↻ %s cancelled, will be run again", took_s, ref)
        case Outcome.ABORTED if job.context is None:
            logger.info("%6.2fs ⊘ %s aborted before start", waited_s, ref)
        case Outcome.ABORTED:
            logger.info("%6.2fs ⊘ %s aborted", took_s, ref)
        case Outcome.EXPIRED:
            logger.warning("job %s expired", job_id)
        case Outcome.UNDECODABLE:
            logger.error("deserializing job %s failed", job_id, exc_info=exc)
        case Outcome.UNKNOWN_TASK:
            logger.warning("job %s, %s", job_id, exc)
        case Outcome.TOO_MANY_TRIES:
            logger.warning(
                "%6.2fs ! %s max retries %d exceeded",
                waited_s,
                ref,
                max_tries_of(host, job),
            )
        case Outcome.TOO_MANY_CRASHES | Outcome.CANCELLED:
            logger.warning("%6.2fs ! %s given up: %s", took_s, ref, exc)
        case Outcome.LOST_LEASE:
            logger.warning("%6.2fs ! %s lost its lease, it runs elsewhere", took_s, ref)
        case Outcome.FAILED | Outcome.TIMED_OUT:
            logger.error(
                "%6.2fs ! %s failed, %s: %s",
                took_s,
                ref,
                type(exc).__name__,
                exc,
                exc_info=exc,
                extra={"extra": ending.extra},
            )
        case _:
            assert_never(ending.outcome)


def _shown(value: Any) -> str:
    try:
        return truncate(repr(value))
    except Exception as exc:  # noqa: BLE001  a user's __repr__ may raise anything
        return f"<repr raised {type(exc).__name__}>"


_AGAIN = frozenset({Outcome.RETRIED, Outcome.SNOOZED, Outcome.HANDED_BACK})
_GIVEN_BACK = frozenset({Outcome.SNOOZED, Outcome.HANDED_BACK})
_NO_LETTER = frozenset({Outcome.SUCCEEDED, Outcome.ABORTED, Outcome.LOST_LEASE, *_AGAIN})


def count(host: Host, ending: Ending) -> None:
    """Count the attempt as arq does."""
    if ending.outcome is Outcome.SUCCEEDED:
        host.jobs_complete += 1
    elif ending.outcome in _AGAIN:
        host.jobs_retried += 1
    elif ending.outcome is not Outcome.LOST_LEASE:
        host.jobs_failed += 1


async def end(host: Host, job: Job, ending: Ending) -> None:
    """Run the hooks around the settlement, and settle."""
    context = job.context or make_context(host, job)
    context["outcome"] = ending.outcome.value
    host.aborting_tasks.discard(job.claimed.job_id)
    if ending.outcome is Outcome.LOST_LEASE:
        return
    prepared = settlement(host, job, ending)
    if host.on_job_end:
        await guarded(host.on_job_end, context, "on_job_end")
    settling = asyncio.ensure_future(host.settle(prepared, job))
    try:
        await asyncio.shield(settling)
    except asyncio.CancelledError:
        # Cancelled while it settles: the end of the job stands, only the hook is skipped.
        with contextlib.suppress(asyncio.CancelledError):
            await settling
        raise
    if host.after_job_end:
        await guarded(host.after_job_end, context, "after_job_end")


async def guarded(hook: Any, context: Context, name: str) -> None:
    """Run a hook; its failure is logged and does not change what became of the job."""
    try:
        await hook(context)
    except Exception:
        logger.exception("the hook %s failed for job %s", name, context["job_id"])


def settlement(host: Host, job: Job, ending: Ending) -> Settlement:
    """Turn an ending into what happens in Redis. The only place that does."""
    if ending.outcome in _AGAIN:
        return Settlement(
            claimed=job.claimed,
            mode="back" if ending.outcome in _GIVEN_BACK else "again",
            counter="" if ending.outcome in _GIVEN_BACK else "retried",
            extra="" if ending.delay_s is None else str(int(ending.delay_s * 1000)),
        )
    unit = b""
    if ending.outcome is Outcome.SUCCEEDED and job.context is not None:
        try:
            unit = job.context.unit()
        except errors.UnitError as exc:
            ending = Ending(Outcome.FAILED, exc)
            host.jobs_complete -= 1
            count(host, ending)
            log(host, job, ending)
    keep_ms = keep_ms_of(host, job)
    result = encode(host, job, ending) if keep_ms else b""
    done = ending.outcome is Outcome.SUCCEEDED
    settled = Settlement(
        claimed=job.claimed,
        mode="done",
        counter="succeeded" if done else "failed",
        result=result,
        keep_ms=keep_ms,
        extra=str(keep_cronjob_progress * 1000) if job.is_cron and job.context else "",
    )
    if unit:
        settled.mode = "submit"
        settled.unit_id = f"{job.claimed.job_id}:{job.record.enqueued_ms}:0"
        settled.operations = unit
        settled.header = header(host, job, keep_ms)
    elif host.history and ending.outcome not in _NO_LETTER:
        settled.letter = letter(host, job, ending)
    return settled


def keep_ms_of(host: Host, job: Job) -> int:
    """Return how long the result is kept: 0 not at all, -1 for ever."""
    function = job.function
    forever = function.keep_result_forever if function else None
    if host.keep_result_forever if forever is None else forever:
        return -1
    kept_s = function.keep_result_s if function else None
    return int((host.keep_result_s if kept_s is None else kept_s) * 1000)


def encode(host: Host, job: Job, ending: Ending) -> bytes:
    """Encode the result as arq keeps it."""
    record = job.record
    return codec.encode_result(
        host.codec,
        ResultRecord(
            job_id=job.claimed.job_id,
            queue=host.queue_name,
            task=record.task,
            args=record.args,
            kwargs=record.kwargs,
            attempt=job.attempt,
            enqueued_ms=record.enqueued_ms,
            started_ms=job.started_ms,
            finished_ms=now_ms(),
            success=ending.outcome is Outcome.SUCCEEDED,
            result=ending.result,
        ),
    )


def header(host: Host, job: Job, keep_ms: int) -> bytes:
    """Return what the writer needs to settle the job when its unit is committed."""
    fields = (
        job.claimed.job_id,
        host.queue_name,
        job.attempt,
        job.started_ms,
        now_ms(),
        keep_ms,
    )
    return msgspec.msgpack.encode(fields)


def letter(host: Host, job: Job, ending: Ending) -> bytes:
    """Encode the dead letter of a job that ended for good without success."""
    described = codec.describe(ending.result)
    record = job.record
    return encode_letter(
        DeadLetter(
            job_id=job.claimed.job_id,
            queue=host.queue_name,
            task=record.task,
            args=list(record.args),
            kwargs=record.kwargs,
            attempt=job.attempt,
            outcome=ending.outcome.value,
            error_type=described["type"],
            error=described["message"],
            traceback=described["traceback"],
            enqueued_ms=record.enqueued_ms,
            died_ms=now_ms(),
            payload=job.claimed.payload or b"",
        ),
    )


def encode_letter(dead: DeadLetter) -> bytes:
    """Encode a dead letter; arguments that are no plain data are kept as their repr."""
    return msgspec.msgpack.encode(dead, enc_hook=repr)


def now_ms() -> int:
    """Return the Unix time in whole milliseconds."""
    return time.time_ns() // 1_000_000


__all__ = ["Context", "Ending", "Host", "Job", "SerializationError", "begin", "classify", "run"]
