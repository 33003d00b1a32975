"""The demo as a person runs it: exact, exact under kills, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from jobs.demo import check
from jobs.demo.fleet import Fleet, FleetError
from jobs.departures import schema
from jobs.flights import load_flights
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
LONG_S = 60
FLEET = 3  # two workers and a writer

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(150),
]


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "DATABASE_URL", "ROWS", "KILL", "DIRECT", "BAD", "WORKERS", "SEED"):
        monkeypatch.delenv(name, raising=False)


async def start(folder: Path, *flags: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "jobs.demo", "--folder", str(folder), *flags),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )


async def run(folder: Path, *flags: str) -> tuple[int | None, str]:
    process = await start(folder, *flags)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 2 * LONG_S)
    except TimeoutError:
        process.send_signal(signal.SIGINT)
        output, _ = await process.communicate()
        raise AssertionError(f"the demo did not end:\n{output.decode()}") from None
    return process.returncode, output.decode()


def figure(output: str, label: str) -> str:
    """Return what the table says behind a label."""
    found = re.search(rf"│ {re.escape(label)} +│ +(\S+) │", output)
    assert found, f"no {label!r} in:\n{output}"
    return found[1]


def descendants(pid: int) -> set[tuple[int, str]]:
    """Return the processes that a process has started, each with the time of its start."""
    processes = dict(_processes())
    found = {pid}
    while more := {c for c, (parent, _) in processes.items() if parent in found} - found:
        found |= more
    return {(child, processes[child][1]) for child in found - {pid}}


def alive(processes: set[tuple[int, str]]) -> set[tuple[int, str]]:
    """Return those that still run; a number that another process got since is not counted."""
    return processes & {(pid, began) for pid, (_, began) in _processes()}


def _processes() -> Iterator[tuple[int, tuple[int, str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:  # it has ended
                continue
            state, parent, *rest = stat.rpartition(")")[2].split()
            if state != "Z":
                yield int(entry.name), (int(parent), rest[17])


async def test_every_total_is_exact(tmp_path: Path) -> None:
    code, output = await run(tmp_path, "--rows=2000", "--plot=1")
    assert code == 0, output
    assert "Exact: all 2,000 departures" in output
    assert figure(output, "departures") == "2,000"
    assert figure(output, "bad lines refused") == "8"
    assert figure(output, "deadlocks") == "0"
    assert "The worst routes" in output
    assert "jobs of the flow are done (100%)" in output
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


async def test_every_total_is_exact_when_workers_and_the_writer_are_killed(tmp_path: Path) -> None:
    code, output = await run(tmp_path, "--rows=2000", "--kill", "--plot=0")
    assert code == 0, output
    assert "Exact: all 2,000 departures" in output
    assert re.search(r"SIGKILL to worker-\d", output)
    assert output.count("SIGKILL to ") >= 2


async def test_the_old_way_is_put_beside_ours(tmp_path: Path) -> None:
    code, output = await run(tmp_path, "--rows=200", "--direct", "--bad=0", "--plot=0")
    assert code == 0, output
    assert re.search(r"│ one writer │ +direct │ direct, one order │", output), output
    assert re.search(r"│ departures +│ +200 │ +200 │ +200 │", output), output


async def test_what_is_off_is_named(empty_database_url: str) -> None:
    flights = load_flights(3)
    expected = check.expect(flights)
    connection = await asyncpg.connect(empty_database_url)
    try:
        await connection.execute(schema())
        await connection.execute("UPDATE airlines SET flights = 7 WHERE carrier = 'WN'")
        await connection.execute("INSERT INTO aeroplanes VALUES ('N0', 1, 0, 0, 0)")
        found = [str(d) for d in await check.differences(connection, expected)]
    finally:
        await connection.close()
    assert "airlines WN: the row is there, not absent" in found
    assert "aeroplanes N0: the row is there, not absent" in found
    assert f"departures {flights[0].row}: the row is missing, not there" in found
    carrier = flights[0].fields.carrier
    sent = expected.tables["airlines"][carrier,][0]
    assert f"airlines {carrier}: flights is 0, not {sent}" in found


async def test_a_process_that_keeps_ending_ends_the_run(tmp_path: Path) -> None:
    said: list[str] = []
    fleet = Fleet(environment={}, logs=tmp_path, say=said.append)
    fleet.plan(1)
    worker = fleet.members[0]
    worker.command = ("no_such_module",)
    with pytest.raises(FleetError, match="No module named no_such_module"):
        await fleet.keep_running(worker)
    await fleet.stop()
    assert len(said) == 3
    assert said[0].startswith("worker-1 ended by itself with exit code 1; starting it again")


@pytest.fixture
def _in_the_background() -> Iterator[None]:
    """Ignore SIGINT, as a shell does for what it starts with ``&``: children inherit it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_in_the_background")
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGINT, 128 + signal.SIGINT),
        (signal.SIGTERM, 128 + signal.SIGTERM),
    ],
    ids=["SIGKILL", "Ctrl-C", "SIGTERM"],
)
async def test_no_process_is_left(tmp_path: Path, number: signal.Signals, code: int) -> None:
    demo = await start(tmp_path, "--plot=0")
    try:
        started = await wait_until(
            lambda: _all_started(demo.pid),
            description="two workers and a writer run",
            timeout_s=LONG_S,
        )
        demo.send_signal(number)
        output, _ = await asyncio.wait_for(demo.communicate(), LONG_S)
        assert demo.returncode == code, output.decode()
        await wait_until(
            lambda: not alive(started),
            description="every process of the demo has ended",
            timeout_s=LONG_S,
        )
    finally:
        if demo.returncode is None:
            os.kill(demo.pid, signal.SIGKILL)
            await demo.communicate()


def _all_started(pid: int) -> set[tuple[int, str]]:
    found = descendants(pid)
    fleet = [child for child, _ in found if _command(child).endswith("settings.WorkerSettings")]
    tied = [child for child in fleet if "tied.py" not in _command(child)]
    return found if len(tied) == FLEET else set()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").rstrip("\0")
    except OSError:  # it has ended
        return ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows=abc"], "demo: ROWS must be a whole number of at least 1, not 'abc'"),
        (["--speed=9"], "demo: unrecognized arguments: --speed=9"),
    ],
)
async def test_a_wrong_option_is_one_clear_line(
    tmp_path: Path, flags: list[str], message: str
) -> None:
    code, output = await run(tmp_path, *flags)
    assert (code, output.strip()) == (2, message)
