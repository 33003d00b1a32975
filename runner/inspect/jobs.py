"""What ``client.jobs`` offers: list, show, cancel and hurry the jobs of a queue; purge it."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from runner import codec as codecs
from runner import keys, paging
from runner.codec import JobRecord, MsgpackCodec, PickleCodec, ResultRecord
from runner.errors import DecodeError, EnqueueError, JobCancelled, JobNotFound
from runner.inspect.history import History
from runner.inspect.queued import JobFilter, JobInfo, JobState
from runner.inspect.story import JobStory, of_ended, of_queued, traces_of
from runner.letters import decode_errors
from runner.letters.filters import name_of
from runner.scripts import load
from runner.signing import SignedCodec
from runner.tasks import seconds

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence
    from datetime import timedelta

    from redis.asyncio import Redis

    from runner.codec import Codec
    from runner.types import AttemptError

LOOK, LOOK_BYTES, FOUND = 500, 4_000_000, 500
"""What one call to Redis looks at, and brings back, at most: some milliseconds of its time."""
CHANGED = 200
"""How many jobs one call changes at most: the same."""

KEEP_RESULT_S = 3600.0
REASON = "cancelled before it ran"


_FAR_OFF = frozenset({JobState.COMMITTING, JobState.PARKED})
_AHEAD = frozenset({JobState.DEFERRED, JobState.RETRYING, JobState.RUNNING})
"""What stands in a queue behind the present: leases end there, too."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs, those that are due first.

    Attributes:
        jobs: the jobs.
        after: where the next page begins, for `list`; "" when there is none.
        cut: the search stopped where it had looked long enough; it goes on at `after`.
    """

    jobs: list[JobInfo]
    after: str
    cut: bool = False


@dataclass(slots=True)
class Cancelled:
    """What became of jobs that were to be cancelled.

    Attributes:
        count: jobs that were taken out of the queue.
        running: jobs that run, or have ended and wait for the writer: they were left alone.
        gone: jobs that were not in the queue any more.
    """

    count: int = 0
    running: int = 0
    gone: int = 0


class QueuedJobs:
    """The jobs of one queue: those that wait, for a time or for another try, and those that run.

    They are read in pages of bounded size. Each job is changed in one step, which looks first
    whether somebody has claimed it.

    Example:
        >>> page = await client.jobs.list(JobFilter(states={"retrying"}), limit=20)
        >>> await client.jobs.retry_now(JobFilter(task="send_mail"))
        120
        >>> (await client.jobs.cancel(JobFilter(task="send_mail", older=86_400))).count
        17
    """

    def __init__(self, redis: Redis, codec: Codec, queue: str) -> None:
        self.queue = queue
        self._redis = redis
        self._codec = codec

    def of(self, queue: str) -> QueuedJobs:
        """Return the jobs of another queue."""
        return QueuedJobs(self._redis, self._codec, queue)

    async def list(
        self,
        where: JobFilter | None = None,
        *,
        limit: int = 100,
        after: str = "",
        most_looks: int | None = None,
    ) -> JobPage:
        """Return the jobs that fit, those that are due first.

        Args:
            where: which jobs are meant.
            limit: how many at most.
            after: the `after` of the page before. Jobs that were claimed or moved meanwhile may
                come twice or not at all.
            most_looks: how many calls to Redis at most, each of which looks at 500 jobs at most; a
                page that is `cut` says where to go on. None: until the page is full.
        """
        jobs: list[JobInfo] = []
        if limit < 1:
            return JobPage(jobs, after)
        looks = paging.Looks(most_looks)
        meant = where or JobFilter()
        most = FOUND if meant.sorts_out else limit
        found = self._look(meant, after, most=most, looks=looks)
        async with aclosing(found) as look:
            async for job, behind in look:
                jobs.append(job)
                if len(jobs) == limit:
                    return JobPage(jobs, behind)
        return JobPage(jobs, looks.stopped_at, cut=bool(looks.stopped_at))

    async def find(self, where: JobFilter | None = None) -> AsyncGenerator[JobInfo, None]:
        """Go through all jobs that fit, those that are due first."""
        async with aclosing(self._look(where or JobFilter())) as look:
            async for job, _ in look:
                yield job

    async def show(self, job_id: str) -> JobInfo:
        """Return one job and its errors so far; raise `JobNotFound`."""
        name = cast(str, keys.ERRORS.encode() + keys.raw_id(job_id))
        blobs = await cast(Any, self._redis.lrange(name, 0, -1))
        for job in await self._named([job_id], decode_errors(blobs)):
            return job
        raise JobNotFound(f"queue {self.queue!r} has no job {job_id!r}", job_id=job_id)

    async def story(self, job_id: str) -> JobStory:
        """Return all that is known of one job, whatever became of it; raise `JobNotFound`.

        Example:
            >>> (await client.jobs.story(job_id)).state
            'failed'
        """
        try:
            return of_queued(await self.show(job_id))
        except JobNotFound:
            traces = await traces_of(self._redis, job_id)
            finished = await History(self._redis, self.queue).find(job_id)
            told = of_ended(job_id, self.queue, self._codec, traces, finished)
            if told is None:
                raise
            return told

    async def cancel(
        self,
        which: str | Iterable[str] | JobFilter,
        *,
        keep_result: float | timedelta = KEEP_RESULT_S,
    ) -> Cancelled:
        """Take jobs that do not run out of the queue; who waits for one gets `JobCancelled`.

        To stop one that runs use `Job.abort`.

        Args:
            which: a job's id, several, or a filter.
            keep_result: seconds for which it is kept that a job was cancelled; 0: only those
                who wait now hear of it.
        """
        said = Cancelled()
        keep_ms = int(seconds(keep_result) * 1000)
        async for part in self._parts(which, said):
            await self._cancel([(job.job_id, self._result(job)) for job in part], keep_ms, said)
        return said

    async def retry_now(self, which: str | Iterable[str] | JobFilter) -> int:
        """Let jobs that are deferred, or wait for another try, run now; return how many."""
        moved = 0
        async for part in self._parts(which, Cancelled(), ids_alone=True):
            moved += await load("jobs_now").call(
                self._redis,
                keys=[
                    *(self.queue, keys.held(self.queue)),
                    *(keys.idle(self.queue), keys.wake(self.queue)),
                ],
                args=[keys.raw_id(job.job_id) for job in part],
            )
        return moved

    async def purge(self) -> Cancelled:
        """Take all jobs that do not run out of the queue, in parts; who waits hears of it."""
        said = Cancelled()
        async for part in self._parts(JobFilter(), said, ids_alone=True):
            await self._cancel([(job.job_id, self._result(job)) for job in part], 0, said)
        return said

    async def _cancel(
        self, entries: Sequence[tuple[str, bytes]], keep_ms: int, said: Cancelled
    ) -> None:
        statuses = await load("jobs_cancel").call(
            self._redis,
            keys=[self.queue, keys.held(self.queue)],
            args=[
                keep_ms,
                *(v for job_id, result in entries for v in (keys.raw_id(job_id), result)),
            ],
        )
        for (job_id, _), status in zip(entries, statuses, strict=True):
            if status == 1:
                said.count += 1
            elif status == -1:
                said.running += 1
            elif status == 0:
                said.gone += 1
            else:
                raise EnqueueError(f"Redis refused to cancel job {job_id!r}: {status.decode()}")

    def _result(self, job: JobInfo) -> bytes:
        """Encode what those hear who wait for a job that was cancelled."""
        now_ms = time.time_ns() // 1_000_000
        return codecs.encode_result(
            self._codec,
            ResultRecord(
                job_id=job.job_id.encode(errors="surrogateescape").decode(errors="replace"),
                queue=job.queue,
                task=job.task or "<unknown>",
                args=job.args,
                kwargs=job.kwargs,
                attempt=job.attempt,
                enqueued_ms=int(job.enqueued.timestamp() * 1000) if job.enqueued else 0,
                started_ms=now_ms,
                finished_ms=now_ms,
                success=False,
                result=JobCancelled(f"job {job.job_id!a} was {REASON}"),
            ),
        )

    async def _parts(
        self,
        which: str | Iterable[str] | JobFilter,
        said: Cancelled,
        *,
        ids_alone: bool = False,
    ) -> AsyncGenerator[Sequence[JobInfo], None]:
        """Give the jobs that are meant in parts that one call can carry."""
        part: list[JobInfo] = []
        if not isinstance(which, JobFilter):
            names = [which] if isinstance(which, str) else list(which)
            for start in range(0, len(names), CHANGED):
                asked = names[start : start + CHANGED]
                found = await self._named(asked)
                said.gone += len(asked) - len(found)
                yield found
            return
        async with aclosing(self._look(which, ids_alone=ids_alone)) as look:
            async for job, _ in look:
                part.append(job)
                if len(part) >= CHANGED:
                    yield part
                    part = []
        if part:
            yield part

    async def _named(
        self, job_ids: Sequence[str], errors: tuple[AttemptError, ...] = ()
    ) -> Sequence[JobInfo]:
        _, found = await load("jobs_show").call(
            self._redis,
            keys=[self.queue, keys.held(self.queue)],
            args=[keys.raw_id(job_id) for job_id in job_ids],
        )
        return [self._info(values, errors) for values in found]

    async def _look(
        self,
        where: JobFilter,
        after: str = "",
        *,
        most: int = FOUND,
        ids_alone: bool = False,
        looks: paging.Looks | None = None,
    ) -> AsyncGenerator[tuple[JobInfo, str], None]:
        """Give each job that fits, with the place behind it."""
        start: Any
        start, behind = paging.read_place(after) if after else ("-inf", b"")
        if not after and looks is not None:
            start = await self._first_score(where)
        wants = "ids" if ids_alone and not where.needs_payload else "jobs"
        needles = []
        name = name_of(where.task)
        if name and _shows_text(self._codec):
            needles.append(name.encode(errors="surrogatepass"))
        while start != b"":
            if looks is not None and not looks.may_look(start, behind):
                return
            now_ms, start, behind, found = await load("jobs_look").call(
                self._redis,
                keys=[self.queue, keys.held(self.queue)],
                args=[start, behind, LOOK, LOOK_BYTES, min(most, FOUND), wants, *needles],
            )
            for values in found:
                job = self._info(values)
                if where.fits(job, now_ms):
                    yield job, paging.place(values[1], values[0])

    async def _first_score(self, where: JobFilter) -> str:
        """Return the score in front of which no job is in one of the wanted states."""
        states = frozenset(where.states)
        if states and states <= _FAR_OFF:
            return str(keys.FAR_OFF_MS)
        if states and states <= _AHEAD | _FAR_OFF:
            second, micros = await self._redis.time()
            return str(second * 1000 + micros // 1000)
        return "-inf"

    def _info(self, values: Sequence[Any], errors: tuple[AttemptError, ...] = ()) -> JobInfo:
        raw, score, payload, state, tries, crashes, worker = values
        job_id = raw.decode(errors="surrogateescape")
        record, error = self._record(payload, job_id)
        return JobInfo(
            job_id=job_id,
            queue=self.queue,
            task=record.task,
            args=record.args,
            kwargs=record.kwargs,
            state=JobState(state.decode()),
            attempt=tries + 1,
            crashes=crashes,
            due=_moment(float(score)),
            enqueued=_moment(record.enqueued_ms) if record.enqueued_ms else None,
            worker=worker.decode(errors="replace"),
            error=error,
            errors=errors,
        )

    def _record(self, payload: bytes, job_id: str) -> tuple[JobRecord, str]:
        unknown = JobRecord(task="", args=(), kwargs={}, attempt=None, enqueued_ms=0, options={})
        if not payload:
            return unknown, "its payload is gone, or was not read"
        try:
            return codecs.decode_job(self._codec, payload, job_id=job_id), ""
        except DecodeError as exc:
            return unknown, str(exc)


def _shows_text(codec: Codec) -> bool:
    """Tell whether the bytes of a job hold its task's name as it is."""
    inner = codec.inner if isinstance(codec, SignedCodec) else codec
    return isinstance(inner, MsgpackCodec | PickleCodec)


def _moment(unix_ms: float) -> datetime | None:
    """Return a time; None for those that mean that nobody knows when."""
    if not 0 < unix_ms < keys.FAR_OFF_MS:
        return None
    return datetime.fromtimestamp(unix_ms / 1000, UTC)
