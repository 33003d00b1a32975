"""What the pages show and what their buttons do, one module for each area."""

from __future__ import annotations

from runner.dashboard.views import (
    dead,
    flows,
    job,
    jobs,
    limits,
    overview,
    schedules,
    tasks,
    workers,
    writer,
)

_AREAS = (overview, tasks, jobs, job, dead, schedules, flows, workers, limits, writer)

PAGES = tuple(page for area in _AREAS for page in area.PAGES)
ACTIONS = tuple(action for area in _AREAS for action in area.ACTIONS)
MENU = tuple((page.path, page.title) for page in PAGES if not page.area)
"""Path and title of the pages that the menu names."""

__all__ = ["ACTIONS", "MENU", "PAGES"]
