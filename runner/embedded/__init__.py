"""Real Valkey and PostgreSQL for development, tests and the first run, from wheels or from PATH.

`start` is for synchronous callers, `servers` for asynchronous ones. Whatever becomes of the calling
process, Ctrl-C and SIGKILL included, the servers end with it and temporary data are removed.
"""

from __future__ import annotations

from pathlib import Path

from runner.embedded.errors import EmbeddedServerError
from runner.embedded.lifecycle import Servers, servers, start

TIED = str(Path(__file__).with_name("tied.py"))
"""A program: runs a module that ends when its parent does. See its head."""

__all__ = ["TIED", "EmbeddedServerError", "Servers", "servers", "start"]
