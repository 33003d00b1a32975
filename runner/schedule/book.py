"""The book of one queue's schedules in Redis: the one door to it.

A schedule is stored as the call that it makes, in the codec of the fleet, with its rules beside
it: where payloads are signed, schedules are, and a worker makes no job of one that was altered.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from runner import codec as codecs
from runner import keys
from runner.codec import Codec, JobRecord
from runner.errors import ArgumentsError, CodecError, ScheduleError
from runner.schedule.records import DueSchedule, Fleet, Look, Offer, ScheduleInfo
from runner.schedule.run import call_id
from runner.schedule.schedule import Schedule
from runner.schedule.triggers import Perpetual
from runner.scripts import load
from runner.tasks import Task
from runner.unique import NO_PLACE, PLACE, Place, noted, place_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio import Redis

logger = logging.getLogger("runner.schedule")

Mode: TypeAlias = Literal["add", "change", "settings"]

TURN_MS = 500
"""For how long one worker sees to what is due; as late are runs when it is killed then."""

UNREADABLE_MS = 60_000
"""When a schedule that cannot be run is looked at again."""

LOOK_LIMIT = 100
PAGE = 500
READ_LIMIT = 20_000
FLEET_MS = 120_000
CRON_OPTION = "cron"
"""The option of a job that names its book, schedule and due time."""


class Book:
    """The schedules of one queue.

    Args:
        redis: the connection pool.
        codec: the codec of the fleet's jobs.
        queue: the queue in whose book they are; their jobs go there unless they say otherwise.
        lifetime_ms: how long the payload of a run is kept if nobody runs it.
        functions: arq's functions by name: what is unique among them is so in runs, too.
    """

    def __init__(
        self,
        redis: Redis,
        codec: Codec,
        queue: str,
        *,
        lifetime_ms: int,
        functions: Mapping[str, Any] | None = None,
    ) -> None:
        self.redis = redis
        self.queue = queue
        self._codec = codec
        self._lifetime_ms = lifetime_ms
        self._functions = functions or {}
        self._schedules = keys.schedules(queue)
        self._prefix = keys.schedule_book(queue)
        self._turn = keys.schedule_turn(queue)
        self._read: dict[str, tuple[bytes, Schedule]] = {}

    def of(self, queue: str) -> Book:
        """Return the book of another queue."""
        return Book(
            self.redis,
            self._codec,
            queue,
            lifetime_ms=self._lifetime_ms,
            functions=self._functions,
        )

    async def now_ms(self) -> int:
        """Return Redis's time."""
        second, micros = await self.redis.time()
        return int(second * 1000 + micros // 1000)

    async def look(self, worker: str) -> Look:
        """Look what is due, and take the turn to see to it if it is free."""
        now_ms, again, found = await load("schedule_look").call(
            self.redis,
            keys=[self._schedules, self._turn],
            args=[self._prefix, worker, LOOK_LIMIT, TURN_MS],
        )
        due = [
            self._due(_text(name), definition, call, int(due), _text(job))
            for name, definition, due, job, call in found
        ]
        return Look(now_ms, int(float(again)) if again else None, due)

    async def offer(self, worker: str, offers: Sequence[Offer]) -> list[int | str]:
        """Offer runs, and give the turn back.

        Returns:
            For each the jobs it made, -1 when others were first, -2 when Redis's clock says
            that it is not due, or the text of an error.
        """
        by_queue: dict[str, list[int]] = {}
        for index, offer in enumerate(offers):
            queue = (offer.schedule.queue if offer.schedule else None) or self.queue
            by_queue.setdefault(queue, []).append(index)
        statuses: dict[int, int | str] = {}
        for queue, indexes in by_queue.items():
            args: list[Any] = [self._prefix, worker]
            for index in indexes:
                args += self._fields_to_send(offers[index])
            answers = await load("schedule_offer").call(
                self.redis,
                keys=[
                    self._schedules,
                    self._turn,
                    queue,
                    keys.idle(queue),
                    keys.wake(queue),
                    keys.held(queue),
                    keys.places(queue),
                ],
                args=args,
            )
            for index, answer in zip(indexes, answers, strict=True):
                statuses[index] = answer if isinstance(answer, int) else answer.decode()
        return [statuses[index] for index in range(len(offers))]

    async def put(self, mode: Mode, schedules: Sequence[Schedule]) -> list[int | str]:
        """Write schedules down.

        Returns:
            For each 1 (written), 0 (it was so already), -1 (absent), or whose it is.

        Raises:
            EncodeError: an argument cannot travel.
            ScheduleError: a schedule will never be due.
        """
        now_ms = await self.now_ms()
        statuses: list[int | str] = []
        for start in range(0, len(schedules), PAGE):
            args: list[Any] = [self._prefix, mode]
            for schedule in schedules[start : start + PAGE]:
                trigger = schedule.trigger
                args += (
                    schedule.name,
                    self._encode(schedule),
                    msgspec.json.encode(trigger.fields()),
                    first_due(schedule, now_ms),
                )
            answers = await load("schedule_put").call(self.redis, keys=[self._schedules], args=args)
            statuses += [a if isinstance(a, int) else a.decode() for a in answers]
        return statuses

    async def pause(self, name: str, *, paused: bool, due_ms: int = 0) -> bool:
        """Pause or resume; return False when there is no such schedule."""
        status: int = await load("schedule_pause").call(
            self.redis,
            keys=[self._schedules],
            args=[self._prefix, keys.raw_id(name), "1" if paused else "0", due_ms],
        )
        return status == 1

    async def remove(self, source: str, names: Sequence[str]) -> list[int | str]:
        """Forget schedules of one source; return 1, -1 (absent) or whose it is for each."""
        args = [self._prefix, source, *map(keys.raw_id, names)]
        answers = await load("schedule_remove").call(self.redis, keys=[self._schedules], args=args)
        return [a if isinstance(a, int) else a.decode() for a in answers]

    async def names(self, first: int = 0, last: int = -1) -> list[str]:
        """Return the names of all schedules, or of some, those that are due next first."""
        return [_text(raw) for raw in await self.redis.zrange(self._schedules, first, last)]

    async def count(self) -> int:
        """Return how many schedules there are."""
        return int(await self.redis.zcard(self._schedules))

    async def infos(self, names: Sequence[str]) -> list[ScheduleInfo]:
        """Return the schedules of these names that exist, in their order."""
        found = []
        for start in range(0, len(names), PAGE):
            part = names[start : start + PAGE]
            async with self.redis.pipeline(transaction=False) as pipe:
                for name in part:
                    pipe.hgetall(self._key(name))
                states = await pipe.execute(raise_on_error=False)
            found += [self._info(n, state) for n, state in zip(part, states, strict=True) if state]
        return found

    async def of_settings(self) -> list[str]:
        """Return the names of the schedules that come from settings."""
        names = await self.names()
        sources: list[bytes | None] = []
        for start in range(0, len(names), PAGE):
            async with self.redis.pipeline(transaction=False) as pipe:
                for name in names[start : start + PAGE]:
                    pipe.hget(self._key(name), "source")
                sources += await pipe.execute(raise_on_error=False)
        return [name for name, source in zip(names, sources, strict=True) if source == b"settings"]

    async def enlist(
        self, worker: str, digest: str, tasks: Sequence[str], schedules: Sequence[str]
    ) -> bool:
        """Say what a live worker knows; it counts for two minutes, or until it leaves.

        Returns:
            Whether it counted before.
        """
        fleet = keys.fleet(self.queue)
        now_ms = await self.now_ms()
        known = msgspec.msgpack.encode((tasks, schedules))
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.zadd(fleet, {f"{digest}:{worker}": now_ms + FLEET_MS})
            pipe.zremrangebyscore(fleet, "-inf", now_ms)
            pipe.pexpire(fleet, FLEET_MS)
            pipe.set(keys.fleet_member(self.queue, digest), known, px=FLEET_MS)
            added, *_ = await pipe.execute()
        return not added

    async def leave(self, worker: str, digest: str) -> None:
        """Say that a worker has ended."""
        await self.redis.zrem(keys.fleet(self.queue), f"{digest}:{worker}")
        if digest not in await self._digests():
            await self.redis.delete(keys.fleet_member(self.queue, digest))

    async def fleet(self) -> Fleet:
        """Return what the live workers know."""
        digests = sorted(await self._digests())
        blobs = []
        if digests:
            blobs = await self.redis.mget([keys.fleet_member(self.queue, d) for d in digests])
        known = [msgspec.msgpack.decode(blob, type=_KNOWN) for blob in blobs if blob]
        return Fleet(
            frozenset(digests),
            frozenset(task for tasks, _ in known for task in tasks),
            frozenset(name for _, names in known for name in names),
            complete=len(known) == len(digests),
        )

    async def _digests(self) -> set[str]:
        now_ms = await self.now_ms()
        raws = await self.redis.zrangebyscore(keys.fleet(self.queue), f"({now_ms}", "+inf")
        return {raw.decode().partition(":")[0] for raw in raws}

    def _encode(self, schedule: Schedule) -> bytes:
        record = JobRecord(
            task=schedule.task,
            args=schedule.args,
            kwargs=dict(schedule.kwargs),
            attempt=None,
            enqueued_ms=0,
            options={"id": self._bound_id(schedule.name), "schedule": schedule.fields()},
        )
        return codecs.encode_job(self._codec, record)

    def _decode(self, name: str, definition: bytes) -> Schedule:
        known = self._read.get(name)
        if known is not None and known[0] == definition:
            return known[1]
        record = codecs.decode_job(self._codec, definition, job_id=self._bound_id(name))
        fields = record.options.get("schedule")
        if not isinstance(fields, dict):
            raise ScheduleError(f"schedule {name!r} cannot be read: its rules are missing")
        schedule = Schedule.of(name, record.task, record.args, record.kwargs, fields)
        if len(self._read) >= READ_LIMIT:
            self._read.clear()
        self._read[name] = (definition, schedule)
        return schedule

    def _key(self, name: str) -> Any:
        return self._prefix.encode() + keys.raw_id(name)

    def _bound_id(self, name: str) -> str:
        return f"schedule:{self.queue}:{name}"

    def _with_call(self, name: str, schedule: Schedule, call: bytes) -> Schedule:
        """Return a schedule with the arguments that its last run decided on, if it did."""
        if not call:
            return schedule
        record = codecs.decode_job(self._codec, call, job_id=call_id(self.queue, name))
        return replace(schedule, args=record.args, kwargs=record.kwargs)

    def _due(self, name: str, definition: bytes, call: bytes, due_ms: int, job: str) -> DueSchedule:
        try:
            schedule = self._with_call(name, self._decode(name, definition), call)
            return DueSchedule(name, schedule, due_ms, job)
        except Exception as exc:  # noqa: BLE001  whatever is written there, the others are run
            return DueSchedule(name, None, due_ms, job, _why(exc))

    def _info(self, name: str, state: dict[bytes, bytes] | Exception) -> ScheduleInfo:
        schedule, error = None, ""
        if isinstance(state, Exception):
            state, error = {}, str(state)
        else:
            try:
                declared = self._decode(name, state.get(b"definition", b""))
                schedule = self._with_call(name, declared, state.get(b"call", b""))
            except Exception as exc:  # noqa: BLE001  one that cannot be read hides no other
                error = _why(exc)
        paused = state.get(b"paused") == b"1"
        return ScheduleInfo(
            name=name,
            source=_text(state.get(b"source", b"")),
            schedule=schedule,
            paused=paused,
            next_due=None if paused else _moment(state.get(b"due")),
            last_due=_moment(state.get(b"last")),
            last_job_id=_text(state.get(b"job", b"")),
            runs=_number(state.get(b"runs")) or 0,
            skipped=_number(state.get(b"skipped")) or 0,
            error=error,
        )

    def _fields_to_send(self, offer: Offer) -> list[Any]:
        try:
            return self._offer_fields(offer)
        except Exception:
            if offer.kind != "due":
                raise
            # Others are due as well: this one is looked at again later.
            logger.exception("schedule %r is not run: its job cannot be written down", offer.name)
            again_ms = offer.now_ms + UNREADABLE_MS
            return self._offer_fields(
                replace(offer, kind="postpone", schedule=None, due_ms=(), next_ms=again_ms)
            )

    def _offer_fields(self, offer: Offer) -> list[Any]:
        schedule = offer.schedule
        look_at = keys.FAR_OFF_MS if offer.next_ms is None else offer.next_ms
        fields: list[Any] = [
            keys.raw_id(offer.name),
            offer.kind,
            offer.expected_ms,
            "" if offer.next_ms is None else offer.next_ms,
            look_at,
            "" if schedule is None else _overlap(schedule),
            len(offer.due_ms),
        ]
        if schedule is not None:
            for due_ms in offer.due_ms:
                fields += self._run_fields(offer, schedule, due_ms)
        return fields

    def _run_fields(self, offer: Offer, schedule: Schedule, due_ms: int) -> list[Any]:
        job_id = schedule.job_id_at(due_ms) if offer.kind == "due" else run_id(offer, due_ms)
        start_ms = schedule.start_ms(due_ms) if offer.kind == "due" else due_ms
        options: dict[str, Any] = {CRON_OPTION: [self.queue, offer.name, due_ms]}
        if schedule.expires:
            options["exp"] = int(max(start_ms, offer.now_ms) + schedule.expires * 1000)
        place = self._place(schedule)
        if (said := noted(place)) is not None:
            options[PLACE] = said
        if codecs.signs(self._codec):
            options["id"] = job_id
        record = JobRecord(
            task=schedule.task,
            args=schedule.args,
            kwargs=dict(schedule.kwargs),
            attempt=None,
            enqueued_ms=offer.now_ms,
            options=options,
        )
        lies_ahead = start_ms > offer.now_ms
        return [
            due_ms,
            job_id,
            codecs.encode_job(self._codec, record),
            start_ms if lies_ahead else "",
            max(start_ms - offer.now_ms, 0) + self._lifetime_ms,
            *(NO_PLACE if place is None else place.fields()),
        ]

    def _place(self, schedule: Schedule) -> Place | None:
        task = getattr(self._functions.get(schedule.task), "coroutine", None)
        rule = task.task_options.unique if isinstance(task, Task) else None
        # What is debounced for its callers is due when the schedule says so.
        if not isinstance(task, Task) or rule is None or rule.until == "debounce":
            return None
        bound = task.signature.bound
        try:
            return place_of(rule, task.name, lambda: bound(schedule.args, dict(schedule.kwargs)))
        except (ArgumentsError, TypeError) as exc:
            # The others are to run all the same; what does not fit fails in its own job.
            logger.error("schedule %r runs as if it were not unique: %s", schedule.name, exc)  # noqa: TRY400  the message says it
            return None


_KNOWN = tuple[list[str], list[str]]


def first_due(schedule: Schedule, now_ms: int) -> int:
    """Return when a new schedule is due first; raise `ScheduleError` when it never is."""
    if isinstance(schedule.trigger, Perpetual):
        return now_ms
    due_ms = schedule.trigger.after(now_ms)
    if due_ms is None:
        raise ScheduleError(f"schedule {schedule.name!r} will never be due: {schedule.trigger}")
    return due_ms


def run_id(offer: Offer, due_ms: int) -> str:
    """Return the id of a job that is not for a due time."""
    assert offer.schedule is not None  # who asks for a run has read it
    if offer.schedule.job_id is not None:
        return offer.schedule.job_id
    return f"{offer.schedule.job_id_at(due_ms)}:{offer.kind}"


def _overlap(schedule: Schedule) -> str:
    """Return what the script does about the run before."""
    if isinstance(schedule.trigger, Perpetual) and schedule.overlap == "skip":
        return "wait"
    return schedule.overlap


def _moment(text: bytes | None) -> datetime | None:
    unix_ms = _number(text)
    if unix_ms is None:
        return None
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC)
    except (ValueError, OverflowError):
        return None


def _number(text: bytes | None) -> int | None:
    """Return a number that stands in Redis, None where none does."""
    try:
        return int(text or b"")
    except ValueError:
        return None


def _text(raw: bytes) -> str:
    """Return a name or id, where anybody may have put bytes that are no text."""
    return raw.decode(errors="surrogateescape")


def _why(exc: Exception) -> str:
    return str(exc) if isinstance(exc, CodecError | ScheduleError) else repr(exc)
