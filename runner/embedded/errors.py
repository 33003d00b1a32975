"""The one error of the embedded servers."""

from __future__ import annotations

from runner.errors import RunnerError

__all__ = ["EmbeddedServerError"]


class EmbeddedServerError(RunnerError):
    """Raised when Valkey or Postgres cannot be found, started, stopped or restarted.

    The message ends with the tail of the server's log, where there is one.
    """
