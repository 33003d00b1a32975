"""``runner dev``: servers, a worker and the dashboard for one's own machine, by one command."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from runner import dashboard, embedded
from runner.cli.dashboard import HOST, PORT, SIGNED_BY
from runner.cli.load import check_there, load_settings
from runner.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DATA = Path(".runner")
STOP_S = 10.0
LOOK_MS = 500
LOADS = "import sys; from runner.cli.load import load_settings; load_settings(sys.argv[1])"


@click.command()
@click.argument("settings", default="settings.WorkerSettings")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DATA,
    show_default=True,
    help="Where the servers keep what they hold.",
)
@click.option(
    "--watch", is_flag=True, help="New worker and dashboard when a Python file here changes."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=PORT,
    show_default=True,
    help="Where the dashboard is; where that is taken, at a port that is free.",
)
@click.option("--no-dashboard", is_flag=True, help="Without the dashboard.")
def dev(settings: str, data: Path, *, watch: bool, port: int, no_dashboard: bool) -> None:
    """Start Valkey, Postgres, a worker and the dashboard. Data is kept from one run to the next.

    SETTINGS is the worker's class. It finds the servers in the environment variables REDIS_URL
    and DATABASE_URL, which this command sets: read them in your settings.
    """
    if watch and find_spec("watchfiles") is None:
        raise SettingsError("--watch needs watchfiles: pip install 'arq-runner[watch]'")
    check_there(settings)
    with embedded.start(data_dir=data) as servers:
        addresses = {"REDIS_URL": servers.redis_url, "DATABASE_URL": servers.database_url}
        for name, url in addresses.items():
            click.echo(f"{name}={url}")
        os.environ.update(addresses, **{SIGNED_BY: secrets.token_hex()})
        load_settings(settings)  # not before: it may read these variables
        page = None if no_dashboard else _dashboard(settings, port)
        command = ["arq", settings]
        if watch:
            # A process of new code each time. `arq --watch` goes on with the code it has.
            command = ["runner.cli", "worker", settings, "--processes", "1", "--reload"]
        shown = " ".join(command).replace("runner.cli", "runner")
        click.echo(f"worker: {shown} (Ctrl-C stops all)", err=True)
        status = _run(command, page, settings if watch else "")
    sys.exit(status)


def _dashboard(settings: str, port: int) -> list[str] | None:
    """Return the command of the dashboard, None where what it needs is not installed."""
    try:
        dashboard.require()
    except SettingsError as exc:
        click.echo(f"no dashboard: {exc}", err=True)
        return None
    chosen = _free(port)
    click.echo(f"dashboard: http://localhost:{chosen}", err=True)
    return ["runner.cli", "dashboard", settings, "--port", str(chosen)]


def _free(port: int) -> int:
    """Return this port, or where it is taken one that is free."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def _run(command: Sequence[str], page: Sequence[str] | None, watched: str) -> int:
    """Run a worker until it ends, or this process is told to stop; return its status.

    Args:
        command: the worker's module and its arguments.
        page: those of the dashboard, which runs as long as it does; None: there is none.
        watched: the settings, where the dashboard starts anew when they change; "": it does not.
    """

    def stop(signum: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt(signum)

    worker = _start(command)
    others = [] if page is None else [_start(page)]

    def renew() -> None:
        # Of code that does not load the worker's supervisor tells why; the page stays as it is.
        if page is not None and _loads(watched):
            _end(others.pop())
            others.append(_start(page))

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return _wait(worker, renew) if watched else worker.wait()
    except KeyboardInterrupt:
        return _end(worker)
    finally:
        for other in others:
            _end(other)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a module that is tied to this process: SIGKILL of the one ends the other."""
    return subprocess.Popen(  # noqa: S603  our own interpreter
        [sys.executable, embedded.TIED, str(os.getpid()), *words]
    )


def _loads(settings: str) -> bool:
    """Tell whether the code as it is now can be imported."""
    words = [sys.executable, "-c", LOADS, settings]
    return subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode == 0  # noqa: S603


def _wait(worker: subprocess.Popen[bytes], changed: Callable[[], None]) -> int:
    """Wait until a worker ends, and tell when a Python file here has changed."""
    from watchfiles import PythonFilter, watch  # noqa: PLC0415  an extra: only when asked for

    looks = watch(".", watch_filter=PythonFilter(), rust_timeout=LOOK_MS, yield_on_timeout=True)
    for changes in looks:
        if worker.poll() is not None:
            break
        if changes:
            changed()
    return worker.wait()


def _end(process: subprocess.Popen[bytes]) -> int:
    """End a process; return its status."""
    # Ctrl-C reaches it too, a signal to this process alone does not.
    process.terminate()
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
