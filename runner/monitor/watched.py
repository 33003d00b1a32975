"""What monitoring asks of a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from redis.asyncio import Redis

    from runner.bus import Bus
    from runner.execution import Attempt


class Reads(Protocol):
    """The queues of a worker."""

    @property
    def names(self) -> list[str]:
        """Their names, the most urgent first."""
        ...


class Decides(Protocol):
    """Where its jobs ask for limits."""

    @property
    def decisions(self) -> Mapping[tuple[str, Any], int]:
        """How often each limit has admitted, delayed or parked an attempt."""
        ...


class Holds(Protocol):
    """What its process holds."""

    @property
    def threads(self) -> int:
        """How many threads: those of Python, and those of libraries."""
        ...

    @property
    def files(self) -> int:
        """How many open file descriptors: files, sockets, pipes."""
        ...


class Commands(Protocol):
    """Its parts, which may be told something."""

    async def command(self, name: str, text: str) -> str:
        """Do what a part of the worker offers; return what it says."""
        ...


class Watched(Protocol):
    """A worker; its names are arq's and ours."""

    name: str
    place: int
    events: Bus
    functions: dict[str, Any]
    max_jobs: int
    job_counter: int
    jobs_complete: int
    jobs_failed: int
    jobs_retried: int
    stopping: bool
    allow_pick_jobs: bool
    candidate: Any
    database_url: str | None

    @property
    def pool(self) -> Redis:
        """Its connections."""
        ...

    @property
    def cycles(self) -> Reads:
        """Its queues."""
        ...

    @property
    def parts(self) -> Commands:
        """Its parts."""
        ...

    @property
    def gate(self) -> Decides:
        """Its limits."""
        ...

    def vitals(self) -> Holds:
        """Look at what its process holds."""
        ...

    def running(self) -> Iterable[Attempt]:
        """Return those that wait for something."""
        ...

    def is_live(self) -> bool:
        """Say whether its loop goes on as it should."""
        ...

    def quiet(self) -> None:
        """Claim nothing more, until `resume`; what runs goes on."""
        ...

    def resume(self) -> None:
        """Claim again."""
        ...

    def resize(self, max_jobs: int) -> None:
        """Run so many jobs at once from now on."""
        ...
