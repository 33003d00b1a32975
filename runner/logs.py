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
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

from runner.errors import SettingsError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextvars import Context

    from structlog.typing import Processor

FORMATS = ("plain", "console", "json")
VARIABLE = "RUNNER_LOG"
ARQ_HANDLER = "arq.standard"

Jobs: TypeAlias = tuple[tuple[str, int], ...]

speaker: ContextVar[tuple[Any, ...]] = ContextVar("runner_speaker", default=())
"""Who speaks, where somebody wants to know: a worker, a task, then a job's id and its attempt, and
so on. Flat, as each job of a drain makes one."""

_kept = 0  # how many in this process keep the lines of jobs, or look whose a task is
_unconfigured = False  # structlog, which nobody had imported yet when `configure` was called


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
    global _unconfigured  # noqa: PLW0603  a process has one
    name = name or chosen_format()
    _unconfigured = name == "plain" and "structlog" not in sys.modules
    if not _unconfigured:
        _configure_structlog()
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.set_name(f"runner.{name}")
    handler.setFormatter(_formatter(name))
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


def bind(job_id: str, task: str, attempt: int, worker: str = "") -> None:
    """Let what is logged from here on in this context say which job speaks.

    Plain lines need no structlog. While nobody has imported it, nobody reads what is bound.
    """
    global _unconfigured  # noqa: PLW0603  as above
    if _kept:
        speaker.set((worker, task, job_id, attempt))
    structlog = sys.modules.get("structlog")
    if structlog is None:
        return
    if _unconfigured:
        _unconfigured = False
        _configure_structlog()
    structlog.contextvars.bind_contextvars(job_id=job_id, task=task, attempt=attempt)


def bind_all(jobs: Sequence[tuple[str, int]]) -> None:
    """Let what is logged from here on in this context be what all these jobs of a worker say.

    One of them speaks already: the context is a copy of its own.
    """
    one = speaker.get()
    if one:
        speaker.set((*one[:2], *(part for job in jobs for part in job)))
    structlog = sys.modules.get("structlog")
    if structlog is not None and len(jobs) > 1:
        structlog.contextvars.bind_contextvars(job_id=f"{jobs[0][0]} and {len(jobs) - 1} more")


def speaking_for(worker: str) -> Jobs:
    """Return the jobs of a worker that speak here, none where others do, or nobody."""
    said = speaker.get()
    if not said or said[0] != worker:
        return ()
    return tuple(zip(said[2::2], said[3::2], strict=True))


def speaker_in(context: Context) -> tuple[str, str, int]:
    """Return the id of the job that speaks in a context, its task and attempt; "" for none."""
    _, task, job_id, attempt, *_ = context.get(speaker, ()) or ("", "", "", 0)
    return job_id, task, attempt


def keep_lines(*, keeps: bool) -> None:
    """Note who speaks from now on, for one more who asks; or for one less."""
    global _kept  # noqa: PLW0603  as above
    _kept += 1 if keeps else -1


def _configure_structlog() -> None:
    import structlog  # noqa: PLC0415  with rich, which it imports, 5 MB

    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _shared() -> list[Processor]:
    import structlog  # noqa: PLC0415  as above

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _formatter(name: str) -> logging.Formatter:
    if name == "plain":
        return logging.Formatter("%(asctime)s: %(message)s", datefmt="%H:%M:%S")
    import structlog  # noqa: PLC0415  as above

    renderers: list[Processor]
    if name == "json":
        renderers = [
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ]
    else:
        renderers = [structlog.dev.ConsoleRenderer()]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_shared(), structlog.stdlib.ExtraAdder(allow=["extra"])],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
    )
