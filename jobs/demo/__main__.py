"""Run the demo: `python -m jobs.demo --help`."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import uvloop
from rich.console import Console

from jobs.demo.fleet import FleetError
from jobs.demo.options import OptionError, parse
from jobs.demo.queued import StalledError
from jobs.demo.run import Demo, ServersError
from jobs.demo.work import load
from jobs.flights import FlightsMissingError
from runner import embedded
from runner.embedded import EmbeddedServerError

if TYPE_CHECKING:
    from types import FrameType

    from jobs.demo.options import Options

EXIT_OFF = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM

_EXPECTED = (EmbeddedServerError, FleetError, FlightsMissingError, ServersError, StalledError)
"""Errors whose message is all that the person at the terminal needs."""


def main(arguments: list[str]) -> int:
    """Run the demo and return its exit code: 0 when every total is exact."""
    try:
        options = parse(arguments)
    except OptionError as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return EXIT_USAGE
    terminated = False

    def on_sigterm(_signal: int, _frame: FrameType | None) -> None:
        # The same way out as Ctrl-C: asyncio cancels the run, and every `finally` is walked.
        nonlocal terminated
        terminated = True
        signal.raise_signal(signal.SIGINT)

    # A shell ignores SIGINT for what it starts in the background, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("\nStopped: no process of the demo is left.", file=sys.stderr)
        return EXIT_TERMINATED if terminated else EXIT_INTERRUPTED


def _run(options: Options) -> int:
    console = Console()
    try:
        work = load(options)
        console.print(
            f"{len(work.flights):,} flights read and added up. Starting Valkey and Postgres ..."
        )
        with (
            # Both servers keep what they have acknowledged, as they would in production.
            embedded.start(redis_settings={"appendonly": True}) as servers,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop,
        ):
            demo = Demo(
                options=options,
                work=work,
                console=console,
                redis_url=servers.redis_url,
                database_url=servers.database_url,
            )
            return 0 if loop.run(demo.run()) else EXIT_OFF
    except* _EXPECTED as group:
        for error in _leaves(group):
            print(f"demo: {error}", file=sys.stderr)
    return EXIT_OFF


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
