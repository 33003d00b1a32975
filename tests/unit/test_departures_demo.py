"""The demo's own parts: options, damage, the check against the file, bars, rates, the gate."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace as replace_fields

from jobs.demo import check
from jobs.demo.check import Difference, wrong_letters, wrong_routes
from jobs.demo.damage import KINDS, damage, mix
from jobs.demo.options import DIRECT_ROWS, OptionError, Options, parse
from jobs.demo.plots import rates
from jobs.demo.screen import Bar
from jobs.demo.services import Gate
from jobs.demo.watch import Connections, Sample
from jobs.departures import Route
from jobs.flights import Flight, FlightRow, by_carrier
from jobs.validation import BadRow, validate
from runner import Client
from runner.types import DeadLetter, QueueStats, WriterStatus

FIRST = FlightRow(
    *("2013", "1", "1", "2400", "2359", "1", "-4", "B6", "8", "N1", "JFK", "BQN", "190", "1576"),
    time_hour="2013-01-02T04:00:00Z",
)
FLIGHTS = [
    Flight(1, FIRST),
    Flight(2, replace_fields(FIRST, dep_delay="20", carrier="AA", tailnum="NA")),
    Flight(3, replace_fields(FIRST, dep_time="NA", dep_delay="NA", arr_delay="NA", air_time="NA")),
]


def test_nothing_asked_for_is_the_whole_year() -> None:
    assert parse([], {}) == Options()


def test_flags_and_environment_say_the_same() -> None:
    asked = Options(rows=2000, kill=True, bad=3, workers=4, seed=1, plot=False)
    flags = ["--rows=2000", "--kill", "--bad=3", "--workers=4", "--seed=1", "--plot=0"]
    environment = {"ROWS": "2,000", "KILL": "1", "BAD": "3", "WORKERS": "4", "SEED": "1"}
    assert parse(flags, {}) == asked
    assert parse([], environment | {"PLOT": "no"}) == asked


def test_a_flag_goes_before_the_environment() -> None:
    assert parse(["--rows", "5"], {"ROWS": "7", "KILL": ""}).rows == 5


def test_a_comparison_is_small_unless_asked_otherwise() -> None:
    assert parse(["--direct"], {}).rows == DIRECT_ROWS
    assert parse(["--direct"], {"ROWS": "100"}).rows == 100


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ROWS": "abc"}, "ROWS must be a whole number of at least 1, not 'abc'"),
        ({"ROWS": "0"}, "ROWS must be a whole number of at least 1, not '0'"),
        ({"BAD": "-1"}, "BAD must be a whole number of at least 0, not '-1'"),
        ({"WORKERS": "2.5"}, "WORKERS must be a whole number of at least 0, not '2.5'"),
        ({"KILL": "maybe"}, "KILL must be 1 or 0, not 'maybe'"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse([], environment)


def test_an_unknown_flag_is_an_option_error() -> None:
    with pytest.raises(OptionError, match="--row5"):
        parse(["--row5"], {})


def test_every_damaged_line_is_refused_for_the_field_that_was_damaged() -> None:
    for line in damage(FLIGHTS, 3 * len(KINDS), seed=1):
        with pytest.raises(BadRow) as caught:
            validate(*line.flight)
        assert (caught.value.row, caught.value.field) == (line.flight.row, line.field)


def test_damage_is_the_same_for_the_same_seed() -> None:
    assert damage(FLIGHTS, 8, seed=1) == damage(FLIGHTS, 8, seed=1)


def test_damaged_lines_are_mixed_in_and_the_others_keep_their_order() -> None:
    damaged = damage(FLIGHTS, 8, seed=1)
    mixed = mix(by_carrier(FLIGHTS), damaged, seed=1)
    rows = Counter(flight.row for group in mixed.values() for flight in group)
    assert rows == Counter([1, 2, 3, *(line.flight.row for line in damaged)])
    assert [flight for flight in mixed["B6"] if flight.row < 10] == [FLIGHTS[0], FLIGHTS[2]]


def test_the_sums_of_the_file() -> None:
    tables = check.expect(FLIGHTS).tables
    assert tables["airlines"] == {("B6",): (2, 1, 0, 1, 1576), ("AA",): (1, 0, 1, 20, 1576)}
    assert list(tables["airport_hours"].values()) == [(3, 1, 1, 21)]
    assert tables["aeroplanes"] == {("N1",): (2, 1, 1576, 190)}
    assert [row[4] for row in tables["departures"].values()] == ["N1", None, "N1"]


def test_a_difference_says_what_is_and_what_should_be() -> None:
    difference = Difference("airlines", "UA", "flights", 3, 2)
    assert str(difference) == "airlines UA: flights is 2, not 3"


def letter(row: int, error: str) -> DeadLetter:
    return DeadLetter(
        job_id="1",
        queue="arq:queue",
        task="record_departure",
        args=[row, []],
        kwargs={},
        attempt=1,
        outcome="cancelled",
        error_type="Cancel",
        error=error,
        traceback="",
        enqueued_ms=0,
        died_ms=0,
    )


def test_dead_letters_are_right_when_each_names_its_row_and_field() -> None:
    damaged = damage(FLIGHTS, 3, seed=1)
    good = [letter(d.flight.row, f"row {d.flight.row}: {d.field} is bad") for d in damaged]
    assert wrong_letters(good, damaged) == []
    missing, _, extra = wrong_letters([letter(1, "boom"), *good[1:2]], damaged)
    assert (missing.key, missing.found) == (str(damaged[0].flight.row), "absent")
    assert (extra.key, extra.found) == ("1", "boom")


def test_the_worst_routes_are_compared_in_order() -> None:
    expected = check.expect(FLIGHTS)
    right = Route(origin="JFK", dest="BQN", flights=2, delay_minutes=21)
    assert wrong_routes([right], expected, limit=1, at_least=1) == []
    assert len(wrong_routes([], expected, limit=1, at_least=1)) == 1
    wrong = Route(origin="JFK", dest="BQN", flights=2, delay_minutes=20)
    assert len(wrong_routes([wrong], expected, limit=1, at_least=1)) == 1


@pytest.mark.parametrize(
    ("done", "sent", "total", "parts"),
    [
        (0, 0, 10, (0, 0)),
        (5, 8, 10, (5, 3)),
        (10, 10, 10, (10, 0)),
        (3, 1, 10, (3, 0)),
        (0, 0, 0, (10, 0)),
    ],
)
def test_a_bar_has_three_parts(done: int, sent: int, total: int, parts: tuple[int, int]) -> None:
    text = Bar(done=done, sent=sent, total=total).text(10)
    lengths = {str(span.style): span.end - span.start for span in text.spans}
    assert len(text) == 10
    assert (lengths.get("green", 0), lengths.get("yellow", 0)) == parts


QUEUE = QueueStats(queued=0, running=0, succeeded=0, failed=0, retried=0, crashed=0, dead=0)
WRITER = WriterStatus(
    leader="",
    position="0-0",
    backlog=0,
    backlog_bytes=0,
    lag_s=0,
    units=0,
    operations=0,
    batches=0,
    rejected=0,
)


def test_rates_are_means_over_a_few_seconds() -> None:
    samples = [
        Sample(at_s=at, committed={"UA": done}, queue=QUEUE, writer=WRITER)
        for at, done in [(0.0, 0), (1.0, 100), (2.0, 100), (3.0, 400), (4.0, 400)]
    ]
    assert rates(samples, 2.0) == [(1.0, 100.0), (2.0, 50.0), (3.0, 150.0), (4.0, 150.0)]


async def test_the_gate_lets_in_what_the_queue_has_room_for() -> None:
    @dataclass
    class Queue:
        queued: int = 0

        async def queue_stats(self) -> QueueStats:
            return replace(QUEUE, queued=self.queued)

    queue = Queue()
    gate = Gate(client=cast(Client, queue), most=100)
    await gate.take(60)
    queue.queued = 60
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gate.take(60), 0.01)
    queue.queued = 10
    await asyncio.wait_for(gate.take(60), 5)


async def test_connections_are_counted_by_name() -> None:
    class Postgres:
        seen: list[dict[str, Any]]

        async def fetch(self, _sql: str) -> list[dict[str, Any]]:
            return self.seen

    postgres, connections = Postgres(), Connections()
    for pids in ([1, 2], [3]):
        postgres.seen = [{"name": "writer", "pid": pid} for pid in pids]
        await connections.sample(cast(Any, postgres))
    assert (connections.most, connections.now) == (2, 1)
    assert connections.peak == {"writer": 2}
    assert connections.opened == {"writer": 3}


def test_files_of_a_run_can_go_elsewhere() -> None:
    assert parse(["--folder", "here"], {}).folder == Path("here")
