"""Limits at run time: what ``client.limits`` offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from runner import keys
from runner.errors import LimitError, LimitNotFound, did_you_mean
from runner.limits.bucket import Bucket
from runner.limits.gate import shown, stored
from runner.limits.options import RATE, RUNNING, RateLimit
from runner.limits.running import Running, RunningLimit
from runner.limits.window import Window
from runner.scripts import load

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from runner.limits.options import Limit, Rule

SHOWN = 100
"""How many values of a key are listed: those that were used last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketInfo:
    """A limit's state for one value of its key.

    Attributes:
        value: the value, "" for a limit without a key.
        used: slots that are taken, or what the rate counts now.
        parked: jobs that wait for a slot.
        reserved: jobs that wait for their time.
    """

    value: str
    used: int
    parked: int
    reserved: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitInfo:
    """A limit and its state, as `client.limits` shows them.

    Attributes:
        rule: what holds.
        declared: what the code says, None when it says nothing.
        is_set: it was set at run time.
        task: the task that it was set on, "" when the code declares it.
        key: the parameter whose every value has a limit of its own, or None.
        buckets: its state: for each value of the key those that were used last.
        bucket_count: how many values there are.
    """

    name: str
    rule: Rule
    declared: Rule | None
    is_set: bool
    task: str
    key: str | None
    buckets: tuple[BucketInfo, ...]
    bucket_count: int

    @property
    def used(self) -> int:
        """Slots that are taken, or what the rates count now, of the buckets shown."""
        return sum(bucket.used for bucket in self.buckets)

    @property
    def parked(self) -> int:
        """Jobs that wait for a slot, of the buckets shown."""
        return sum(bucket.parked for bucket in self.buckets)

    @property
    def reserved(self) -> int:
        """Jobs that wait for their time, of the buckets shown."""
        return sum(bucket.reserved for bucket in self.buckets)


class Limits:
    """List limits, set them at run time, and clear them back to what the code declares.

    What is set holds at once in all workers, because it is read in the script that admits, and
    until it is cleared, whatever is deployed meanwhile.

    Example:
        >>> await client.limits.set("mail", rate="20/m")
        >>> await client.limits.set(task="call_api", max_running=3, key="tenant_id")
        >>> [(info.name, str(info.rule), info.parked) for info in await client.limits.list()]
        [('call_api.running', '3 at once', 0), ('mail', '20/m', 0)]
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def list(self) -> list[LimitInfo]:
        """Return all limits that workers have declared in a day, or that are set, by name."""
        declared, changed = await self._read()
        names = sorted(declared.keys() | changed.keys())
        return [await self._info(name, declared, changed) for name in names]

    async def get(self, name: str, *, value: Any = None) -> LimitInfo:
        """Return one limit, with `value` for one value of its key; raise `LimitNotFound`."""
        declared, changed = await self._read()
        _check_known(name, declared, changed)
        place = "" if value is None else f"{name}[{shown(value)}]"
        return await self._info(name, declared, changed, place)

    async def set(
        self,
        name: str | None = None,
        *,
        task: str | None = None,
        rate: str | None = None,
        burst: int | None = None,
        max_running: int | None = None,
        key: str | None = None,
    ) -> LimitInfo:
        """Set a limit, from now on and in all workers.

        More room releases who waits for it at once; less lets nobody in until there is room, and
        what runs goes on.

        Args:
            name: the limit, such as "mail", or "send_mail.rate" for the rate of a task.
            task: in place of a name: the task, also one that declares no limit.
            rate: what to allow, such as "20/m".
            burst: with `rate`, the tokens of a bucket; None: a window.
            max_running: or how many jobs may run at once.
            key: the parameter with a limit for each value, for a task that declares none.

        Raises:
            LimitNotFound: nobody has declared a limit of this name.
            LimitError: what is given does not go together.
        """
        if (rate is None) == (max_running is None):
            raise LimitError("give either rate or max_running")
        if (name is None) == (task is None):
            raise LimitError("give either the name of a limit or task=")
        declared, changed = await self._read()
        wanted = _Wanted(name, task, rate, burst, max_running, key)
        limit, more = _asked_for(wanted, declared, changed)
        await load("limit_set").call(
            self._redis,
            keys=[keys.LIMITS, keys.GATED],
            args=[limit.name, stored(limit, **more)],
        )
        await self._apply(limit.name, limit.rule, declared)
        return await self.get(limit.name)

    async def clear(self, name: str) -> LimitInfo | None:
        """Let the code's value hold again; None when the code declares no such limit.

        Raises:
            LimitNotFound: there is no such limit.
        """
        declared, changed = await self._read()
        _check_known(name, declared, changed)
        if name in changed:
            await load("limit_set").call(
                self._redis, keys=[keys.LIMITS, keys.GATED], args=[name, ""]
            )
            await self._apply(name, _rule(changed[name]), declared)
        return await self.get(name) if name in declared else None

    async def _apply(self, name: str, rule: Rule, declared: dict[str, Any]) -> None:
        """Release who has room now, in as many calls as that takes."""
        said = declared.get(name, {"period_us": 0, "burst": 0, "count": 0})
        values = (int(said["period_us"]), int(said["burst"]), int(said["count"]))
        kind = declared[name]["kind"] if name in declared else rule.kind
        offset = 0
        while offset >= 0:
            following, again = await load("limit_apply").call(
                self._redis,
                keys=[keys.limit_buckets(name)],
                args=[kind, name, offset, *values],
            )
            if not again:
                offset = following

    async def _read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.LIMITS_DECLARED)
            pipe.hgetall(keys.LIMITS)
            declared, changed = await pipe.execute()
        return _decoded(declared), _decoded(changed)

    async def _info(
        self, name: str, declared: dict[str, Any], changed: dict[str, Any], place: str = ""
    ) -> LimitInfo:
        said, now = declared.get(name), changed.get(name)
        holds = now or said
        assert holds is not None  # the name is of one of the two
        values = said or {"period_us": 0, "burst": 0, "count": 0}
        count, *states = await load("limit_look").call(
            self._redis,
            keys=[keys.limit_buckets(name)],
            args=[
                holds["kind"],
                name,
                values["period_us"],
                values["burst"],
                values["count"],
                SHOWN,
                place,
            ],
        )
        found = iter(states)
        return LimitInfo(
            name=name,
            rule=_rule(holds),
            declared=_rule(said) if said else None,
            is_set=now is not None,
            task=holds.get("task", ""),
            key=(said or holds).get("key"),
            buckets=tuple(
                BucketInfo(value=_value(name, raw), used=used, parked=parked, reserved=reserved)
                for raw, used, parked, reserved in zip(*[found] * 4, strict=True)
            ),
            bucket_count=count,
        )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What `Limits.set` was given."""

    name: str | None
    task: str | None
    rate: str | None
    burst: int | None
    max_running: int | None
    key: str | None

    def limit(self, name: str, key: str | None) -> Limit:
        if self.max_running is not None:
            if self.burst is not None:
                raise LimitError("burst goes with a rate")
            return RunningLimit(name, self.max_running, key)
        assert self.rate is not None
        return RateLimit(name, self.rate, self.burst, key)

    @property
    def full_name(self) -> str:
        if self.name is not None:
            return self.name
        return f"{self.task}{RATE if self.max_running is None else RUNNING}"


def _asked_for(
    wanted: _Wanted, declared: dict[str, Any], changed: dict[str, Any]
) -> tuple[Limit, dict[str, str]]:
    """Return the limit that is asked for, and what else is written down of it."""
    name, task = wanted.full_name, wanted.task
    known = declared.get(name) or changed.get(name)
    if known is None:
        if task is None:
            _check_known(name, declared, changed)
        return wanted.limit(name, wanted.key), {"task": task or ""}
    if (known["kind"] == "running") != (wanted.max_running is not None):
        kind = "jobs at once" if known["kind"] == "running" else "a rate"
        raise LimitError(f"the limit {name!r} is one of {kind}")
    if name in declared and wanted.key not in (None, known["key"]):
        raise LimitError(f"the code says that the key of {name!r} is {known['key']!r}")
    limit = wanted.limit(name, known["key"] if wanted.key is None else wanted.key)
    task = "" if name in declared else known.get("task", "")
    return limit, {"task": task} if task else {}


def _check_known(name: str, declared: dict[str, Any], changed: dict[str, Any]) -> None:
    if name not in declared and name not in changed:
        hint = did_you_mean(name, [*declared, *changed])
        raise LimitNotFound(
            f"no worker has declared a limit {name!r}{hint}; to limit a task that declares none, "
            f"give task=",
            name=name,
        )


def _decoded(fields: dict[bytes, bytes]) -> dict[str, Any]:
    return {name.decode(): msgspec.json.decode(text) for name, text in fields.items()}


def _rule(definition: dict[str, Any]) -> Rule:
    count, period_us = int(definition["count"]), int(definition["period_us"])
    match definition["kind"]:
        case "running":
            return Running(count)
        case "window":
            return Window(count, period_us)
        case _:
            return Bucket(count, period_us, int(definition["burst"]))


def _value(name: str, raw: bytes) -> str:
    return raw.decode(errors="replace")[len(name) + 1 : -1]
