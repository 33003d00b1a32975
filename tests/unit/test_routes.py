"""The ranking of a year's routes: its shape, and its sums."""

from __future__ import annotations

from typing import Any

from jobs.departures import Route
from jobs.routes import rank_routes, ranking_of_year, sum_delays
from runner.workflow.flow import flow_of
from settings import WorkerSettings


async def test_parts_are_summed_and_ranked() -> None:
    january = [Route("EWR", "TYS", 10, 400), Route("JFK", "BOS", 20, 100)]
    february = [Route("EWR", "TYS", 10, 0), Route("LGA", "CAE", 9, 900)]
    summed = await sum_delays({}, [january, february])
    assert Route("EWR", "TYS", 20, 400) in summed
    ranked = await rank_routes({}, [january, february], limit=2)
    assert ranked == [Route("EWR", "TYS", 20, 400), Route("JFK", "BOS", 20, 100)]


def test_year_is_months_of_days_and_one_ranking() -> None:
    flow = flow_of(ranking_of_year(2013))
    graph = flow.graph()
    days = [day for each in flow.nodes() for day in _days_of(each)]
    assert len(days) == len(set(days)) == 365
    assert len(graph.nodes["rank_routes"].after) == 12
    assert graph.sinks() == ["rank_routes"]


def test_workers_know_the_tasks_of_the_flow() -> None:
    known = {getattr(function, "name", "") for function in WorkerSettings.functions}
    assert {
        each.call.task.name for each in flow_of(ranking_of_year(2013)).nodes() if each.call
    } <= known


def _days_of(each: Any) -> list[Any]:
    return each.call.args[0] if each.call.task.name == "delays_of_days" else []
