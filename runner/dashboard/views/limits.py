"""Limits: what holds, who waits for it; set one, or let the code's value hold again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.dashboard.pages import Action, Page
from runner.errors import LimitError

if TYPE_CHECKING:
    from runner.dashboard.asked import Asked
    from runner.dashboard.desk import Desk
    from runner.dashboard.pages import Shown

BUCKETS = 20
MOST_DIGITS = 9


async def load(desk: Desk, asked: Asked) -> Shown:  # noqa: ARG001  each page's loader takes both
    """Read the limits."""
    return {
        "infos": await (await desk.client()).limits.list(),
        "buckets": BUCKETS,
        "names": await desk.names_of_tasks(),
    }


async def put(desk: Desk, asked: Asked) -> str:
    """Set a limit, by its name or on a task: ``20/m`` is a rate, ``3`` so many at once."""
    name, task = asked.text("name"), asked.text("task")
    value = asked.text("value")
    if not value:
        raise LimitError("Say what to allow: 20/m is a rate, 3 so many jobs at once.")
    burst = asked.text("burst")
    if burst and not asked.number("burst"):
        raise LimitError("Burst is a whole number, 1 or more.")
    is_count = value.isascii() and value.isdigit() and len(value) <= MOST_DIGITS
    declared, key = desk.tasks.get(task), asked.text("key")
    if declared is not None and key:
        declared.signature.check_parameter(task, key)
    info = await (await desk.client()).limits.set(
        None if task else name,
        task=task or None,
        rate=None if is_count else value,
        max_running=int(value) if is_count else None,
        burst=asked.number("burst") or None,
        key=key or None,
    )
    return f"{info.name} is {info.rule} from now on, in all workers."


async def clear(desk: Desk, asked: Asked) -> str:
    """Let the code's value hold again."""
    name = asked.id("name")
    info = await (await desk.client()).limits.clear(name)
    if info is None:
        return f"There is no limit {name} any more."
    return f"{name} is {info.rule} again."


PAGES = (Page("/limits", "Limits", "limits.html", load),)
ACTIONS = (Action("/limits/set", put), Action("/limits/clear", clear))
