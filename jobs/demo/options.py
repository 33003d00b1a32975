"""What a run is asked to do: flags, or environment variables of the same names."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
"""The root of the repository, where `settings.py` lies."""

DIRECT_ROWS = 20_000
"""The default size of a comparison: the old way takes minutes for so many rows."""

_YES = {"1", "true", "yes", "on"}
_NO = {"0", "false", "no", "off"}


class OptionError(ValueError):
    """Raised when an option cannot be understood; the message says what would be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the run shall do.

    Attributes:
        rows: how many departures, None for all of them.
        bad: how many damaged lines to mix in.
        workers: how many worker processes; 0: workers and writer run elsewhere already.
        kill: whether to kill a process with SIGKILL every few seconds.
        direct: whether to do the same work the old way afterwards, for comparison.
        seed: of everything random: the damage, and who is killed.
        plot: whether to draw the run.
        folder: where logs and plots go.
    """

    rows: int | None = None
    bad: int = 8
    workers: int = 2
    kill: bool = False
    direct: bool = False
    seed: int = 2013
    plot: bool = True
    folder: Path = ROOT / ".runner"


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Options:
    """Return the options; a flag goes before an environment variable.

    Raises:
        OptionError: a value makes no sense.
        SystemExit: --help was asked for.
    """
    given = {
        name.lower(): text for name in _NAMES if (text := environment.get(name, "").strip())
    } | {name: text for name, text in vars(_parser().parse_args(arguments)).items() if text}
    direct = _yes_or_no("DIRECT", given.get("direct", "0"))
    rows = given.get("rows")
    if given.get("workers") == "0" and given.get("kill", "0").lower() in _YES:
        raise OptionError("KILL=1 kills processes of the demo: it needs WORKERS of at least 1")
    elsewhere = "REDIS_URL" in environment and "DATABASE_URL" in environment
    if given.get("workers") == "0" and not elsewhere:
        raise OptionError(
            "WORKERS=0 means that workers run elsewhere: set REDIS_URL and DATABASE_URL to theirs",
        )
    return Options(
        rows=_whole("ROWS", rows, 1) if rows else (DIRECT_ROWS if direct else None),
        bad=_whole("BAD", given.get("bad", "8"), 0),
        workers=_whole("WORKERS", given.get("workers", "2"), 0),
        kill=_yes_or_no("KILL", given.get("kill", "0")),
        direct=direct,
        seed=_whole("SEED", given.get("seed", "2013"), 0),
        plot=_yes_or_no("PLOT", given.get("plot", "1")),
        folder=Path(given["folder"]) if "folder" in given else ROOT / ".runner",
    )


_NAMES = ("ROWS", "BAD", "WORKERS", "KILL", "DIRECT", "SEED", "PLOT", "FOLDER")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints travel as `OptionError`."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m jobs.demo",
        description="A year of real departures from sixteen services, through one writer.",
        epilog="Each option is also an environment variable: ROWS=20000 KILL=1 make demo.",
    )
    parser.add_argument("--rows", metavar="N", help="departures to record (default: all)")
    parser.add_argument("--bad", metavar="N", help="damaged lines to mix in (default: 8)")
    parser.add_argument(
        "--workers", metavar="N", help="worker processes (default: 2; 0: they run elsewhere)"
    )
    parser.add_argument("--seed", metavar="N", help="of everything random (default: 2013)")
    parser.add_argument("--plot", metavar="0|1", help="draw the run (default: 1)")
    parser.add_argument("--folder", metavar="DIR", help="for logs and plots (default: .runner)")
    parser.add_argument(
        "--kill",
        nargs="?",
        const="1",
        metavar="0|1",
        help="kill a worker or the writer with SIGKILL every few seconds",
    )
    parser.add_argument(
        "--direct",
        nargs="?",
        const="1",
        metavar="0|1",
        help="then do the same work with a pool of connections for each service, and compare "
        f"({DIRECT_ROWS:,} rows unless --rows says otherwise)",
    )
    return parser


def _whole(name: str, text: str, least: int) -> int:
    digits = text.replace("_", "").replace(",", "")
    if not digits.isdecimal() or int(digits) < least:
        raise OptionError(f"{name} must be a whole number of at least {least}, not {text!r}")
    return int(digits)


def _yes_or_no(name: str, text: str) -> bool:
    if text.lower() not in _YES | _NO:
        raise OptionError(f"{name} must be 1 or 0, not {text!r}")
    return text.lower() in _YES
