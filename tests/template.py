"""What every test's own database holds at its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg


async def fill(connection: asyncpg.Connection) -> None:
    """Fill the template that each `database_url` is cloned from; once for a test run."""
