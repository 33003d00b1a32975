"""Hear of Python files that change, for ``--reload``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

SHOWN = 3


async def changes(folders: Sequence[Path]) -> AsyncIterator[str]:
    """Yield a description of each set of Python files that have changed."""
    from watchfiles import PythonFilter, awatch  # noqa: PLC0415  an extra: only when asked for

    here = Path.cwd()
    async for changed in awatch(*folders, watch_filter=PythonFilter()):
        names = sorted({_shown(Path(path), here) for _, path in changed})
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"{', '.join(names[:SHOWN])}{more} changed"


def _shown(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
