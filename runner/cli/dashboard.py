"""``runner dashboard``: the pages that show what the fleet does."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import click

from runner import logs
from runner.cli.load import codec_by, load_settings, tasks_by
from runner.cli.queues import queues_of
from runner.dashboard import require

if TYPE_CHECKING:
    from runner.dashboard import Dashboard

HOST, PORT = "127.0.0.1", 8080
SIGNED_BY = "RUNNER_DASHBOARD_SECRET"
"""What signs forms where there is no password, so that they outlive a restart."""


@click.command()
@click.argument("settings", default="settings.WorkerSettings")
@click.option("--host", default=HOST, show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True)
@click.option(
    "--password",
    envvar="RUNNER_DASHBOARD_PASSWORD",
    help="What to ask for. Better in RUNNER_DASHBOARD_PASSWORD: arguments can be seen.",
)
@click.option("--root-path", default="", help="What a proxy takes away: /admin/jobs.")
@click.option("--read-only", is_flag=True, help="Nobody may change anything.")
def dashboard(
    settings: str, host: str, port: int, password: str | None, *, root_path: str, read_only: bool
) -> None:
    """Serve the dashboard of the workers that SETTINGS describes.

    Without a password it listens on this machine alone.
    """
    require()
    from runner.dashboard.serve import check_place, serve  # noqa: PLC0415  an extra

    check_place(host, password)
    logs.configure()
    app = app_of(settings, password=password, read_only=read_only)
    logging.getLogger("runner.dashboard").info("http://%s:%d", _shown(host), port)
    serve(app, host=host, port=port, auth=password, root_path=root_path.rstrip("/"))


def app_of(path: str, *, password: str | None = None, read_only: bool = False) -> Dashboard:
    """Return the dashboard of the workers that a settings class describes."""
    from runner.dashboard import dashboard as make  # noqa: PLC0415  an extra

    settings = load_settings(path)
    return make(
        settings.redis_settings,
        auth=password,
        read_only=read_only,
        queues=queues_of(settings),
        tasks=list(tasks_by(settings).values()),
        codec=codec_by(settings),
        secret=os.environ.get(SIGNED_BY) or None,
    )


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
