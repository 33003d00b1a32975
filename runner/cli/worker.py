"""``runner worker``: worker processes under a supervisor."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import click

from runner.errors import SettingsError
from runner.fleet import cores, start
from runner.fleet.supervisor import Plan


@click.command()
@click.argument("settings", default="settings.WorkerSettings")
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="How many workers, each in a process of its own. Default: one for each core.",
)
@click.option(
    "--reload",
    "reloads",
    is_flag=True,
    help="For development: replace the workers when a Python file here changes.",
)
def worker(settings: str, processes: int | None, *, reloads: bool) -> None:
    """Run workers, and keep them running.

    SETTINGS is the workers' class. What dies is started again. Signals to this process: SIGTERM
    and SIGINT end all (sent again: at once), SIGHUP replaces all without a pause, SIGUSR1 logs
    how each is.
    """
    if reloads and find_spec("watchfiles") is None:
        raise SettingsError("--reload needs watchfiles: pip install 'arq-runner[watch]'")
    start.become(
        Plan(
            command=(sys.executable, "-m", "runner.fleet.member", settings),
            processes=processes or cores.usable(),
            watched=(Path.cwd(),) if reloads else (),
        )
    )
