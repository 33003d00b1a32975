"""The server of ``runner dashboard``: uvicorn, on the loopback unless there is a password."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import uvicorn

from runner.dashboard.access import is_loopback
from runner.errors import SettingsError

if TYPE_CHECKING:
    from types import FrameType

    from runner.dashboard.access import Auth
    from runner.dashboard.app import Dashboard

logger = logging.getLogger("runner.dashboard")

GRACE_S = 3


class Server(uvicorn.Server):
    """Ends the streams of a dashboard when it is told to stop: they would keep it waiting."""

    def __init__(self, app: Dashboard, host: str, port: int, root_path: str = "") -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                root_path=root_path,
                log_config=None,
                access_log=False,
                server_header=False,
                # Those of this machine's proxy alone are believed, or of FORWARDED_ALLOW_IPS.
                proxy_headers=True,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._dashboard = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, and end the streams."""
        self._dashboard.close()
        super().handle_exit(sig, frame)


def check_place(host: str, auth: Auth) -> None:
    """Raise `SettingsError` when others could reach a dashboard without a password."""
    if auth is None and not is_loopback(host):
        raise SettingsError(
            f"the dashboard has no password, and would listen on {host}, where others reach it: "
            "give --password (or RUNNER_DASHBOARD_PASSWORD), or listen on 127.0.0.1"
        )


def serve(app: Dashboard, *, host: str, port: int, auth: Auth, root_path: str = "") -> None:
    """Serve a dashboard until the process is told to stop.

    Raises:
        SettingsError: others could reach it, and there is no password; or the port is taken.
    """
    check_place(host, auth)
    server: Any = Server(app, host, port, root_path)
    try:
        server.run()
    except KeyboardInterrupt:
        return  # Ctrl-C, which uvicorn has heeded, and raises once more
    except SystemExit as exc:
        raise SettingsError(
            f"the dashboard cannot listen on {host}:{port}; choose another place by --host, --port"
        ) from exc


__all__ = ["Server", "check_place", "serve"]
