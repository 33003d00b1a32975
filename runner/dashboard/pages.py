"""What a page is, and what an action is: views make them, the app serves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from runner.dashboard.asked import Asked
    from runner.dashboard.desk import Desk

Shown: TypeAlias = dict[str, Any]
"""What a template shows, by the names that it uses."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page.

    Attributes:
        path: where it is, below the dashboard's own place.
        title: what it is called.
        template: the file that shows it; its block "live" is sent again when it changes.
        load: reads what it shows.
        area: the path of the entry of the menu that it belongs to.
    """

    path: str
    title: str
    template: str
    load: Callable[[Desk, Asked], Awaitable[Shown]]
    area: str = ""


@dataclass(frozen=True, slots=True)
class Action:
    """Something that changes something, by POST.

    Attributes:
        path: where the form is sent.
        act: does it, and returns what to say.
    """

    path: str
    act: Callable[[Desk, Asked], Awaitable[str]]


class NotThere(Exception):  # noqa: N818  no failure of ours
    """Raised when what a page is about does not exist."""


__all__ = ["Action", "NotThere", "Page", "Shown"]
