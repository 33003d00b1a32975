"""Tell what became of committed units: results, dead letters, and how far the writer is."""

from __future__ import annotations

import collections
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from runner import codec as codecs
from runner import failures, keys
from runner.letters import encode_error, encode_letter, requeues
from runner.scripts import load
from runner.types import AttemptError, DeadLetter, Outcome, Retention
from runner.writer.corrections import corrections_of, read_record
from runner.writer.entries import encode_rejection
from runner.writer.status import exceeds
from runner.writer.tally import certain_tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from runner.codec import Codec
    from runner.errors import WriteRejected
    from runner.writer.corrections import Correction
    from runner.writer.entries import JobHeader, Unit

__all__ = ["Settler"]

logger = logging.getLogger("runner.writer")

SETTLED_AT_ONCE = 500
SETTLED_BYTES = 4_000_000

NAMED_AT_MOST = 500

_Entry = tuple[Any, ...]


class _News(NamedTuple):
    """What is announced: how far the answers go, and where there is more to read."""

    last: str
    look: str


@dataclass(slots=True)
class Settler:
    """Settles batches in the order of their commits.

    Attributes:
        redis: where results and markers are.
        codec: what results are written in.
        name: the leader's name, kept for whoever asks.
        answered: the last entry that was settled.
        retention: how long dead letters are kept, and how many, and whether there is a history
            to correct.
    """

    redis: Redis
    codec: Codec
    name: str
    answered: str
    retention: Retention = field(default_factory=Retention)

    async def settle(
        self,
        units: Sequence[Unit],
        refused: Mapping[str, WriteRejected],
        answers: Mapping[str, bytes] | None = None,
        *,
        batches: int = 1,
    ) -> None:
        """Settle units that are committed, or refused; safe to repeat.

        Units up to ``answered`` were counted before: they come again when Postgres went back.

        Args:
            units: in the order of the stream, without a gap after the last call's.
            refused: why units were refused, by entry.
            answers: what units that ask did, by entry, as far as they had to be run to know.
            batches: how many batches they were.
        """
        by_queue: dict[str, list[_Entry]] = collections.defaultdict(list)
        payloads = await self._payloads(units, refused)
        letters = self._letters(units, refused, payloads)
        corrections = {}
        if refused and self.retention.history_jobs:
            corrections = corrections_of(self.codec, units, refused, payloads)
        entry: _Entry | None
        for unit in units:
            if unit.asks is not None and unit.job is None:
                queue, entry = _answer_entry(unit, refused.get(unit.entry), answers or {})
            else:
                queue, entry = self._entry(unit, letters)
            if entry is not None:
                by_queue[queue].append(entry)
        fresh = units
        if not exceeds(units[0].entry, self.answered):
            fresh = [unit for unit in units if exceeds(unit.entry, self.answered)]
        counts = (*_counts(fresh, refused, batches), len(fresh), *_released(fresh))
        news = _News(fresh[-1].entry, _look(fresh, letters)) if fresh else _News("", "")
        await self._send(by_queue, news, counts, corrections)

    def _entry(
        self, unit: Unit, letters: Mapping[str, tuple[bytes, bytes]]
    ) -> tuple[str, _Entry | None]:
        job, letter = unit.job, letters.get(unit.entry)
        if job is None:
            if letter is None:
                return "", None
            return keys.DEFAULT_QUEUE, (unit.entry, "", "refused", 0, b"", letter[1], 0)
        if letter is None:
            return job.queue, (
                unit.entry,
                job.job_id,
                "ok",
                job.keep_ms,
                unit.result,
                b"1" if job.had_errors else b"",
                job.afterlife_ms,
            )
        if job.again_ms >= 0:
            return job.queue, _again_entry(unit.entry, job, letter[1])
        return job.queue, (
            unit.entry,
            job.job_id,
            "refused",
            job.keep_ms,
            *letter,
            job.afterlife_ms,
        )

    async def _send(
        self,
        by_queue: Mapping[str, list[_Entry]],
        news: _News,
        counts: tuple[int, ...],
        corrections: Mapping[str, Correction],
    ) -> None:
        channel = keys.commits_channel(keys.database_number(self.redis))
        calls = [(queue, part) for queue, some in by_queue.items() for part in _parts(some)]
        calls = calls or [(keys.DEFAULT_QUEUE, [])]
        for number, (queue, part) in enumerate(calls, start=1):
            is_last = number == len(calls)
            head = counts if is_last else (0,) * len(counts)
            corrected = [
                (place, *corrections[entry[0]])
                for place, entry in enumerate(part if corrections else (), start=1)
                if entry[0] in corrections
            ]
            statuses = await load("writer_settle").call(
                self.redis,
                keys=[
                    *(queue, keys.dead(queue), keys.counters(queue), keys.WRITER, keys.UNITS),
                    *(keys.idle(queue), keys.wake(queue), keys.held(queue)),
                    *(keys.finished(queue), keys.refused(queue)),
                ],
                args=[
                    *(channel, self.answered, *(news if is_last else ("", "")), self.name, *head),
                    *(self.retention.keep_ms, self.retention.most, self.retention.history_jobs),
                    len(corrected),
                    *(value for entry in part for value in entry),
                    *(value for correction in corrected for value in correction),
                ],
            )
            _log_problems(part, statuses[: len(part)])
            _log_uncorrected(queue, statuses[len(part) :])
        self.answered = news.last or self.answered

    async def _payloads(
        self, units: Sequence[Unit], refused: Mapping[str, WriteRejected]
    ) -> dict[str, bytes]:
        """Read the jobs whose units were refused; return them by entry."""
        return {
            unit.entry: await self.redis.get(keys.job(unit.job.job_id)) or b""
            for unit in (units if refused else ())
            if unit.job is not None and unit.entry in refused
        }

    def _letters(
        self,
        units: Sequence[Unit],
        refused: Mapping[str, WriteRejected],
        payloads: Mapping[str, bytes],
    ) -> dict[str, tuple[bytes, bytes]]:
        """Return the failed result and the dead letter of each refused unit, by entry."""
        letters: dict[str, tuple[bytes, bytes]] = {}
        for unit in units if refused else ():
            why = refused.get(unit.entry)
            if why is None or unit.commit is not None:
                continue
            if unit.job is None:
                letters[unit.entry] = (b"", encode_rejection(why))
                continue
            if unit.job.again_ms >= 0:
                letters[unit.entry] = (b"", _error(unit.job, why))
                continue
            letters[unit.entry] = self._letter(unit.job, payloads[unit.entry], why)
        return letters

    def _letter(self, job: JobHeader, payload: bytes, why: WriteRejected) -> tuple[bytes, bytes]:
        record = read_record(self.codec, payload)
        # Also when no result is kept: whoever waits now is told by it.
        result = codecs.encode_result(
            self.codec,
            codecs.ResultRecord(
                job_id=job.job_id,
                queue=job.queue,
                task=record.task,
                args=record.args,
                kwargs=record.kwargs,
                attempt=job.attempt,
                enqueued_ms=record.enqueued_ms,
                started_ms=job.started_ms,
                finished_ms=job.finished_ms,
                success=False,
                result=why,
            ),
        )
        error_type, error = failures.named(why)
        dead = DeadLetter(
            job_id=job.job_id,
            queue=job.queue,
            task=record.task,
            args=list(record.args),
            kwargs=record.kwargs,
            attempt=job.attempt,
            outcome=Outcome.FAILED.value,
            error_type=error_type,
            error=error,
            traceback="",
            enqueued_ms=record.enqueued_ms,
            died_ms=int(time.time() * 1000),
            payload=payload,
            started_ms=job.started_ms,
            worker=job.worker,
            requeued=requeues(record.options),
        )
        return result, encode_letter(dead)


def _again_entry(entry: str, job: JobHeader, error: bytes) -> _Entry:
    """Say that a job is to run again, because its unit was refused and it has tries left."""
    return (entry, job.job_id, "again", job.again_ms, b"", error, job.attempt)


def _error(job: JobHeader, why: WriteRejected) -> bytes:
    """Encode the refusal as the error of an attempt that is followed by another."""
    error_type, error = failures.named(why)
    return encode_error(
        AttemptError(
            attempt=job.attempt,
            outcome=Outcome.RETRIED.value,
            error_type=error_type,
            error=error,
            started_ms=job.started_ms,
            ended_ms=int(time.time() * 1000),
            worker=job.worker,
        )
    )


def _answer_entry(
    unit: Unit, why: WriteRejected | None, answers: Mapping[str, bytes]
) -> tuple[str, _Entry]:
    """Say what a unit did, or why not: to the job that runs, or to whoever submitted it."""
    answer = b"" if why else answers.get(unit.entry) or certain_tally(unit)
    facts = encode_rejection(why) if why else b""
    mode = "refused" if why else "told"
    if unit.commit is None:
        return keys.DEFAULT_QUEUE, (unit.entry, "", mode, 0, answer, facts, 0)
    place = (unit.commit.job_id, f"commit-{mode}", unit.commit.sequence)
    return unit.commit.queue, (unit.entry, *place, answer, facts, 0)


def _counts(
    units: Sequence[Unit], refused: Mapping[str, WriteRejected], batches: int
) -> tuple[int, int, int, int]:
    committed = [unit for unit in units if unit.key and unit.entry not in refused]
    operations = sum(unit.count for unit in committed)
    rejected = sum(unit.entry in refused for unit in units) if refused else 0
    return len(committed), operations, batches, rejected


def _released(units: Sequence[Unit]) -> tuple[int, int]:
    """Return what these units took of the room for what waits: entries, and bytes."""
    return sum(1 for unit in units if unit.key), sum(unit.size for unit in units)


def _look(units: Sequence[Unit], letters: Mapping[str, Any]) -> str:
    """Name the units of which there is more to say to those who wait for them by entry.

    A job that waits for its own commit reads the answer where it keeps its commits.
    """
    named = [
        unit.entry
        for unit in units
        if unit.job is None and unit.commit is None and (unit.asks or unit.entry in letters)
    ]
    return "*" if len(named) > NAMED_AT_MOST else " ".join(named)


def _parts(entries: list[_Entry]) -> Iterable[list[_Entry]]:
    """Cut entries so that no call of the script blocks Redis for long."""
    part: list[_Entry] = []
    size = 0
    for entry in entries:
        part.append(entry)
        size += len(entry[4]) + len(entry[5])
        if len(part) >= SETTLED_AT_ONCE or size >= SETTLED_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _log_problems(entries: Sequence[_Entry], statuses: Sequence[Any]) -> None:
    for entry, status in zip(entries, statuses, strict=True):
        if not isinstance(status, int):
            logger.error(
                "the unit %s is committed, but Redis could not keep the result of job %s: %s",
                *(entry[0], entry[1], status),
            )


def _log_uncorrected(queue: str, statuses: Sequence[Any]) -> None:
    problems = [status for status in statuses if not isinstance(status, int)]
    if problems:
        logger.warning(
            "the history of %r is not corrected, %d refused jobs stay successes there: %s",
            *(queue, len(problems), problems[0]),
        )
