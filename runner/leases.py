"""Renew the leases of running jobs from a thread, so that a job which blocks the loop keeps its.

The thread has a connection of its own. One long C call that holds the GIL stops it too:
such a job loses its lease after all, which counts as a crash.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, RedisError

from runner import connections, keys
from runner.broker import MAX_ENTRIES
from runner.scripts import load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis as BlockingRedis
    from redis.asyncio import ConnectionPool

    from runner.broker import Claimed as Lease

logger = logging.getLogger("runner.leases")


class Leases:
    """The leases of one worker, renewed at a third of their length.

    Args:
        lease_s: the length of a lease in seconds.
        lost: called from the thread with each lease that somebody else has now.
    """

    def __init__(self, lease_s: float, lost: Callable[[Lease], None]) -> None:
        self._lease_s = lease_s
        self._lost = lost
        self._held: dict[str, Lease] = {}
        self._looked_at = math.inf  # when the thread last had nothing overdue, by monotonic
        self._kept: set[str] = set()
        self._ends = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._held)

    def add(self, lease: Lease) -> None:
        """Renew this lease from now on."""
        self._held[lease.token + lease.job_id] = lease

    def remove(self, token: str, job_id: str) -> None:
        """Renew it no more."""
        self._held.pop(token + job_id, None)
        self._kept.discard(token + job_id)

    def keep(self, lease: Lease) -> None:
        """Renew it also after `stop`, until it is removed or its time is up.

        For a function that runs in a thread, and goes on after its worker has closed: while this
        process lives, the job is not to run elsewhere.
        """
        self._kept.add(lease.token + lease.job_id)

    def are_overdue(self) -> bool:
        """Say whether the thread has not come round in time, as after SIGSTOP.

        What timers say is not to be trusted then: a job that seems to have overrun its limit
        may run elsewhere by now, and the thread is about to find out.
        """
        return time.monotonic() - self._looked_at > self._lease_s

    def start(self, pool: ConnectionPool) -> None:
        """Start the thread. Idempotent."""
        self._ends = False
        if self._thread is not None and self._thread.is_alive():
            return
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run,
            args=(pool, self._stop),
            name="runner leases",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end. Idempotent; it is a daemon and need not be waited for."""
        for key in set(self._held) - self._kept:
            self._held.pop(key, None)
        self._ends = True
        if not self._kept:
            self._stop.set()
            self._thread = None

    def _run(self, pool: ConnectionPool, stop: threading.Event) -> None:
        connection: BlockingRedis | None = None
        interval_s = self._lease_s / 3
        self._looked_at = time.monotonic()
        while not stop.wait(interval_s):
            held = [lease for lease in list(self._held.values()) if lease.until > time.monotonic()]
            if self._ends and not held:
                break
            if not held:
                self._looked_at = time.monotonic()
                continue
            if connection is None:
                connection = connections.blocking(pool, timeout_s=interval_s)
            by_queue: dict[str, list[Lease]] = {}
            for lease in held:
                by_queue.setdefault(lease.queue, []).append(lease)
            try:
                for queue, leases in by_queue.items():
                    self._renew(connection, queue, leases)
                self._looked_at = time.monotonic()
            except (RedisError, OSError) as exc:
                logger.warning("could not renew %d leases: %s; trying again", len(held), exc)
            except Exception:
                logger.exception("renewing leases failed; trying again")
        if connection is not None:
            connection.close()

    def _renew(self, connection: BlockingRedis, queue: str, held: Sequence[Lease]) -> None:
        script = load("renew")
        queue_keys = (queue, keys.held(queue), keys.clock(queue))
        for start in range(0, len(held), MAX_ENTRIES):
            chunk = held[start : start + MAX_ENTRIES]
            args: list[Any] = [int(self._lease_s * 1000)]
            for lease in chunk:
                args += (keys.raw_id(lease.job_id), lease.token, lease.attempt)
            script.check(queue_keys, args)
            execute: Any = connection.execute_command
            call = (len(queue_keys), *queue_keys, *args)
            try:
                statuses = execute("EVALSHA", script.sha, *call)
            except NoScriptError:
                statuses = execute("EVAL", script.text, *call)
            for lease, status in zip(chunk, statuses, strict=True):
                still_held = lease.token + lease.job_id in self._held
                if status == 0 and still_held:
                    self._lost(lease)
