"""What ``client.dead`` offers: list, show, requeue and purge the dead letters of a queue."""

from __future__ import annotations

import math
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from runner import keys, paging
from runner.errors import (
    ArgumentsError,
    EncodeError,
    LetterError,
    LetterNotFound,
    RunnerError,
)
from runner.letters.filters import LetterFilter
from runner.letters.records import decode_errors, decode_letter, encode_error, last_error
from runner.letters.requeue import Edit, payload_again, stays
from runner.scripts import load
from runner.tasks import Task, seconds

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


class _Found(NamedTuple):
    """A letter and when its job died, as Redis has it."""

    raw: bytes
    died: bytes
    letter: bytes


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
        looks = paging.Looks(most_looks)
        most = FOUND if where.arguments else limit
        async with aclosing(self._look(where, after, most=most, looks=looks)) as look:
            async for found, behind in look:
                letter = self._read(found)
                if where.fits(letter):
                    letters.append(letter)
                    if len(letters) == limit:
                        return LetterPage(letters, behind)
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
            pipe.get(keys.DEAD_LETTER.encode() + keys.raw_id(job_id))
            pipe.lrange(cast(str, keys.DEAD_ERRORS.encode() + keys.raw_id(job_id)), 0, -1)
            blob, errors = await pipe.execute()
        if blob is None:
            raise self._not_found(job_id)
        return msgspec.structs.replace(
            decode_letter(blob, keys.raw_id(job_id), self.queue), errors=decode_errors(errors)
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
        edit = Edit(args, kwargs, task)
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
        raws = [keys.raw_id(job_id) for job_id in job_ids]
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
        looks: paging.Looks | None = None,
    ) -> AsyncGenerator[tuple[_Found, str], None]:
        """Give each letter that may fit, the newest first, and the place behind it."""
        newest: Any
        newest, behind = paging.read_place(after) if after else ("", b"")
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
            newest, behind, answers = await load("dead_look").call(
                self._redis,
                keys=[keys.dead(self.queue)],
                args=[newest, oldest, behind, LOOK, LOOK_BYTES, min(most, FOUND), wants, *needles],
            )
            for raw, died, letter in answers:
                yield _Found(raw, died, letter), paging.place(died, raw)

    async def _requeue(
        self, part: Sequence[_Found], edit: Edit, delay_s: float, said: Requeued
    ) -> None:
        now_ms = time.time_ns() // 1_000_000
        entries: list[Any] = []
        names: list[str] = []
        for found in part:
            letter = self._read(found)
            job_id = found.raw.decode(errors="surrogateescape")
            try:
                payload, place = payload_again(self._codec, letter, job_id, edit, now_ms)
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
                said.refuse(job_id, stays(job_id, "a job of this id is in the queue"))
            elif isinstance(status, list):
                other = status[0].decode(errors="backslashreplace")
                why = f"job {other!r} is there, and there is to be no second one beside it"
                said.refuse(job_id, stays(job_id, why))
            else:
                said.refuse(job_id, stays(job_id, f"Redis refused it: {status.decode()}"))

    def _read(self, found: _Found) -> DeadLetter:
        return decode_letter(found.letter, found.raw, self.queue)

    def _not_found(self, job_id: str) -> LetterNotFound:
        return LetterNotFound(
            f"queue {self.queue!r} has no dead letter of job {job_id!r}: it lives, was requeued "
            "or purged, or is older than letters are kept",
            job_id=job_id,
        )
