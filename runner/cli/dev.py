"""``runner dev``: servers and a worker for one's own machine, by one command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import click

from runner import embedded
from runner.cli.load import load_settings
from runner.errors import SettingsError

DATA = Path(".runner")
STOP_S = 10.0


@click.command()
@click.argument("settings", default="settings.WorkerSettings")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), default=DATA)
@click.option("--watch", is_flag=True, help="Restart the worker when a file here changes.")
def dev(settings: str, data: Path, *, watch: bool) -> None:
    """Start Valkey, Postgres and a worker; keep their data from one run to the next.

    SETTINGS is the worker's class. It finds the servers in the environment variables REDIS_URL
    and DATABASE_URL, which this command sets: read them in your settings.
    """
    if watch and find_spec("watchfiles") is None:
        raise SettingsError("--watch needs watchfiles: pip install 'arq-runner[watch]'")
    load_settings(settings)
    with embedded.start(data_dir=data) as servers:
        click.echo(f"REDIS_URL={servers.redis_url}")
        click.echo(f"DATABASE_URL={servers.database_url}")
        addresses = {"REDIS_URL": servers.redis_url, "DATABASE_URL": servers.database_url}
        command = ["arq", settings, *(["--watch", "."] if watch else [])]
        click.echo(f"worker: {' '.join(command)} (Ctrl-C stops all)", err=True)
        status = _run(command, {**os.environ, **addresses})
    sys.exit(status)


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run a module until it ends, or this process is told to stop; return its status."""

    def stop(signum: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt(signum)

    # The worker is tied to this process: SIGKILL of the one ends the other.
    worker = subprocess.Popen(  # noqa: S603  our own interpreter
        [sys.executable, embedded.TIED, str(os.getpid()), *command],
        env=environment,
    )
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return worker.wait()
    except KeyboardInterrupt:
        # Ctrl-C reaches the worker too, a signal to this process alone does not.
        worker.terminate()
        try:
            return worker.wait(STOP_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            return worker.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
