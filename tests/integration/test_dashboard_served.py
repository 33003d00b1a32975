"""``runner dashboard`` as a process: where it listens, how it stops; its parts that are pure."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from click.testing import CliRunner

from runner.cli import main
from runner.dashboard import texts
from runner.dashboard.access import is_loopback
from runner.dashboard.asked import address, fields_of, spelled
from runner.dashboard.drawing import ALIKE, arrange, boxes_of, draw
from runner.dashboard.serve import check_place
from runner.errors import ArgumentsError, SettingsError
from runner.workflow import NodeInfo, NodeState
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SETTINGS = """
import os

import runner
from runner import Context, RedisSettings, task


@task
async def works(_ctx: Context, number: int) -> int:
    return number


class WorkerSettings(runner.WorkerSettings):
    functions = (works,)
    queues = ("mail", "reports")
    redis_settings = RedisSettings.from_dsn(os.environ.get("REDIS_URL", "redis://localhost"))
"""


@asynccontextmanager
async def served(folder: Path, redis_url: str, *options: str) -> AsyncIterator[tuple[str, Any]]:
    """Run the command on a free port; give its address and its process."""
    (folder / "own.py").write_text(SETTINGS, "utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "runner.cli", "dashboard", "own.WorkerSettings", "--port", "0"),
        *options,
        cwd=folder,
        env={"REDIS_URL": redis_url, "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        while True:
            line = (await asyncio.wait_for(process.stderr.readline(), 30)).decode()
            assert line, "the dashboard ended"
            if found := re.search(r"running on (http://\S+)", line):
                break
        yield found[1], process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize(
    ("ending", "statuses"), [(signal.SIGTERM, (0, -signal.SIGTERM)), (signal.SIGINT, (0,))]
)
async def test_the_command_serves_and_stops_though_somebody_looks(
    tmp_path: Path, redis_url: str, ending: signal.Signals, statuses: tuple[int, ...]
) -> None:
    async with (
        served(tmp_path, redis_url) as (base, process),
        httpx.AsyncClient(base_url=base, timeout=30) as http,
    ):
        page = await http.get("/tasks")
        assert page.status_code == 200
        assert "works" in page.text
        assert "mail" in (await http.get("/")).text
        async with http.stream("GET", "/", headers={"accept": "text/event-stream"}) as stream:
            lines = stream.aiter_lines()
            async for line in lines:
                if line == "event: page":
                    break
            process.send_signal(ending)
            assert await asyncio.wait_for(process.wait(), 20) in statuses


async def test_behind_a_proxy_that_takes_a_part_of_the_path_links_have_it(
    tmp_path: Path, redis_url: str
) -> None:
    async with (
        served(tmp_path, redis_url, "--root-path", "/admin/jobs") as (base, _),
        httpx.AsyncClient(base_url=base, timeout=30) as http,
    ):
        page = await http.get("/tasks")
        assert page.status_code == 200
        links = re.findall(r'(?:href|src|action)="(/[^"]*)"', page.text)
        assert links
        assert all(link.startswith("/admin/jobs/") for link in links)


def test_it_listens_where_others_reach_it_with_a_password_alone(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "dash.example.com", ""):
        with pytest.raises(SettingsError, match="no password"):
            check_place(host, None)
        check_place(host, "a password")
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        check_place(host, None)
        assert is_loopback(host)
    result = CliRunner().invoke(
        main, ["dashboard", "own.WorkerSettings", "--host", "0.0.0.0"], env={"HOME": str(tmp_path)}
    )
    assert result.exit_code == 1
    assert "no password" in result.output


def test_ids_come_back_as_the_bytes_they_are() -> None:
    for text in ("plain", "a/b?c=d&e", "é", "\udcff\x00", "100%25", " spaces "):
        link = address("/root", "/job", id=text, empty="", none=None)
        assert link.isascii()
        assert fields_of(link.partition("?")[2].encode())["id"] == text
        assert spelled(text).isascii()
    with pytest.raises(ArgumentsError):
        fields_of(b"&".join(b"a%d=1" % number for number in range(200)))


@pytest.mark.parametrize(
    ("value", "most", "told"),
    [
        ("x" * 10_000_000, 20, 20),
        ([[["deep"] * 1_000] * 1_000] * 1_000, 50, 50),
        ({"k" * 1_000: 1}, 30, 30),
        (10**5_000, 40, 40),
        (b"\xff" * 5_000, 40, 40),
    ],
    ids=["text", "deep", "names", "number", "bytes"],
)
def test_values_of_any_size_are_told_briefly(value: object, most: int, told: int) -> None:
    assert len(texts.brief(value, most)) <= told
    assert len(texts.call((value,), {"named": value}, most)) <= told
    assert len(texts.told(value)) <= texts.MOST_TOLD + 500


def test_values_are_told_as_they_stand_in_a_call() -> None:
    assert texts.call((1, "a"), {"to": None}) == "1, 'a', to=None"
    assert texts.told({"a": [1, (2,)], "b": {}}) == (
        "{\n  'a': [\n    1,\n    (\n      2\n    )\n  ],\n  'b': {}\n}"
    )
    assert texts.visible("a\x1b\u202e\udcff\n") == "a\\u001b\\u202e\\udcff\n"


def node(name: str, *after: str, state: str = "waiting", **more: Any) -> NodeInfo:
    given = {"task": "step", "job_id": f"flow:f:{name}", **more}
    return NodeInfo(name=name, after=after, state=NodeState(state), **given)


def test_a_flow_is_drawn_with_every_step_behind_what_it_waits_for() -> None:
    nodes = [
        node("load", "clean", "check", task="load"),
        node("fetch", task="fetch", state="succeeded"),
        node("clean", "fetch", task="clean", state="queued"),
        node("check", "fetch", task="check", state="failed"),
        node("instead", task="other", fallback_of="check"),
        node("tell", task="tell", when="success"),
        node("join", "clean", is_gate=True, task=""),
    ]
    boxes = boxes_of(nodes)
    width, height = arrange(boxes)
    for box in boxes.values():
        for parent in box.parents:
            assert boxes[parent].x + boxes[parent].width < box.x
        assert 0 <= box.x <= width - box.width
        assert 0 <= box.y < height
    assert boxes["instead"].x > boxes["check"].x
    assert boxes["tell"].column == max(box.column for box in boxes.values())
    drawn = draw(nodes, root="/r", queue="q")
    assert drawn is not None
    assert drawn.count("<path") == 6
    assert "/r/job?id=flow%3Af%3Aload" in drawn


def test_many_like_steps_are_one_box_and_too_many_boxes_are_none() -> None:
    wide = [node("list"), *(node(f"r{n}", "list", state="queued") for n in range(5_000))]
    wide.append(node("sum", *(f"r{n}" for n in range(5_000)), task="sum"))
    boxes = boxes_of(wide)
    assert len(boxes) == 3
    assert "5,000" in str(draw(wide, root="", queue="q"))
    few = [node("list"), *(node(f"r{n}", "list") for n in range(ALIKE - 1))]
    assert len(boxes_of(few)) == ALIKE
    long = [node("0"), *(node(str(n), str(n - 1)) for n in range(1, 400))]
    assert draw(long, root="", queue="q") is None


def test_what_a_flow_is_called_is_escaped_in_its_drawing() -> None:
    drawn = draw([node("<script>", task="<b>")], root="", queue='"><i>')
    assert drawn is not None
    assert "<script>" not in drawn
    assert "<i>" not in drawn


async def test_dev_serves_the_dashboard_beside_the_worker(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SETTINGS, "utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "runner.cli", "dev", "own.WorkerSettings"),
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        while True:
            line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
            assert line, "runner dev ended"
            if found := re.match(r"dashboard: (http://\S+)", line):
                break
        reading = asyncio.create_task(process.stderr.read(), name="the rest of what it says")
        async with httpx.AsyncClient(base_url=found[1], timeout=30) as http:

            async def shows_worker() -> bool:
                try:
                    return "1 worker" in (await http.get("/")).text
                except httpx.TransportError:
                    return False

            await wait_until(shows_worker, description="the worker is shown", timeout_s=60)
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 60)
        await reading
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
