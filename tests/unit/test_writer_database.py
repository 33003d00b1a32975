"""A job's database where it reaches nobody: what a commit that was given up leaves behind."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from runner import Context
from runner.errors import CommitTimeout, UnitError, WriterUnavailable
from runner.types import Committed
from runner.writer import JobCommits, JobDatabase


class Unreachable:
    """Commits while Redis does not answer."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def submit(self, *_: Any, **__: Any) -> Any:
        self.begun.set()
        await asyncio.Event().wait()


def context(commits: object) -> Context:
    return Context({}, None, cast("JobCommits", commits))


async def test_with_nothing_collected_a_commit_returns_at_once() -> None:
    assert await JobDatabase().commit() == Committed()


async def test_outside_a_worker_nothing_can_be_committed() -> None:
    database = JobDatabase()
    database.insert("t", id=1)
    with pytest.raises(WriterUnavailable, match="no worker here"):
        await database.commit()
    assert len(database) == 1


async def test_a_job_cannot_end_behind_a_commit_that_may_not_have_been_submitted() -> None:
    ctx = context(Unreachable())
    ctx.db.insert("t", id=1)
    with pytest.raises(CommitTimeout, match="it may be on its way"):
        await ctx.db.commit(timeout=0.01)
    ctx.db.insert("t", id=2)
    with pytest.raises(WriterUnavailable, match="commit number 1 was given up"):
        await ctx.db.commit()
    with pytest.raises(WriterUnavailable, match="commit number 1 was given up"):
        ctx.unit()


async def test_neither_can_one_that_caught_its_cancellation() -> None:
    commits = Unreachable()
    ctx = context(commits)
    ctx.db.insert("t", id=1)
    task = asyncio.create_task(ctx.db.commit())
    await commits.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(WriterUnavailable):
        ctx.unit()


def test_rows_asked_for_must_be_fetched_by_a_commit() -> None:
    ctx = Context({})
    assert ctx.unit() == b""
    ctx.db.insert("t", id=1, returning=True)
    with pytest.raises(UnitError, match="commit"):
        ctx.unit()
