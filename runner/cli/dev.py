"""``runner dev``: servers and a worker for one's own machine, by one command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from runner import embedded

DATA = Path(".runner")


@click.command()
@click.argument("settings", default="settings.WorkerSettings")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), default=DATA)
@click.option("--watch", is_flag=True, help="Restart the worker when a file here changes.")
def dev(settings: str, data: Path, *, watch: bool) -> None:
    """Start Valkey, Postgres and a worker; keep their data from one run to the next.

    SETTINGS is the worker's class; it finds the servers in REDIS_URL and DATABASE_URL.
    """
    with embedded.start(data_dir=data) as servers:
        environment = {
            **os.environ,
            "REDIS_URL": servers.redis_url,
            "DATABASE_URL": servers.database_url,
        }
        click.echo(f"REDIS_URL={servers.redis_url}")
        click.echo(f"DATABASE_URL={servers.database_url}")
        command = [sys.executable, "-m", "arq", settings]
        if watch:
            command += ["--watch", "."]
        click.echo(f"worker: arq {' '.join(command[3:])} (Ctrl-C stops all)", err=True)
        # The interrupt goes to the whole foreground group: the worker ends itself.
        process = subprocess.Popen(command, env=environment)  # noqa: S603  our own interpreter
        try:
            status = process.wait()
        except KeyboardInterrupt:
            status = process.wait()
    sys.exit(status)
