"""The fixtures of every tier, and the guards around every test.

- `redis_url`: a Redis database number of the test's own, empty. Publish and subscribe know no
  database numbers: channels are shared by all tests that run at the time, so name them uniquely.
- `database_url`: a Postgres database of the test's own, cloned from what `tests/template.py` makes;
  `empty_database_url`: one with nothing in it.
- `chaos_servers`: a Valkey and a Postgres of the test's own, to stop, kill and restart.

Guards: an asynchronous test may leave no asyncio task behind, unless it declares the task's name by
``@pytest.mark.lasting_tasks("pattern")``; a test with `redis_url` may leave no key that begins with
``runner:`` and never expires, unless it declares it by ``@pytest.mark.lasting_keys("pattern")``.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import pytest
import redis

from runner import embedded
from runner.embedded import lifecycle
from tests.servers import Addresses, ChaosServers, Door, Host, database, redis_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

LOOP_TURNS = 10  # what a task that is about to end may still take

holder = pytest.StashKey[Host | Door]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "lasting_keys(*patterns): keys that this test leaves in Redis without a TTL"
    )
    config.addinivalue_line(
        "markers", "lasting_tasks(*patterns): names of asyncio tasks that outlive this test"
    )
    if any(name.startswith("COVERAGE_PROCESS") for name in os.environ):
        lifecycle.ISOLATED = ()  # coverage measures the supervisor by what -I and -S shut out
    # CPython 3.11 cannot trace a thread in which an exception is raised from outside, as the soft
    # limit is: it loops, or stays in its wait. So threads are not measured.
    threading.settrace(None)
    given: dict[str, Any] | None = getattr(config, "workerinput", None)
    config.stash[holder] = Door(*given["servers"]) if given else Host()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Run three tests for two cores with ``-n auto``: most of a test's time it waits."""
    return max(2, (os.cpu_count() or 1) * 3 // 2)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker, before it starts, where to ask for the servers."""
    host = node.config.stash[holder]
    assert isinstance(host, Host)
    door = host.open_door()
    node.workerinput["servers"] = (door.port, door.key)


def pytest_unconfigure(config: pytest.Config) -> None:
    held = config.stash.get(holder, None)
    if isinstance(held, Host):
        held.close()


@pytest.fixture(scope="session")
def server_addresses(pytestconfig: pytest.Config) -> Addresses:
    return pytestconfig.stash[holder].ask()


@pytest.fixture
def redis_url(server_addresses: Addresses, request: pytest.FixtureRequest) -> Iterator[str]:
    with redis_database(server_addresses) as url:
        yield url
        if lasting := _lasting_keys(url, _patterns(request, "lasting_keys")):
            pytest.fail(f"keys left in Redis without a TTL: {', '.join(lasting)}")


@pytest.fixture
def database_url(server_addresses: Addresses) -> Iterator[str]:
    with database(server_addresses) as url:
        yield url


@pytest.fixture
def empty_database_url(server_addresses: Addresses) -> Iterator[str]:
    with database(server_addresses, template="template0") as url:
        yield url


@pytest.fixture
def chaos_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChaosServers]:
    with monkeypatch.context() as own:
        own.delenv("REDIS_URL", raising=False)
        own.delenv("DATABASE_URL", raising=False)
        servers = embedded.start(fsync=False, redis_settings={"appendonly": True})
    with servers:
        yield ChaosServers(servers)


@pytest.fixture(autouse=True)
def _loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """Close the loop that a test left in the policy: arq's Worker makes one where it finds none.

    It would be reported when it is collected, in whatever test runs by then.
    """
    before = _loop_that_is_set()
    yield
    loop = _loop_that_is_set()
    is_plain = not inspect.iscoroutinefunction(getattr(request, "function", None))
    if is_plain and loop is not None and loop is not before and not loop.is_running():
        loop.close()
        asyncio.set_event_loop(None)


def _loop_that_is_set() -> asyncio.AbstractEventLoop | None:
    # There is no public way to ask for it without making one.
    local = getattr(asyncio.get_event_loop_policy(), "_local", None)
    loop: asyncio.AbstractEventLoop | None = getattr(local, "_loop", None)
    return loop


@pytest.fixture(autouse=True)
def _guard(request: pytest.FixtureRequest) -> None:
    """Set the guard of asynchronous tests up first, so that it looks when all else is torn down."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_no_task_is_left")


@pytest.fixture
async def _no_task_is_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    for _ in range(LOOP_TURNS):
        await asyncio.sleep(0)
    declared = _patterns(request, "lasting_tasks")
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    undeclared = [task for task in left if not _matches(task.get_name(), declared)]
    if undeclared:
        pytest.fail("asyncio tasks left: " + "; ".join(map(repr, undeclared)))


def _patterns(request: pytest.FixtureRequest, marker: str) -> list[str]:
    return [pattern for mark in request.node.iter_markers(marker) for pattern in mark.args]


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _lasting_keys(url: str, declared: list[str]) -> list[str]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return sorted(
            key
            for key in client.scan_iter("runner:*", count=1000)
            if client.ttl(key) == -1 and not _matches(key, declared)
        )
