"""With what a dead job is queued again: its payload, with other arguments if wished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from runner import codec as codecs
from runner import keys
from runner.codec import JobRecord
from runner.errors import ArgumentsError, DecodeError, LetterError
from runner.letters.records import REQUEUED, requeues
from runner.unique import PLACE, noted, place_of, read_noted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runner.codec import Codec
    from runner.tasks import Task
    from runner.types import DeadLetter

NOWHERE = (b"", "")


class Edit(NamedTuple):
    """What is changed about jobs before they are queued again."""

    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None
    task: Task[..., Any] | None

    @property
    def is_one(self) -> bool:
        """Whether anything is."""
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


def stays(job_id: str, why: str) -> LetterError:
    """Return the error that says why a letter stays."""
    return LetterError(f"job {job_id!r} was not requeued: {why}", job_id=job_id)


def payload_again(
    codec: Codec, letter: DeadLetter, job_id: str, edit: Edit, now_ms: int
) -> tuple[bytes, tuple[bytes, str]]:
    """Return the bytes with which a job is queued again, and digest and rule of its place.

    Raises:
        LetterError: the letter has to stay.
        ArgumentsError: new arguments do not fit the task.
        EncodeError: a new argument cannot travel.
    """
    if (node := keys.node_of(job_id)) is not None:
        raise stays(
            job_id,
            f"it is a step of flow {node[0]!r}, which would hear nothing of it: run again what "
            f"failed of that by client.flow({node[0]!r}).retry()",
        )
    if not letter.payload:
        raise stays(job_id, "its payload is gone; enqueue it anew")
    try:
        record = codecs.decode_job(codec, letter.payload, job_id=job_id)
    except DecodeError as exc:
        if edit.is_one:
            raise stays(
                job_id, f"its payload cannot be read, so its arguments stay as they are: {exc}"
            ) from exc
        return letter.payload, NOWHERE
    renewed = _renewed(record, job_id, edit, now_ms)
    if codecs.signs(codec):
        renewed.options["id"] = job_id
    return codecs.encode_job(codec, renewed), read_noted(renewed.options.get(PLACE))


def _renewed(record: JobRecord, job_id: str, edit: Edit, now_ms: int) -> JobRecord:
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
    return JobRecord(
        task=record.task,
        args=args,
        kwargs=kwargs,
        attempt=None,
        # A new life: its writes are new ones too.
        enqueued_ms=max(now_ms, record.enqueued_ms + 1),
        options=options,
    )


__all__ = ["Edit", "payload_again", "stays"]
