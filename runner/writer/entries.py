"""Read the entries of the stream: units, and the jobs that they complete."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from runner.errors import DecodeError, WriteRejected
from runner.writer.units import Operation, decode_operations

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = ["Asks", "CommitHeader", "JobHeader", "Unit", "ledger_key", "read_entry"]

ROWS_AT_MOST, ROWS_BYTES = 100_000, 16_000_000
"""What a unit may bring back at most, whatever it asks for."""


class JobHeader(msgspec.Struct, frozen=True, array_like=True):
    """What is needed to settle the job that a unit completes.

    Attributes:
        job_id: the job's id.
        queue: its queue.
        attempt: the number of the attempt, counted from 1.
        started_ms: when the attempt began, Unix time in milliseconds.
        finished_ms: when it ended.
        keep_ms: how long the result is kept: 0 not at all, -1 for ever.
        afterlife_ms: how long the in-progress key stays, so that a cron job is not made again.
        again_ms: should the unit be refused, the delay until the job runs again; -1: it fails.
        worker: the name of the worker that ran the attempt.
        had_errors: attempts before it may have left records of their errors.
        trace: the span of the attempt, as W3C writes it; "" where nothing traces.
    """

    job_id: str
    queue: str
    attempt: int
    started_ms: int
    finished_ms: int
    keep_ms: int
    afterlife_ms: int = 0
    again_ms: int = -1
    worker: str = ""
    had_errors: bool = False
    trace: str = ""


class CommitHeader(msgspec.Struct, frozen=True, array_like=True):
    """Which commit of which running job a unit is.

    Attributes:
        job_id: the job's id.
        queue: its queue.
        sequence: the number of the commit within the job, counted from 1.
        trace: the span of the attempt, as W3C writes it; "" where nothing traces.
    """

    job_id: str
    queue: str
    sequence: int
    trace: str = ""


class Asks(NamedTuple):
    """What may come back to whoever wants to know what a unit did: rows, and their bytes."""

    rows: int
    size: int


class Unit(msgspec.Struct, frozen=True):
    """One entry of the stream.

    Attributes:
        entry: the entry's id.
        key: what stands for the unit's id in the ledger; b"" for an entry without a unit.
        operations: its operations, in order.
        count: how many rows they have.
        size: bytes of the entry.
        job: the job that it completes, or None.
        result: the encoded result of that job.
        problem: why the entry cannot be read; then it is refused.
        asks: set when somebody wants to know what the operations did.
        commit: set when a job submitted it before its end.
        trace: the span of the service that submitted it, as W3C writes it; "" where nothing traces.
    """

    entry: str
    key: bytes
    operations: list[Operation]
    count: int
    size: int
    job: JobHeader | None = None
    result: bytes = b""
    problem: str = ""
    asks: Asks | None = None
    commit: CommitHeader | None = None
    trace: str = ""


_HEADER = msgspec.msgpack.Decoder(JobHeader)
_COMMIT = msgspec.msgpack.Decoder(CommitHeader)


def read_entry(entry: str, fields: Mapping[bytes, bytes]) -> Unit:
    """Read one entry; what is wrong with it becomes its problem, and nothing is raised."""
    if b"m" in fields:  # a marker of the writer's own, which only moves the stream's ids on
        return Unit(entry, b"", [], 0, 0)
    unit_id = fields.get(b"u", b"")
    result = fields.get(b"r", b"")
    data = fields.get(b"o", b"")
    job: JobHeader | None = None
    commit: CommitHeader | None = None
    asks: Asks | None = None
    operations: list[Operation] = []
    problem = "" if unit_id else "the entry has no unit id"
    try:
        if b"j" in fields:
            job = _HEADER.decode(fields[b"j"])
        if b"c" in fields:
            commit = _COMMIT.decode(fields[b"c"])
        if b"a" in fields:
            asks = _read_asks(fields[b"a"])
        operations = decode_operations(data)
    except (DecodeError, msgspec.DecodeError, ValueError) as exc:
        problem = problem or f"the entry cannot be read: {exc}"
    return Unit(
        entry=entry,
        key=ledger_key(unit_id) if unit_id else b"",
        operations=operations if not problem else [],
        count=len(operations),
        size=len(data) + len(result),
        job=job,
        result=result,
        problem=problem,
        asks=asks,
        commit=commit,
        trace=fields.get(b"t", b"").decode("ascii", "replace"),
    )


def _read_asks(data: bytes) -> Asks:
    rows, size = data.split()
    return Asks(min(int(rows), ROWS_AT_MOST), min(int(size), ROWS_BYTES))


def ledger_key(unit_id: bytes) -> bytes:
    """Return 16 bytes that stand for a unit's id.

    The time in the id goes first, so that the ledger's index grows at its end and old pages
    stay untouched; without a time it is all digest.
    """
    parts = unit_id.rsplit(b":", 2)
    if len(parts) == 3 and parts[1].isdigit() and len(parts[1]) < 15:  # noqa: PLR2004  id:ms:sequence
        digest = hashlib.blake2b(unit_id, digest_size=10).digest()
        return int(parts[1]).to_bytes(6, "big") + digest
    return hashlib.blake2b(unit_id, digest_size=16).digest()


class _Facts(msgspec.Struct, frozen=True):
    message: str
    sqlstate: str = ""
    table: str = ""
    constraint: str = ""
    detail: str = ""
    statement: str = ""
    parameters: tuple[str, ...] = ()


def encode_rejection(refused: WriteRejected) -> bytes:
    """Write down why a unit was refused."""
    facts = _Facts(
        message=refused.message,
        sqlstate=refused.sqlstate,
        table=refused.table,
        constraint=refused.constraint,
        detail=refused.detail,
        statement=refused.statement,
        parameters=refused.parameters,
    )
    return msgspec.msgpack.encode(msgspec.to_builtins(facts))


def decode_rejection(data: bytes) -> WriteRejected:
    """Read why a unit was refused."""
    facts: dict[str, Any] = msgspec.structs.asdict(msgspec.msgpack.decode(data, type=_Facts))
    return WriteRejected(facts.pop("message"), **facts)
