"""Start processes that cannot outlive the benchmark, and read what they cost from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

LEASH: Final = Path(__file__).with_name("leash.py")
TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
END_TIMEOUT_S: Final = 10.0
TIME_LIMIT_S: Final = 300
TAIL_CHARACTERS: Final = 2000


class ProcessFailed(Exception):  # noqa: N818  it says what happened
    """Raised when a process ended by itself, or said that it could not do its work."""


class Process:
    """One process in a group of its own; its output goes to a file. Use it with ``with``."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        self.command = tuple(command)
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(LEASH)),
                    *(str(os.getpid()), str(TIME_LIMIT_S), *command),
                ],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait(self, timeout_s: float) -> None:
        """Wait for the process to end well.

        Raises:
            ProcessFailed: it ended badly, or not in time.
        """
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProcessFailed(f"not done within {timeout_s:g} s:\n{self.tail()}") from None
        if code:
            raise ProcessFailed(f"exit status {code}:\n{self.tail()}")

    def check(self) -> None:
        """Raise `ProcessFailed` if the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise ProcessFailed(f"ended with status {code}:\n{self.tail()}")

    def is_running(self) -> bool:
        """Say whether the process has not ended yet."""
        return self._process.poll() is None

    def tail(self) -> str:
        """Return the end of what it has said."""
        return self.log.read_text(errors="replace")[-TAIL_CHARACTERS:].strip()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self) -> None:
        """End it with its children: ask first, then insist. Idempotent."""
        if self._process.poll() is None:
            # A stopped process hears nothing.
            self.signal(signal.SIGCONT)
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_TIMEOUT_S)
        self.signal(signal.SIGKILL)
        self._process.wait(END_TIMEOUT_S)

    def ask_to_end(self) -> None:
        """Send SIGTERM and do not wait."""
        if self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


def cpu_s(pid: int) -> float:
    """Return the seconds of processor time that a process and all its children have used."""
    return sum(_ticks(each) for each in _family(pid)) / TICKS_A_SECOND


def memory_mb(pid: int, *, peak: bool = False) -> float:
    """Return the resident memory of a process and its children, now or at its highest."""
    return sum(_status_kb(each, "VmHWM:" if peak else "VmRSS:") for each in _family(pid)) / 1024


def _family(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                yield from _family(int(child))


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    # utime, stime, and the same of children that have ended and been waited for.
    return sum(int(field) for field in fields[11:15])


def _status_kb(pid: int, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    return 0


def wait_for_lines(path: Path, count: int, *, timeout_s: float, check: Sequence[Process]) -> None:
    """Wait until a file has so many lines.

    Raises:
        ProcessFailed: one of the processes has ended, or the time is up.
    """
    until = time.monotonic() + timeout_s
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        for process in check:
            process.check()
        if time.monotonic() > until:
            raise ProcessFailed(f"only some of {count} workers were up within {timeout_s:g} s")
        time.sleep(0.02)
