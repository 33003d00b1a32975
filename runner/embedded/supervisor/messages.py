"""What travels through the supervisor's pipes, one JSON object a line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

__all__ = [
    "Account",
    "Answer",
    "Command",
    "Plan",
    "PostgresPlan",
    "RedisPlan",
    "ServerError",
    "State",
]

HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged user that the servers run as when this process is root."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class RedisPlan:
    """What Valkey is started with; `folder` exists and belongs to the account."""

    program: str
    folder: str
    log: str
    settings: dict[str, str]


@dataclass(frozen=True, slots=True)
class PostgresPlan:
    """What Postgres is started with; `folder` exists and belongs to the account."""

    postgres: str
    initdb: str
    folder: str
    log: str
    settings: dict[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that this process is told at its start."""

    redis: RedisPlan | None
    postgres: PostgresPlan | None
    account: Account | None
    temporary: str
    start_timeout_s: float

    def to_line(self) -> bytes:
        """Return the plan as one line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Plan:
        """Return the plan that `to_line` wrote."""
        fields = json.loads(line)
        for name, part in (("redis", RedisPlan), ("postgres", PostgresPlan), ("account", Account)):
            fields[name] = fields[name] and part(**fields[name])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Command:
    """What the parent may ask: start, stop or restart a server, or end it all."""

    do: str
    server: str = ""
    kill: bool = False

    def to_line(self) -> bytes:
        """Return the command as one line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class State:
    """Where a server listens, and its process while it runs."""

    port: int
    pid: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What this process says to the plan and to each command; `error` is None when all is well."""

    redis: State | None = None
    postgres: State | None = None
    error: str | None = None

    def to_line(self) -> bytes:
        """Return the answer as one line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Answer:
        """Return the answer that `to_line` wrote."""
        fields = json.loads(line)
        for name in ("redis", "postgres"):
            fields[name] = fields[name] and State(**fields[name])
        return cls(**fields)


class ServerError(Exception):
    """Raised when a server does not start or stop; the message is for people."""
