"""Run arq's own tests with our Worker, client and Job in the place of arq's.

A pytest plugin: loaded with ``-p``, before arq's tests and their conftest import anything.
The tests start their server through testcontainers; a stand-in hands them the one whose
address is in ``ARQ_TEST_REDIS``.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Self

import arq
import arq.connections
import arq.jobs
import arq.worker

from runner.client import Client
from runner.job import Job
from runner.worker import Worker


class RedisContainer:
    """What arq's conftest asks of testcontainers: an address."""

    port = 6379

    def __init__(self, _image: str) -> None:
        self._host, _, port = os.environ["ARQ_TEST_REDIS"].partition(":")
        self._port = int(port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def get_container_host_ip(self) -> str:
        return self._host

    def get_exposed_port(self, _port: int) -> int:
        return self._port


def _stand_in() -> None:
    package, module = types.ModuleType("testcontainers"), types.ModuleType("testcontainers.redis")
    module.RedisContainer = RedisContainer  # type: ignore[attr-defined]
    sys.modules["testcontainers"], sys.modules["testcontainers.redis"] = package, module


def _put_ours_in_place() -> None:
    parts = os.environ.get("ARQ_TEST_PARTS", "worker,client,job").split(",")
    if "worker" in parts:
        arq.worker.Worker = arq.Worker = Worker  # type: ignore[misc]
    if "client" in parts:
        arq.connections.ArqRedis = arq.ArqRedis = Client  # type: ignore[misc]
    if "job" in parts:
        arq.jobs.Job = arq.connections.Job = Job  # type: ignore[misc,attr-defined]


_stand_in()
_put_ours_in_place()
