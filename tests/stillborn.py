"""A module after whose import no process that is forked lives: a fork of the tests' own does."""

from __future__ import annotations

import os
import sys

from runner import Context, task
from runner.executors import forker

# In the process that makes others alone: whoever runs the tests forks, too.
if getattr(sys.modules["__main__"], "main", None) is forker.main:
    os.register_at_fork(after_in_child=lambda: os._exit(7))


@task(executor="process")
def never(_ctx: Context) -> None:
    raise AssertionError("nobody is there to call it")
