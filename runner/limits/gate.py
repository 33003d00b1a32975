"""A worker's part in limits: it asks for all attempts of one tick together."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
from redis.exceptions import RedisError

from runner import keys
from runner.batch import Gathered
from runner.broker import MAX_ENTRIES
from runner.errors import LimitUnavailable
from runner.limits.options import check_alike
from runner.scripts import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis.asyncio import Redis

    from runner.broker import Claimed
    from runner.limits.options import Limit
    from runner.scripts import Executes

logger = logging.getLogger("runner.limits")

ADMIT = load("admit")
SWEEP_S = 15.0
"""How often one worker of the fleet looks for slots whose jobs are gone."""

SWEEPS = 20
"""How often it looks again at once, where there is more to release."""

MORE = 2

RETRY_DELAYS_S = (0.05, 0.1, 0.2, 0.5, 1.0)
MOST_VALUE = 100
_TROUBLE = (RedisError, OSError, TimeoutError)

Answer: TypeAlias = Literal["admitted", "delayed", "parked", "lost"]
_ANSWERS: tuple[Answer, ...] = ("lost", "admitted", "delayed", "parked")
_Asked: TypeAlias = "tuple[Claimed, str, bytes, asyncio.Future[Verdict]]"


class Limited(msgspec.Struct, frozen=True):
    """The limits of one attempt, packed for the scripts.

    Attributes:
        packed: for ``admit.lua``.
        slots: what its settlement gives up, b"" when it can hold no slot.
        names: of each limit its name.
    """

    packed: bytes
    slots: bytes
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided on one attempt.

    Attributes:
        answer: "lost" when somebody else has the job by now.
        delay_s: until it may start when it is admitted, or comes back when it is delayed.
        limit: the limit that refused it; "" is a pause.
    """

    answer: Answer
    delay_s: float = 0.0
    limit: str = ""


@dataclass(frozen=True, slots=True)
class _Spec:
    """One limit as it is written for the script, but for the value of its key."""

    kind: str
    name: str
    key: str | None
    count: int
    rest: tuple[int, ...]

    def packed_for(self, value: str | None) -> tuple[Any, ...]:
        place = self.name if value is None else f"{self.name}[{value}]"
        return (self.kind, self.name, place, self.count, *self.rest)


class _SetLimit(msgspec.Struct, frozen=True):
    """A limit that was set on a task at run time, as far as a worker has to know it."""

    name: str
    task: str
    kind: str
    key: str | None = None


class _Told(msgspec.Struct, frozen=True):
    """What a claim says of pauses, and of limits set at run time."""

    paused: tuple[str, ...] = ()
    limits: tuple[_SetLimit, ...] = ()


_GATES = msgspec.json.Decoder(_Told)


class Gate:
    """Asks Redis whether claimed jobs of limited tasks may run.

    Args:
        redis: returns what runs the calls; the engine's own connection, so that a settlement
            comes behind the question of its attempt.
        limits: what the worker's tasks declare, as (task, limit).

    Attributes:
        decisions: how often each limit has admitted, delayed or parked an attempt.

    Raises:
        LimitError: two tasks declare limits of one name that differ.
    """

    def __init__(
        self, redis: Callable[[], Executes], limits: Iterable[tuple[str, Limit]] = ()
    ) -> None:
        self._redis = redis
        self._declared = check_alike(limits)
        self._by_queue: dict[str, Gathered[_Asked]] = {}
        self._plans: dict[tuple[str, bytes], tuple[list[_Spec], Limited | None]] = {}
        self._is_used = bool(self._declared)
        self._sweep_at = 0.0
        self.decisions: Counter[tuple[str, Answer]] = Counter()

    async def declare(self, redis: Redis) -> None:
        """Let the fleet know the limits of this worker's code."""
        if not self._declared:
            return
        seen_ms = str(time.time_ns() // 1_000_000)
        fields: dict[Any, Any] = {
            name: stored(limit, seen_ms=seen_ms) for name, limit in self._declared.items()
        }
        async with redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.LIMITS_DECLARED, mapping=fields)
            pipe.pexpire(keys.LIMITS_DECLARED, keys.KEEP_MS)
            await pipe.execute()

    def limited(
        self,
        task: str,
        gates: bytes,
        limits: Sequence[Limit],
        weight: int,
        value_of: Callable[[str], Any],
    ) -> Limited | None:
        """Return the limits of an attempt, None when it has none.

        Args:
            task: the task's name.
            gates: what the claim said of pauses, and of limits set at run time.
            limits: those that the task declares.
            weight: what one of its jobs counts for its rates.
            value_of: returns an argument by the name of its parameter.
        """
        plan = self._plans.get((task, gates))
        if plan is None:
            plan = self._plan(task, gates, limits, weight)
        specs, fixed = plan
        if fixed is not None or not specs:
            return fixed
        self._is_used = True
        return _packed(
            spec.packed_for(None if spec.key is None else shown(value_of(spec.key)))
            for spec in specs
        )

    def _plan(
        self, task: str, gates: bytes, limits: Sequence[Limit], weight: int
    ) -> tuple[list[_Spec], Limited | None]:
        if len(self._plans) > MAX_ENTRIES:
            self._plans.clear()
        specs = [_declared_spec(limit, weight) for limit in limits]
        known = {limit.name for limit in limits}
        told = _told(gates)
        specs += [
            _set_spec(limit, weight)
            for limit in told.limits
            if limit.task == task and limit.name not in known
        ]
        fixed = None
        if specs or task in told.paused:
            self._is_used = True
            if all(spec.key is None for spec in specs):
                fixed = _packed(spec.packed_for(None) for spec in specs)
        self._plans[task, gates] = specs, fixed
        return specs, fixed

    async def ask(self, claimed: Claimed, task: str, limited: Limited) -> Verdict:
        """Ask for one attempt; the question is repeated until Redis has answered.

        A repeated question counts a rate twice at worst; it takes no second slot.

        Raises:
            LimitUnavailable: Redis refused to decide on this job.
        """
        tries = 0
        while True:
            future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
            self._gathered(claimed.queue).add((claimed, task, limited.packed, future))
            try:
                verdict = await future
            except _TROUBLE as exc:
                logger.warning("could not ask for job %s: %s; asking again", claimed.job_id, exc)
                await asyncio.sleep(RETRY_DELAYS_S[min(tries, len(RETRY_DELAYS_S) - 1)])
                tries += 1
            else:
                self._count(limited, verdict)
                return verdict

    def _count(self, limited: Limited, verdict: Verdict) -> None:
        """Count a decision: an admission for all limits, a refusal for the one that refused."""
        names = limited.names if verdict.answer == "admitted" else (verdict.limit,)
        for name in filter(None, names):  # a pause is no limit
            self.decisions[name, verdict.answer] += 1

    async def look(self, redis: Redis) -> None:
        """Now and then, find slots whose jobs are gone, and who waits for what holds no more.

        A worker that knows no limit looks too, once there are some: it may be all that is left
        when the code of the last one that had any was changed.
        """
        if time.monotonic() < self._sweep_at:
            return
        self._sweep_at = time.monotonic() + SWEEP_S
        known = (keys.LIMITS_DECLARED, keys.LIMITS, keys.PARKED_TASKS)
        if not self._is_used and not await redis.exists(*known):
            return
        await self.declare(redis)
        turn_ms = int(SWEEP_S * 1000 / 2)
        for _ in range(SWEEPS):
            args = [turn_ms]
            if await load("limit_sweep").call(redis, keys=[keys.LIMIT_TURN], args=args) != MORE:
                return
        self._sweep_at = 0.0

    async def drain(self) -> None:
        """Wait for the questions that are under way."""
        for gathered in self._by_queue.values():
            await gathered.drain()

    def _gathered(self, queue: str) -> Gathered[_Asked]:
        gathered = self._by_queue.get(queue)
        if gathered is None:

            async def send(batch: list[_Asked]) -> None:
                for start in range(0, len(batch), MAX_ENTRIES):
                    await self._send(queue, batch[start : start + MAX_ENTRIES])

            gathered = self._by_queue[queue] = Gathered(send, "runner limits")
        return gathered

    async def _send(self, queue: str, batch: list[_Asked]) -> None:
        args: list[Any] = []
        for claimed, task, packed, _ in batch:
            args += (keys.raw_id(claimed.job_id), claimed.token, claimed.attempt, task, packed)
        reply: Any
        try:
            reply = await ADMIT.call(self._redis(), keys=[queue, keys.held(queue)], args=args)
        except Exception as exc:  # noqa: BLE001  whatever it is, those who asked must hear it
            reply = [exc] * len(batch)
        for (*_, future), answer in zip(batch, reply, strict=True):
            if future.done():
                continue
            if isinstance(answer, list):
                future.set_result(_verdict(*answer))
            elif isinstance(answer, bytes):
                why = LimitUnavailable(f"Redis refused to decide on a job: {answer.decode()}")
                future.set_exception(why)
            else:
                future.set_exception(answer)


def stored(limit: Limit, **more: str) -> bytes:
    """Return a limit as it is written down in Redis."""
    rule = limit.rule
    fields = {
        "name": limit.name,
        "kind": rule.kind,
        "count": rule.count,
        "period_us": rule.period_us,
        "burst": rule.burst,
        "key": limit.key,
        **more,
    }
    return msgspec.json.encode(fields)


def shown(value: Any) -> str:
    """Return the value of a key as it stands in the names of Redis's keys."""
    text = str(value).encode(errors="backslashreplace")
    if len(text) > MOST_VALUE:
        text = text[:MOST_VALUE] + b"~" + hashlib.sha256(text).hexdigest()[:32].encode()
    return text.decode(errors="replace").replace("\n", "\\n")


def _declared_spec(limit: Limit, weight: int) -> _Spec:
    rule = limit.rule
    rest = () if rule.kind == "running" else (rule.period_us, rule.burst, weight)
    return _Spec(rule.kind, limit.name, limit.key, rule.count, rest)


def _told(gates: bytes) -> _Told:
    """Read what a claim brought: nothing of what cannot be read, so that jobs run all the same."""
    if not gates:
        return _Told()
    try:
        return _GATES.decode(gates)
    except msgspec.DecodeError as exc:
        logger.error("no pause of a task holds, and no limit set on one: %s", exc)  # noqa: TRY400  the message says it
        return _Told()


def _set_spec(limit: _SetLimit, weight: int) -> _Spec:
    """Return a limit that no code declares: the script looks up what is set, if it still is."""
    rest = () if limit.kind == "running" else (0, 0, weight)
    return _Spec(limit.kind, limit.name, limit.key, 0, rest)


def _packed(limits: Iterable[tuple[Any, ...]]) -> Limited:
    whole = list(limits)
    slots = [(place, count) for kind, _, place, count, *_ in whole if kind == "running"]
    return Limited(
        msgspec.msgpack.encode(whole),
        msgspec.msgpack.encode(slots) if slots else b"",
        tuple(name for _, name, *_ in whole),
    )


def _verdict(answer: int, wait: int = 0, limit: bytes = b"") -> Verdict:
    unit = 1_000_000 if _ANSWERS[answer] == "admitted" else 1_000
    return Verdict(_ANSWERS[answer], wait / unit, limit.decode())
