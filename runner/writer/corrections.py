"""Correct the history of a queue: jobs that ended well there, until the writer refused their units.

Workers count an end when the function has ended. What Postgres refuses afterwards is counted
otherwise, and listed as what it became, by the very script that settles it: once, whoever leads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from runner import codec as codecs
from runner.errors import DecodeError
from runner.inspect.finished import end_of, error_of, packed
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runner.codec import Codec, JobRecord
    from runner.errors import WriteRejected
    from runner.writer.entries import JobHeader, Unit

__all__ = ["Correction", "corrections_of", "read_record"]


class Correction(NamedTuple):
    """What history is told of one job.

    Attributes:
        outcome: the value of the `Outcome` that its attempt had.
        task: its task's name.
        end: which end of which job it was.
        piece: the job for the list of those that ended, in front of the success; also of one that
            runs again, so that readers leave that out.
    """

    outcome: str
    task: bytes
    end: bytes
    piece: bytes


def corrections_of(
    codec: Codec,
    units: Sequence[Unit],
    refused: Mapping[str, WriteRejected],
    payloads: Mapping[str, bytes],
) -> dict[str, Correction]:
    """Return what to correct, by entry: of jobs alone, as nobody counts a service's units.

    Args:
        codec: what payloads are written in.
        units: a batch.
        refused: why some of them were refused, by entry.
        payloads: the jobs of those, by entry.
    """
    return {
        unit.entry: _correction(
            unit.job, read_record(codec, payloads[unit.entry]), refused[unit.entry]
        )
        for unit in units
        if unit.job is not None and unit.entry in refused
    }


def _correction(job: JobHeader, record: JobRecord, why: WriteRejected) -> Correction:
    outcome = Outcome.FAILED if job.again_ms < 0 else Outcome.RETRIED
    times = (record.enqueued_ms, 0, job.started_ms, job.finished_ms)
    row = (record.task, outcome.value, job.job_id, job.attempt, *times, error_of(why))
    return Correction(
        outcome=outcome.value,
        task=record.task.encode(errors="backslashreplace"),
        end=end_of(job.job_id, job.finished_ms),
        piece=packed(job.worker, [row]),
    )


def read_record(codec: Codec, payload: bytes) -> JobRecord:
    """Read a payload; of one that cannot be read, nothing is known."""
    try:
        return codecs.decode_job(codec, payload)
    except DecodeError:
        return codecs.JobRecord(
            task="<unknown>", args=(), kwargs={}, attempt=None, enqueued_ms=0, options={}
        )
