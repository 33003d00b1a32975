"""What ``client.workers`` offers: which workers live, what they do, and orders to them.

A worker with ``monitor=True`` says once a second what it does, and asks in the same call whether
there is an order for it. So an order is answered within about a second, and a worker that says
nothing for ten seconds is not listed any more.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import msgspec

from runner import connections, keys
from runner.errors import ArgumentsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis

ORDER_MS = 15_000
"""How long an order waits for its worker."""
ANSWER_S = 5.0
TOLD_S = 10.0
"""How long an answer of a part is waited for, whose command has five seconds."""
MOST = 1_000

Verb: TypeAlias = Literal["ping", "drain", "resume", "concurrency"]


class RunningJob(msgspec.Struct, frozen=True, array_like=True):
    """A job that a worker runs and that waits for something at the moment."""

    job_id: str
    task: str
    queue: str
    attempt: int
    started_ms: int


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that lives, as it said itself a second ago.

    Attributes:
        name: host, process id, and a part of its own.
        version: of this package.
        queues: what it reads, the most urgent first.
        tasks: the names of what it can run.
        state: "running", "draining" (it claims nothing until told to), or "stopping".
        concurrency: how many jobs it runs at once, at most.
        running: how many it has.
        jobs: those that wait for something at the moment, the oldest first, fifty at most.
        succeeded: attempts that ended so since it was made.
        failed: the same, for good.
        retried: the same, to be tried again.
        rss_bytes: its memory; 0 where nobody says.
        loop_delay_ms: how late its event loop was, at worst since it said so last.
        is_writer: it is the elected writer.
        started_ms: when it began to work, Unix time in milliseconds.
        at_ms: when it said all this.
    """

    name: str
    host: str
    pid: int
    version: str
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    state: str
    concurrency: int
    running: int
    jobs: tuple[RunningJob, ...]
    succeeded: int
    failed: int
    retried: int
    rss_bytes: int
    loop_delay_ms: float
    is_writer: bool
    started_ms: int
    at_ms: int


class Order(msgspec.Struct, frozen=True, array_like=True):
    """What a worker is told to do; `reply` names where its answer is awaited."""

    reply: str
    verb: str
    value: int = 0
    text: str = ""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What a worker says to an order."""

    worker: str
    text: str


class Workers:
    """The workers on this Redis.

    Example:
        >>> for worker in await client.workers.list():
        ...     print(worker.name, worker.running, "of", worker.concurrency)
        >>> await client.workers.concurrency(50, names=[worker.name])
        {'web-1:4711:a0b1c2': 'concurrency 50, was 100'}
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def list(self, queue: str | None = None) -> list[WorkerInfo]:
        """Return the workers that live, by name; with `queue` those that read it."""
        now_s, _ = await self._redis.time()
        names = await self._redis.zrangebyscore(
            keys.WORKERS, now_s * 1000, "+inf", start=0, num=MOST
        )
        if not names:
            return []
        # A name is what somebody wrote there.
        blobs = await self._redis.mget([keys.WORKER.encode() + name for name in names])
        found = [info for blob in blobs if blob and (info := _read(blob)) is not None]
        found.sort(key=lambda worker: worker.name)
        return [worker for worker in found if queue is None or queue in worker.queues]

    async def ping(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """Ask workers whether they are there; return the answers by worker."""
        return await self._tell("ping", 0, names)

    async def drain(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """Let workers claim nothing more; what runs goes on. Return the answers by worker."""
        return await self._tell("drain", 0, names)

    async def resume(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """Let drained workers claim again; return the answers by worker."""
        return await self._tell("resume", 0, names)

    async def concurrency(self, jobs: int, names: Iterable[str] | None = None) -> dict[str, str]:
        """Set how many jobs workers run at once, until they end; return the answers by worker.

        Raises:
            ArgumentsError: it is no whole number above nothing.
        """
        if type(jobs) is not int or not 1 <= jobs <= 1_000_000:  # noqa: PLR2004  a sane bound
            raise ArgumentsError(f"concurrency is {jobs!r}, but must be a whole number from 1")
        return await self._tell("concurrency", jobs, names)

    async def tell(
        self, command: str, text: str = "", *, names: Iterable[str] | None = None
    ) -> dict[str, str]:
        """Tell workers a command of one of their parts; return what these say, by worker.

        Args:
            command: one of `Part.commands`.
            text: what it is given.
            names: the workers; None: all that live.
        """
        if command in get_args(Verb):
            raise ArgumentsError(f"{command!r} is no command of a part: call workers.{command}()")
        return await self._tell(command, 0, names, text, timeout_s=TOLD_S)

    async def _tell(
        self,
        verb: str,
        value: int,
        names: Iterable[str] | None,
        text: str = "",
        *,
        timeout_s: float = ANSWER_S,
    ) -> dict[str, str]:
        """Tell the named workers, or all that live; one that says nothing is not in the answer."""
        if isinstance(names, str):
            raise ArgumentsError(f"names is a list of names, not the text {names!r}")
        told = set(names) if names is not None else {info.name for info in await self.list()}
        if not told:
            return {}
        reply = secrets.token_hex(8)
        order = msgspec.msgpack.encode(Order(reply, verb, value, text))
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in told:
                pipe.rpush(keys.control(name), order)
                pipe.pexpire(keys.control(name), ORDER_MS)
            await pipe.execute()
        return await self._answers(reply, told, timeout_s=timeout_s)

    async def _answers(self, reply: str, awaited: set[str], *, timeout_s: float) -> dict[str, str]:
        answers: dict[str, str] = {}
        # Beside the pool: it waits, and of a bounded number it would keep a connection.
        redis = connections.another(self._redis.connection_pool)
        try:
            async with asyncio.timeout(timeout_s):
                while awaited - answers.keys():
                    popped = await cast(Any, redis.blpop([keys.answers(reply)], timeout=1))
                    if popped:
                        answer = msgspec.msgpack.decode(popped[1], type=Answer)
                        answers[answer.worker] = answer.text
        except TimeoutError:
            pass  # who has not answered is missing, and the caller sees it
        finally:
            await redis.aclose()
        return dict(sorted(answers.items()))


def _read(blob: bytes) -> WorkerInfo | None:
    """Read a heartbeat; None for one of a version that says other things."""
    try:
        return msgspec.msgpack.decode(blob, type=WorkerInfo)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def begun_ms(workers: Iterable[WorkerInfo]) -> int:
    """Return when the first of some workers began to work, Unix time in ms; 0 where none is."""
    return min((worker.started_ms for worker in workers), default=0)


__all__ = ["Answer", "Order", "RunningJob", "WorkerInfo", "Workers", "begun_ms"]
