"""Batches leave the same rows, and refuse the same units, as one unit at a time would.

``make test`` runs 200 examples; ``EXAMPLES=5000 make test ARGS=tests/integration/\
test_writer_exact_order.py`` more.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from runner.writer.batch import Batch
from tests.integration import exact_order
from tests.integration.exact_order import FAMILIES, Op, rows_of, run_exactly
from tests.integration.test_writer_support import Bench, bench, unit
from tests.servers import Addresses, database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncpg import Connection, Record

EXAMPLES = int(os.environ.get("EXAMPLES", "200"))

pytestmark = pytest.mark.timeout(max(120, EXAMPLES))

Units = list[tuple[Op, ...]]


@dataclass(frozen=True, slots=True)
class Case:
    """Units for one batch.

    Attributes:
        there: units that were applied before, one at a time.
        units: the units.
        bad_ones: None for all of them; else those that pass one at a time, and of the others
            those at these places, so that more batches pass as a whole.
    """

    there: Units
    units: Units
    bad_ones: tuple[int, ...] | None

    def chosen(self, verdicts: list[bool]) -> Units:
        assert self.bad_ones is not None
        others = [at for at, passes in enumerate(verdicts) if not passes]
        bad = {others[place % len(others)] for place in self.bad_ones if others}
        return [ops for at, ops in enumerate(self.units) if verdicts[at] or at in bad]


@dataclass(slots=True)
class Pair:
    """Two databases with the same tables: one for batches, one for the judge."""

    runner: asyncio.Runner
    batched: Bench
    exact: Connection[Record]
    numbers: itertools.count[int]

    def check(self, case: Case) -> None:
        self.runner.run(self._check(case))

    async def _check(self, case: Case) -> None:
        units = case.units
        if case.bad_ones is not None:
            await self._begin(case)
            verdicts, _ = await run_exactly(self.exact, units, [False] * len(units))
            units = case.chosen(verdicts)
        await self._begin(case)
        entries = [unit(next(self.numbers), *(op.give for op in ops)) for ops in units]
        if not entries:
            return
        refused = await self.batched.batches.apply(Batch(entries))
        accepted = [entry.entry not in refused for entry in entries]
        verdicts, relaxed = await run_exactly(self.exact, units, accepted)
        event(f"refused: {min(len(refused), 2)}, relaxed: {bool(relaxed)}")
        told = [f"{at}: {why}" for at, why in refused.items()]
        assert accepted == verdicts, (units, told)
        batched, exact = await asyncio.gather(rows_of(self.batched.connection), rows_of(self.exact))
        assert batched == exact, units

    async def _begin(self, case: Case) -> None:
        await asyncio.gather(
            *(_begin(each, case.there) for each in (self.batched.connection, self.exact))
        )


async def _begin(connection: Connection[Record], there: Units) -> None:
    await exact_order.empty(connection)
    await run_exactly(connection, there, [False] * len(there))


@pytest.fixture(scope="module")
def pair(server_addresses: Addresses) -> Iterator[Pair]:
    with (
        pytest.MonkeyPatch.context() as patch,
        database(server_addresses) as one,
        database(server_addresses) as other,
        asyncio.Runner() as runner,
    ):
        # Thousands of units are refused on purpose.
        patch.setattr(logging.getLogger("runner.writer"), "disabled", True)
        stack = contextlib.AsyncExitStack()
        try:
            yield runner.run(_open(stack, one, other, runner))
        finally:
            runner.run(stack.aclose())


async def _open(
    stack: contextlib.AsyncExitStack, one: str, other: str, runner: asyncio.Runner
) -> Pair:
    batched = await stack.enter_async_context(bench(one, exact_order.SCHEMA))
    # Of a custom plan, Postgres works out the constants first: an UPDATE of no row would fail by
    # a value that no row has to take, as often as Postgres likes such plans.
    plans = {"plan_cache_mode": "force_generic_plan"}
    exact = await asyncpg.connect(other, server_settings=plans)
    stack.push_async_callback(exact.close)
    await exact.execute(exact_order.SCHEMA)
    return Pair(runner, batched, exact, itertools.count(1))


POOLS = [exact_order.operations_of(family) for family in FAMILIES]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    # A few operations again and again meet each other more often than many do.
    pool = st.sampled_from(draw(st.sampled_from(POOLS)))
    op = st.sampled_from(draw(st.lists(pool, min_size=2, max_size=8)))
    unit = st.lists(op, min_size=1, max_size=4).map(tuple)
    return Case(
        there=draw(st.lists(st.tuples(op), max_size=6)),
        units=draw(st.lists(unit, min_size=1, max_size=40)),
        bad_ones=draw(st.none() | st.tuples() | st.tuples(st.integers(0, 40))),
    )


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
@given(cases())
def test_batches_do_what_exact_order_does(pair: Pair, case: Case) -> None:
    pair.check(case)
