"""The dashboard: what the fleet does, on pages that anybody can read, and buttons that act.

An ASGI app, alone by ``runner dashboard`` or mounted into another. It reads by the same calls of
the client as the command line does; nothing is decided here but how things look.

    app       routes, headers, errors; the factory `dashboard`
    access    who may look and who may act: passwords, sessions, forged posts
    desk      the client, and what is asked of it: queues, tasks, workers
    asked     addresses and forms, whatever bytes they hold
    pages     what a page and an action are
    views/    one module for each area: what it reads and does
    render    templates; figures, times and values as text
    charts, timeline, drawing   pictures as SVG
    live      server-sent events
    serve     the command's server
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from runner.errors import SettingsError

if TYPE_CHECKING:
    from runner.dashboard.app import Dashboard, dashboard

__all__ = ["Dashboard", "dashboard", "require"]

NEEDED = ("starlette", "jinja2", "uvicorn")


def require(*names: str) -> None:
    """Raise `SettingsError` when a package of the extra is not installed."""
    missing = [name for name in names or NEEDED if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"the dashboard needs {', '.join(missing)}: pip install 'arq-runner[dashboard]'"
        )


def __getattr__(name: str) -> Any:
    if name not in {"Dashboard", "dashboard"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("starlette", "jinja2")
    from runner.dashboard import app  # noqa: PLC0415  only where it is asked for

    return getattr(app, name)
