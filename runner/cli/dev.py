"""``runner dev``: servers, a worker and the dashboard for one's own machine, by one command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import click

from runner import dashboard, embedded
from runner.cli.dashboard import HOST, PORT
from runner.cli.load import load_settings
from runner.errors import SettingsError

DATA = Path(".runner")
STOP_S = 10.0


@click.command()
@click.argument("settings", default="settings.WorkerSettings")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), default=DATA)
@click.option("--watch", is_flag=True, help="Restart the worker when a file here changes.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=PORT,
    show_default=True,
    help="Where the dashboard is; where that is taken, at a port that is free.",
)
@click.option("--no-dashboard", is_flag=True, help="Without the dashboard.")
def dev(settings: str, data: Path, *, watch: bool, port: int, no_dashboard: bool) -> None:
    """Start Valkey, Postgres, a worker and the dashboard; keep the data from one run to the next.

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
        beside = [] if no_dashboard else _dashboard(settings, port)
        click.echo(f"worker: {' '.join(command)} (Ctrl-C stops all)", err=True)
        status = _run(command, beside, {**os.environ, **addresses})
    sys.exit(status)


def _dashboard(settings: str, port: int) -> list[list[str]]:
    """Return the command of the dashboard, none where what it needs is not installed."""
    try:
        dashboard.require()
    except SettingsError as exc:
        click.echo(f"no dashboard: {exc}", err=True)
        return []
    chosen = _free(port)
    click.echo(f"dashboard: http://localhost:{chosen}", err=True)
    return [["runner.cli", "dashboard", settings, "--port", str(chosen)]]


def _free(port: int) -> int:
    """Return this port, or where it is taken one that is free."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def _run(command: list[str], beside: list[list[str]], environment: dict[str, str]) -> int:
    """Run a module until it ends, or this process is told to stop; return its status.

    Args:
        command: the module and its arguments.
        beside: others, which run as long as it does.
        environment: the variables of all.
    """

    def stop(signum: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt(signum)

    # They are tied to this process: SIGKILL of the one ends the others.
    worker, *others = [
        subprocess.Popen(  # noqa: S603  our own interpreter
            [sys.executable, embedded.TIED, str(os.getpid()), *words],
            env=environment,
        )
        for words in (command, *beside)
    ]
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return worker.wait()
    except KeyboardInterrupt:
        return _end(worker)
    finally:
        for other in others:
            _end(other)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes]) -> int:
    """End a process; return its status."""
    # Ctrl-C reaches it too, a signal to this process alone does not.
    process.terminate()
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
