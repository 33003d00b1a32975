"""Make logs readable on a terminal, and JSON in production.

Everything is logged through the standard library; `structlog` formats it and adds what is
bound to the job that speaks: its id, its task, its attempt. ``RUNNER_LOG`` chooses:
``plain`` leaves arq's own lines as they are, ``console`` colours them, ``json`` writes one
object a line.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, TextIO

import structlog

from runner.errors import SettingsError, did_you_mean

if TYPE_CHECKING:
    from structlog.typing import Processor

FORMATS = ("plain", "console", "json")
VARIABLE = "RUNNER_LOG"
ARQ_HANDLER = "arq.standard"


def chosen_format() -> str:
    """Return the format that the environment asks for; raise `SettingsError` if unknown."""
    name = os.environ.get(VARIABLE, "plain")
    if name not in FORMATS:
        raise SettingsError(
            f"{VARIABLE}={name!r} is unknown{did_you_mean(name, FORMATS)}; known: {FORMATS}",
        )
    return name


def configure(name: str | None = None, *, stream: TextIO | None = None) -> None:
    """Format all logs of this process.

    Args:
        name: "plain", "console" or "json"; None asks the environment.
        stream: where lines go; standard error by default.

    arq's command line sets a handler of its own for logger ``arq``. It stays for "plain",
    and makes way for the others, unless ``--custom-log-dict`` put another there.
    """
    name = name or chosen_format()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.set_name(f"runner.{name}")
    handler.setFormatter(_formatter(name, shared))
    root = logging.getLogger()
    for old in list(root.handlers):
        if (old.get_name() or "").startswith("runner."):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    arq_logger = logging.getLogger("arq")
    if name == "plain":
        # arq's own handler, where its command line has set one, would write lines twice.
        arq_logger.propagate = not arq_logger.handlers
        return
    for old in list(arq_logger.handlers):
        if old.get_name() == ARQ_HANDLER:
            arq_logger.removeHandler(old)
    arq_logger.propagate = True


def _formatter(name: str, shared: list[Processor]) -> logging.Formatter:
    renderers: list[Processor]
    if name == "json":
        renderers = [
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ]
    elif name == "console":
        renderers = [structlog.dev.ConsoleRenderer()]
    else:
        return logging.Formatter("%(asctime)s: %(message)s", datefmt="%H:%M:%S")
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(allow=["extra"])],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
    )
