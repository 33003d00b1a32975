"""The worker's end: load the settings, run the worker, talk to the supervisor.

``python -m runner.fleet.member settings.WorkerSettings``, with the number of the socket in
``RUNNER_FLEET_SOCKET``, and that of its place in ``RUNNER_FLEET_PLACE``. The supervisor's end
of the stream closes when it ends, however it does: then the worker ends as on SIGTERM, and by
force when that takes too long.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import arq.worker

from runner import logs
from runner.connections import TROUBLE
from runner.errors import RunnerError, SettingsError
from runner.executors.tied import end_with, outlive
from runner.fleet.messages import BAD_SETTINGS, PLACE, RECYCLED, SOCKET, Lines, encode
from runner.settings import install, load_settings

if TYPE_CHECKING:
    from runner.settings import SettingsWorker

RECEIVED_BYTES = 4096
_NOT_THEIRS = (str(Path(__file__).parents[1]), importlib.__file__, "<frozen importlib")
ORPHANED_S = 10.0
"""How long a worker whose supervisor is gone may take to end, beyond its own patience."""


def main() -> None:
    """Run one worker of a fleet; exit with its status."""
    wire = Wire(int(os.environ.pop(SOCKET)))
    # A module may hang when it is imported, and nobody listens yet.
    end_with(os.getppid())
    if wire.is_closed():
        sys.exit(RECYCLED)  # the supervisor ended before that
    place = int(os.environ.pop(PLACE, "1"))
    logs.configure()
    try:
        settings: Any = load_settings(sys.argv[1])
        install()  # again: what was imported since may have changed arq too
        worker: Any = arq.worker.create_worker(settings)
    except RunnerError as exc:
        wire.say("leaving", why=str(exc))
        sys.exit(BAD_SETTINGS)
    except Exception as exc:  # noqa: BLE001  the user's module may raise anything
        wire.say("leaving", why=shown(exc))
        sys.exit(BAD_SETTINGS)
    if worker.burst:
        why = (
            "burst ends a worker when nothing is left to do, and its supervisor would start it"
            f" again: leave it out, or run arq {sys.argv[1]} --burst"
        )
        wire.say("leaving", why=why)
        sys.exit(BAD_SETTINGS)
    serve(worker, wire, place)


def serve(worker: SettingsWorker, wire: Wire, place: int) -> None:
    """Run the worker to its end, under the supervisor."""
    worker.join(wire, place)
    listener = threading.Thread(
        target=listen, args=(worker, wire), name="runner supervisor", daemon=True
    )
    listener.start()
    outlive()  # from here on the listener hears it, and jobs are handed back
    try:
        worker.run()
    except TROUBLE as exc:
        wire.say("leaving", why=f"Redis does not answer ({exc})")
        sys.exit(1)
    except SettingsError as exc:  # what only a worker that starts can know
        wire.say("leaving", why=str(exc))
        sys.exit(BAD_SETTINGS)


def shown(exc: BaseException) -> str:
    """Return the traceback of what the user's module raised, without what led to it."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_NOT_THEIRS):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(exc), exc, trace)).strip()


def listen(worker: SettingsWorker, wire: Wire) -> None:
    """Do what the supervisor says, in the worker's loop; end when it is gone. A thread's work."""
    for message in wire.messages():
        if message["say"] == "drain":
            worker.loop.call_soon_threadsafe(worker.drain)
    # By a signal, so that it counts like any other, before the loop runs too.
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(worker.patience_s + ORPHANED_S)
    os._exit(RECYCLED)


class Wire:
    """The socket to the supervisor."""

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=number)
        # Not for what jobs start: the supervisor's end must see it close.
        self._socket.set_inheritable(False)
        self._sending = threading.Lock()

    def say(self, word: str, **fields: Any) -> None:
        """Send a message; a supervisor that is stopped or gone is no reason to wait."""
        with self._sending:
            try:
                self._socket.send(encode(word, **fields), socket.MSG_DONTWAIT)
            except OSError:
                return  # gone: `messages` ends and says so; or stopped, with its buffer full

    def is_closed(self) -> bool:
        """Say whether the supervisor is gone; nothing is read."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def messages(self) -> Any:
        """Yield what the supervisor says, until it is gone."""
        lines = Lines()
        while True:
            try:
                data = self._socket.recv(RECEIVED_BYTES)
            except OSError:
                return
            if not data:
                return
            yield from lines.feed(data)


if __name__ == "__main__":
    main()
