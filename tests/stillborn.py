"""A module after whose import no process that is forked lives: a fork of the tests' own does."""

from __future__ import annotations

import os
import sys

from runner import Context, task

if sys.argv[0] == "-c":  # the process that makes others
    os.register_at_fork(after_in_child=lambda: os._exit(7))


@task(runs_in="process")
def never(_ctx: Context) -> None:
    raise AssertionError("nobody is there to call it")
