"""What of a worker is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.errors import SettingsError
from runner.watch.recycling import MB, Limits

if TYPE_CHECKING:
    from typing import Any

LEFT_TASKS = ("ignore", "report", "cancel")
"""What may be done about asyncio tasks that a job leaves behind."""

LEFT_RESOURCES = ("ignore", "report")
"""What may be done about sockets and connections that are destroyed unclosed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings:
    """What is looked at; what is None is not.

    Attributes:
        limits: when the process is to be replaced.
        blocked_after_s: how long the loop may stand still.
        overdue_factor: how many times its usual time a job may take.
        vitals_s: how often subscribers hear what the process holds.
        left_tasks: one of `LEFT_TASKS`.
        left_resources: one of `LEFT_RESOURCES`.
    """

    limits: Limits
    blocked_after_s: float | None
    overdue_factor: float | None
    vitals_s: float | None
    left_tasks: str
    left_resources: str


def watch_settings(  # the names are those of the worker's settings
    *,
    max_jobs: int | None,
    max_memory_mb: float | None,
    max_memory_hard_mb: float | None,
    max_age: float | None,
    blocked_after: float | None,
    overdue_factor: float | None,
    left_tasks: str,
    left_resources: str,
    vitals_interval: float | None,
) -> WatchSettings:
    """Put the settings of a worker together; raise `SettingsError` for what makes no sense."""
    positive: dict[str, Any] = {
        "max_jobs_per_process": max_jobs,
        "max_memory_mb": max_memory_mb,
        "max_memory_hard_mb": max_memory_hard_mb,
        "max_age": max_age,
        "blocked_after": blocked_after,
        "vitals_interval": vitals_interval,
    }
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise SettingsError(f"{name} is {value!r}, but must be more than 0, or None")
    if overdue_factor is not None and not overdue_factor >= 1:
        raise SettingsError(f"overdue_factor is {overdue_factor!r}, but must be 1 or more, or None")
    if left_tasks not in LEFT_TASKS:
        raise SettingsError(f"left_tasks is {left_tasks!r}, but must be one of {LEFT_TASKS}")
    if left_resources not in LEFT_RESOURCES:
        raise SettingsError(
            f"left_resources is {left_resources!r}, but must be one of {LEFT_RESOURCES}"
        )
    if None not in (max_memory_mb, max_memory_hard_mb) and max_memory_hard_mb < max_memory_mb:  # type: ignore[operator]
        raise SettingsError(
            f"max_memory_hard_mb is {max_memory_hard_mb}, but must be at least max_memory_mb, "
            f"{max_memory_mb}"
        )
    return WatchSettings(
        limits=Limits(
            jobs=max_jobs,
            soft=_bytes(max_memory_mb),
            hard=_bytes(max_memory_hard_mb),
            age_s=max_age,
        ),
        blocked_after_s=blocked_after,
        overdue_factor=overdue_factor,
        vitals_s=vitals_interval,
        left_tasks=left_tasks,
        left_resources=left_resources,
    )


def _bytes(megabytes: float | None) -> int | None:
    return None if megabytes is None else int(megabytes * MB)
