"""What ``client.dead`` offers: list, show, requeue and purge the dead letters of a queue."""

from __future__ import annotations

import math
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from runner import codec as codecs
from runner import keys
from runner.broker import raw_id
from runner.codec import JobRecord
from runner.errors import (
    ArgumentsError,
    DecodeError,
    EncodeError,
    LetterError,
    LetterNotFound,
    RunnerError,
)
from runner.letters.filters import LetterFilter
from runner.letters.records import (
    REQUEUED,
    decode_errors,
    decode_letter,
    encode_error,
    last_error,
    requeues,
)
from runner.scripts import load
from runner.tasks import Task, seconds
from runner.unique import PLACE, noted, place_of, read_noted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
    from datetime import timedelta

    from redis.asyncio import Redis

    from runner.codec import Codec
    from runner.types import DeadLetter

LOOK, LOOK_BYTES, FOUND = 1_000, 4_000_000, 500
"""What one call to Redis looks at, and brings back, at most: some milliseconds of its time."""
CHANGED = 200
"""How many letters one call requeues or removes at most: the same."""
ANSWERED = 1_000
"""Of how many letters a requeue says why they stay."""

ALL = LetterFilter()
NOWHERE = (b"", "")


@dataclass(frozen=True, slots=True)
class LetterPage:
    """Some dead letters, the newest first.

    Attributes:
        letters: their `errors` are empty; `DeadLetters.show` reads them.
        after: where the next page begins, for `list`; "" when there is none.
        cut: the search stopped where it had looked long enough; it goes on at `after`.
    """

    letters: list[DeadLetter]
    after: str
    cut: bool = False


@dataclass(slots=True)
class Requeued:
    """What became of letters that were to be requeued.

    Attributes:
        count: jobs that are in their queue again.
        gone: letters that somebody else has requeued or purged meanwhile.
        refused: job id → why its letter stays; of the first thousand.
        stayed: how many letters stay.
    """

    count: int = 0
    gone: int = 0
    stayed: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    error: RunnerError | None = None
    """The first of the reasons, as an error."""

    def refuse(self, job_id: str, error: RunnerError) -> None:
        """Note why a letter stays."""
        self.stayed += 1
        self.error = self.error or error
        if len(self.refused) < ANSWERED:
            self.refused[job_id] = str(error)


@dataclass(slots=True)
class _Looks:
    """How many calls a search may still make, and where it stopped.

    Attributes:
        left: None for any number.
        stopped_at: the `after` of the page, "" while it goes on.
    """

    left: int | None
    stopped_at: str = ""

    def may_look(self, died: Any, behind: bytes) -> bool:
        """Count one call; note the place when there may be none."""
        if self.left is None:
            return True
        if self.left > 0:
            self.left -= 1
            return True
        self.stopped_at = f"{died.decode()} {behind.hex()}"
        return False


class _Found(NamedTuple):
    """A letter and when its job died, as Redis has it."""

    raw: bytes
    died: bytes
    letter: bytes


class _Edit(NamedTuple):
    """What is changed about jobs before they are queued again."""

    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None
    task: Task[..., Any] | None

    @property
    def is_one(self) -> bool:
        return self.args is not None or self.kwargs is not None

    def place(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str] | None:
        """Return what a payload says of the place that these arguments ask for.

        None where the task is not known, or has no rule of its own.
        """
        rule = None if self.task is None else self.task.task_options.unique
        if self.task is None or rule is None:
            return None
        bound = self.task.signature.bound
        return noted(place_of(rule, self.task.name, lambda: bound(tuple(args), dict(kwargs))))


class DeadLetters:
    """The dead letters of one queue: jobs that ended for good without success.

    Letters are read in pages of bounded size, so any number of them is fine.

    Example:
        >>> page = await client.dead.list(LetterFilter(task="place_order"), limit=20)
        >>> letter = await client.dead.show(page.letters[0].job_id)
        >>> [error.error for error in letter.errors], letter.error
        (['the shop is closed', 'the shop is closed'], 'the shop is closed')
        >>> await client.dead.requeue(letter.job_id)
        >>> (await client.dead.requeue(LetterFilter(error="ConnectionError"))).count
        1312
    """

    def __init__(self, redis: Redis, codec: Codec, queue: str, *, lifetime_ms: int) -> None:
        self.queue = queue
        self._redis = redis
        self._codec = codec
        self._lifetime_ms = lifetime_ms

    def of(self, queue: str) -> DeadLetters:
        """Return the dead letters of another queue."""
        return DeadLetters(self._redis, self._codec, queue, lifetime_ms=self._lifetime_ms)

    async def count(self) -> int:
        """Return how many letters there are; those whose time is over leave the list."""
        return int(
            await load("dead_count").call(self._redis, keys=[keys.dead(self.queue)], args=[])
        )

    async def list(
        self,
        where: LetterFilter = ALL,
        *,
        limit: int = 100,
        after: str = "",
        most_looks: int | None = None,
    ) -> LetterPage:
        """Return the newest letters that fit, the newest first.

        Args:
            where: which letters are meant.
            limit: how many at most.
            after: the `after` of the page before.
            most_looks: how many calls to Redis at most, each of which looks at 1,000 letters at
                most; a page that is `cut` says where to go on. None: until the page is full.
        """
        letters: list[DeadLetter] = []
        if limit < 1:
            return LetterPage(letters, after)
        looks = _Looks(most_looks)
        most = FOUND if where.arguments else limit
        async with aclosing(self._look(where, after, most=most, looks=looks)) as look:
            async for found, place in look:
                letter = self._read(found)
                if where.fits(letter):
                    letters.append(letter)
                    if len(letters) == limit:
                        return LetterPage(letters, place)
        return LetterPage(letters, looks.stopped_at, cut=bool(looks.stopped_at))

    async def find(self, where: LetterFilter = ALL) -> AsyncGenerator[DeadLetter, None]:
        """Go through all letters that fit, the newest first, without those that come meanwhile."""
        async for found, _ in self._look(where):
            letter = self._read(found)
            if where.fits(letter):
                yield letter

    async def show(self, job_id: str) -> DeadLetter:
        """Return one letter with the errors of all attempts; raise `LetterNotFound`."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.get(keys.DEAD_LETTER.encode() + raw_id(job_id))
            pipe.lrange(cast(str, keys.DEAD_ERRORS.encode() + raw_id(job_id)), 0, -1)
            blob, errors = await pipe.execute()
        if blob is None:
            raise self._not_found(job_id)
        return msgspec.structs.replace(
            decode_letter(blob, raw_id(job_id), self.queue), errors=decode_errors(errors)
        )

    async def requeue(
        self,
        which: str | Iterable[str] | LetterFilter,
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        delay: float | timedelta | None = None,
        task: Task[..., Any] | None = None,
    ) -> Requeued:
        """Put dead jobs back into their queue, with all their tries, and their errors kept.

        Each job is queued in the step that removes its letter, so of two who requeue at once
        one does. A job's time to start (`expires`) does not hold any more. What cannot be read,
        because it is signed with keys that this client has not, is queued as it is.

        Args:
            which: a job's id, several, or a filter.
            args: positional arguments in place of those of the job.
            kwargs: the same by name, all of them.
            delay: seconds until the jobs may start.
            task: the task that they are, so that new arguments are checked; also the filter's.

        Raises:
            LetterNotFound: there is no letter of the one id that was given.
            LetterError: the letter of the one id that was given stays: a job of the id is in the
                queue, or another one that it may not stand beside; its payload is gone, or cannot
                be read and has new arguments; it is a step of a flow.
            ArgumentsError: new arguments do not fit the task.
            EncodeError: a new argument cannot travel.
        """
        if task is None and isinstance(which, LetterFilter) and isinstance(which.task, Task):
            task = which.task
        delay_s = seconds(delay) or 0
        if not math.isfinite(delay_s):
            raise ArgumentsError(f"delay must be a number of seconds, not {delay!r}")
        edit = _Edit(args, kwargs, task)
        if task is not None and args is not None and kwargs is not None:
            task.signature.check(task.name, tuple(args), dict(kwargs))
        said = Requeued()
        async for part in self._parts(which, said):
            await self._requeue(part, edit, delay_s, said)
        if isinstance(which, str) and said.error is not None:
            raise said.error
        if isinstance(which, str) and said.gone:
            raise self._not_found(which)
        return said

    async def purge(self, which: str | Iterable[str] | LetterFilter) -> int:
        """Remove letters for good; return how many were there.

        Args:
            which: a job's id, several, or a filter; ``LetterFilter()`` means all.
        """
        removed = 0
        async for part in self._parts(which, Requeued(), ids_alone=True):
            args = [value for found in part for value in (found.raw, found.died)]
            removed += await load("dead_purge").call(
                self._redis, keys=[keys.dead(self.queue)], args=args
            )
        return removed

    async def _parts(
        self,
        which: str | Iterable[str] | LetterFilter,
        said: Requeued,
        *,
        ids_alone: bool = False,
    ) -> AsyncGenerator[Sequence[_Found], None]:
        """Give the letters that are meant in parts that one call can carry."""
        if isinstance(which, LetterFilter):
            found = self._fitting(which, ids_alone=ids_alone)
        else:
            found = self._named([which] if isinstance(which, str) else which, said)
        part: list[_Found] = []
        size = 0
        async for one in found:
            part.append(one)
            size += len(one.letter)
            if len(part) >= CHANGED or size >= LOOK_BYTES:
                yield part
                part, size = [], 0
        if part:
            yield part

    async def _fitting(
        self, where: LetterFilter, *, ids_alone: bool
    ) -> AsyncGenerator[_Found, None]:
        ids_alone = ids_alone and where.says_nothing
        async for found, _ in self._look(where, ids_alone=ids_alone):
            if ids_alone or where.fits(self._read(found)):
                yield found

    async def _named(self, job_ids: Iterable[str], said: Requeued) -> AsyncGenerator[_Found, None]:
        raws = [raw_id(job_id) for job_id in job_ids]
        for start in range(0, len(raws), CHANGED):
            part = raws[start : start + CHANGED]
            async with self._redis.pipeline(transaction=True) as pipe:
                for raw in part:
                    pipe.zscore(keys.dead(self.queue), raw)
                    pipe.get(keys.DEAD_LETTER.encode() + raw)
                answers = iter(await pipe.execute())
            for raw, score, letter in zip(part, answers, answers, strict=False):
                if score is None or letter is None:
                    said.gone += 1
                else:
                    yield _Found(raw, repr(score).encode(), letter)

    async def _look(
        self,
        where: LetterFilter,
        after: str = "",
        *,
        ids_alone: bool = False,
        most: int = FOUND,
        looks: _Looks | None = None,
    ) -> AsyncGenerator[tuple[_Found, str], None]:
        """Give each letter that may fit, the newest first, and the place behind it."""
        newest: Any
        newest, behind = _place(after) if after else ("", b"")
        if not newest:
            until = where.until
            # A job that dies from here on is not looked at: it may have been requeued by us.
            now = await self._redis.time()
            newest = now[0] * 1000 + now[1] // 1000
            if until is not None and until.timestamp() * 1000 <= newest:
                newest = f"({until.timestamp() * 1000:.3f}"
        oldest = "-inf" if where.since is None else f"{where.since.timestamp() * 1000:.3f}"
        wants = "ids" if ids_alone else "letters"
        needles = where.needles()
        while newest != b"":
            if looks is not None and not looks.may_look(newest, behind):
                return
            newest, behind, _, answers = await load("dead_look").call(
                self._redis,
                keys=[keys.dead(self.queue)],
                args=[newest, oldest, behind, LOOK, LOOK_BYTES, min(most, FOUND), wants, *needles],
            )
            for raw, died, letter in answers:
                yield _Found(raw, died, letter), f"{died.decode()} {raw.hex()}"

    async def _requeue(
        self, part: Sequence[_Found], edit: _Edit, delay_s: float, said: Requeued
    ) -> None:
        now_ms = time.time_ns() // 1_000_000
        entries: list[Any] = []
        names: list[str] = []
        for found in part:
            letter = self._read(found)
            job_id = found.raw.decode(errors="surrogateescape")
            try:
                payload, place = self._payload(letter, job_id, edit, now_ms)
            except (LetterError, ArgumentsError, EncodeError) as exc:
                said.refuse(job_id, exc)
                continue
            names.append(job_id)
            record = encode_error(last_error(letter))
            entries += (found.raw, found.died, payload, record, *place)
        if not entries:
            return
        delay_ms = int(delay_s * 1000)
        queue = self.queue
        statuses = await load("requeue").call(
            self._redis,
            keys=[
                *(queue, keys.dead(queue), keys.held(queue)),
                *(keys.idle(queue), keys.wake(queue), keys.places(queue)),
            ],
            args=[now_ms + delay_ms if delay_ms else "", self._lifetime_ms + delay_ms, *entries],
        )
        for job_id, status in zip(names, statuses, strict=True):
            if status == 1:
                said.count += 1
            elif status == 0:
                said.gone += 1
            elif status == -1:
                said.refuse(job_id, _stays(job_id, "a job of this id is in the queue"))
            elif isinstance(status, list):
                other = status[0].decode(errors="backslashreplace")
                why = f"job {other!r} is there, and there is to be no second one beside it"
                said.refuse(job_id, _stays(job_id, why))
            else:
                said.refuse(job_id, _stays(job_id, f"Redis refused it: {status.decode()}"))

    def _payload(
        self, letter: DeadLetter, job_id: str, edit: _Edit, now_ms: int
    ) -> tuple[bytes, tuple[bytes, str]]:
        """Return the bytes with which a job is queued again, and digest and rule of its place."""
        if (node := keys.node_of(job_id)) is not None:
            raise _stays(
                job_id,
                f"it is a step of flow {node[0]!r}, which would hear nothing of it: run again what "
                f"failed of that by client.flow({node[0]!r}).retry()",
            )
        if not letter.payload:
            raise _stays(job_id, "its payload is gone; enqueue it anew")
        try:
            record = codecs.decode_job(self._codec, letter.payload, job_id=job_id)
        except DecodeError as exc:
            if edit.is_one:
                raise _stays(
                    job_id, f"its payload cannot be read, so its arguments stay as they are: {exc}"
                ) from exc
            return letter.payload, NOWHERE
        renewed = self._renewed(record, job_id, edit, now_ms)
        return codecs.encode_job(self._codec, renewed), read_noted(renewed.options.get(PLACE))

    def _renewed(self, record: JobRecord, job_id: str, edit: _Edit, now_ms: int) -> JobRecord:
        args = record.args if edit.args is None else tuple(edit.args)
        kwargs = record.kwargs if edit.kwargs is None else dict(edit.kwargs)
        if edit.is_one and edit.task is not None:
            if edit.task.name != record.task:
                raise ArgumentsError(
                    f"job {job_id!r} is one of {record.task!r}, not of {edit.task.name!r}: "
                    "name the task in the filter",
                )
            edit.task.signature.check(record.task, args, kwargs)
        options = {name: value for name, value in record.options.items() if name != "exp"}
        options[REQUEUED] = requeues(record.options) + 1
        if edit.is_one and options.pop(PLACE, None) is not None:
            place = edit.place(args, kwargs)  # other arguments have another one
            if place is not None:
                options[PLACE] = place
        if codecs.signs(self._codec):
            options["id"] = job_id
        return JobRecord(
            task=record.task,
            args=args,
            kwargs=kwargs,
            attempt=None,
            # A new life: its writes are new ones too.
            enqueued_ms=max(now_ms, record.enqueued_ms + 1),
            options=options,
        )

    def _read(self, found: _Found) -> DeadLetter:
        return decode_letter(found.letter, found.raw, self.queue)

    def _not_found(self, job_id: str) -> LetterNotFound:
        return LetterNotFound(
            f"queue {self.queue!r} has no dead letter of job {job_id!r}: it lives, was requeued "
            "or purged, or is older than letters are kept",
            job_id=job_id,
        )


def _stays(job_id: str, why: str) -> LetterError:
    return LetterError(f"job {job_id!r} was not requeued: {why}", job_id=job_id)


def _place(after: str) -> tuple[str, bytes]:
    """Read the place behind which a page begins."""
    died, _, raw = after.partition(" ")
    try:
        behind = b"" if math.isnan(float(died)) else bytes.fromhex(raw)
    except ValueError:
        behind = b""
    if not behind:
        raise ArgumentsError(f"after is {after!r}, and not the `after` of a page")
    return died, behind
