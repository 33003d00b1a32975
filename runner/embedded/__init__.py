"""Real Valkey and PostgreSQL for development, tests and the first run, from wheels or from PATH.

`start` is for synchronous callers, `servers` for asynchronous ones. Whatever becomes of the calling
process, Ctrl-C and SIGKILL included, the servers end with it and temporary data are removed.
"""

from __future__ import annotations

from runner.embedded.errors import EmbeddedServerError
from runner.embedded.lifecycle import Servers, servers, start

__all__ = ["EmbeddedServerError", "Servers", "servers", "start"]
