"""Probes of a fleet: each worker answers at a port of its own, also while it is replaced."""

from __future__ import annotations

import asyncio
import signal
import socket
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

import runner
from tests.fleet import fleet
from tests.support import wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.timeout(180), pytest.mark.lasting_keys("runner:*")]


def two_free_ports() -> int:
    """Return a port that is free, as the one behind it."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no two ports beside each other are free")


def asked(port: int) -> str:
    """Return what a worker says to the question whether it is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as reply:
            return str(reply.read().decode().strip())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode().strip()


async def test_each_worker_of_a_fleet_answers_at_its_own_port(
    redis_url: str, tmp_path: Path
) -> None:
    port = two_free_ports()
    settings = f"health_port = {port}\nmonitor = True"
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2", more=settings) as running,
    ):
        await running.ready()
        first = set(running.members())

        async def listed() -> bool:
            return {worker.pid for worker in await client.workers.list()} == first

        await wait_until(listed, description="both workers are listed", timeout_s=30)
        for place in range(2):
            assert await asyncio.to_thread(asked, port + place) == "ready"

        running.process.send_signal(signal.SIGHUP)
        await running.ready(2)
        await wait_until(
            lambda: not first & set(running.members()),
            description="the old ones have left",
            timeout_s=30,
        )
        for place in range(2):
            assert await asyncio.to_thread(asked, port + place) == "ready"
        assert await running.end() == 0
