"""The dashboard asked for what nobody should ask for, by whoever can reach it."""

from __future__ import annotations

import asyncio
import html
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount

import runner
from runner import keys
from runner.dashboard import dashboard
from runner.dashboard.timeline import moments
from runner.dashboard.views import ACTIONS, PAGES
from runner.inspect import JobStory
from runner.inspect.finished import packed
from runner.types import AttemptError
from tests.engine import raw, serving
from tests.integration.test_dashboard import BASE, Visitor, breaks, looking, works
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client
    from tests.servers import ChaosServers

ODD = (
    *("-1", "0", "99999999999999999999", "1e9", "nan", "²", "x" * 1_900, "[" * 1_900),
    *("a=" + "[" * 1_900, "²=1", "=", "9" * 1_900 + "=1", "\x00", "\ud800", "\udcff", "\u202e"),
    *("nan 00", "inf 00", "-inf ff", "0x10 00", "../../etc", "//evil.example", "'\"><b>", "%00"),
    *("1/s", "99999999999999999999/s", "runner:writer", "arq:queue", "flow:x:1", " "),
)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@asynccontextmanager
async def outside(app: Any) -> AsyncIterator[Visitor]:
    """Visit as over a network: what is raised is a status, and nothing else."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
        yield Visitor(http)


def encoded(**fields: str) -> str:
    return urlencode(
        {
            n: v.encode(errors="surrogateescape") if "\ud800" not in v else b"\xed\xa0\x80"
            for n, v in fields.items()
        }
    )


@pytest.mark.parametrize("page", [page.path for page in PAGES])
async def test_odd_questions_get_an_answer(page: str, redis_url: str, client: Client) -> None:
    await client.enqueue(works, 1)
    # What is wrong with one field is said before another is looked at.
    groups = (("id", "name"), ("queue",), ("state",), ("after",), ("start", "outcome", "q"))
    async with looking(redis_url, tasks=[works, breaks]) as visitor:
        for odd in ODD:
            for names in (*groups, ("arg", "older", "newer"), ("task", "error", "text")):
                given = {"id": "x", "name": "works"} | dict.fromkeys(names, odd)
                if "outcome" in names:
                    given["state"] = "finished"
                reply = await visitor.http.get(f"{page}?{encoded(**given)}")
                assert reply.status_code in (200, 400, 404), (names, odd, reply.text)


@pytest.mark.lasting_keys("runner:*")
@pytest.mark.parametrize("action", [action.path for action in ACTIONS])
async def test_odd_forms_get_an_answer(action: str, redis_url: str, client: Client) -> None:
    await client.enqueue(works, 1)
    groups = (("id", "name"), ("queue",), ("task", "key"), ("arg", "after"), ("value", "burst"))
    async with looking(redis_url, tasks=[works, breaks]) as visitor:
        await visitor.get("/")
        for odd in ODD:
            for names in (*groups, ("arguments", "jobs")):
                given = {"id": "x", "name": "works", "value": "3"} | dict.fromkeys(names, odd)
                reply = await visitor.http.post(
                    action,
                    content=encoded(csrf=visitor.token, **given),
                    headers={
                        "content-type": "application/x-www-form-urlencoded",
                        "origin": BASE,
                        "referer": f"{BASE}//evil.example/",
                    },
                )
                assert reply.status_code == 303, (names, odd, reply.text)
                assert reply.headers["location"] == "/"


@pytest.mark.parametrize("auth", [None, "opensesame"])
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "["},
        {"host": "localhost:nope"},
        {"host": ""},
        {"origin": "http://["},
        {"referer": "http://[bad"},
        {"origin": "http://localhost:8080\\@evil.example"},
    ],
)
async def test_headers_that_are_no_addresses_are_refused(
    redis_url: str, auth: str | None, headers: dict[str, str]
) -> None:
    app = dashboard(redis_url, auth=auth)
    try:
        async with outside(app) as visitor:
            await visitor.get("/sign-in" if auth else "/")
            form = {"content-type": "application/x-www-form-urlencoded"}
            for path in ("/sign-in", "/sign-out", "/jobs/cancel"):
                reply = await visitor.http.post(
                    path, content=f"csrf={visitor.token}&password=x", headers={**form, **headers}
                )
                assert reply.status_code in (303, 401, 403), (path, reply.status_code)
                assert "evil" not in reply.headers.get("location", "")
            reply = await visitor.http.get("/", headers=headers)
            assert reply.status_code in (200, 303, 403)
    finally:
        await app.aclose()


async def test_more_fields_than_a_person_sends_are_refused(redis_url: str) -> None:
    app = dashboard(redis_url, auth="opensesame")
    try:
        async with outside(app) as visitor:
            reply = await visitor.http.get("/sign-in?" + "a=1&" * 200)
            assert reply.status_code == 400
    finally:
        await app.aclose()


async def test_a_callable_that_fails_lets_nobody_in(redis_url: str) -> None:
    def auth(request: Any) -> bool:
        if request.headers.get("x-user") == "nobody":
            raise HTTPException(401, "who are you?", {"www-authenticate": "Basic"})
        raise LookupError("the database of users is away")

    inner = dashboard(redis_url, auth=auth)
    try:
        for app, root in ((inner, ""), (Starlette(routes=[Mount("/admin", inner)]), "/admin")):
            async with outside(app) as visitor:
                for path in ("/", "/jobs", "/nowhere", "/jobs/cancel"):
                    reply = await visitor.http.get(f"{root}{path}")
                    assert reply.status_code == 500, path
                    assert "database of users" not in reply.text
                    assert "nav" not in reply.text
                    known = await visitor.http.get(f"{root}{path}", headers={"x-user": "nobody"})
                    assert known.status_code == 401, path
                    assert known.headers["www-authenticate"] == "Basic"
    finally:
        await inner.aclose()


async def test_what_goes_wrong_here_is_a_page_that_says_so(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = dashboard(redis_url)

    async def fails(*_: Any) -> None:
        raise LookupError("a fault of ours")

    monkeypatch.setattr(app._desk, "queues", fails)
    try:
        async with outside(app) as visitor:
            reply = await visitor.get("/jobs")
            assert reply.status_code == 500
            assert "fault of ours" not in reply.text
            assert "<main" in reply.text
            assert "log" in reply.text
            assert "default-src 'none'" in reply.headers["content-security-policy"]
    finally:
        await app.aclose()


def scope_of(path: str, query: str = "", method: str = "GET") -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(b"host", b"localhost"), (b"accept", b"text/event-stream")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


class Stream:
    """Somebody who looks at a page that moves."""

    def __init__(self, app: Any, scope: dict[str, Any]) -> None:
        self.sent: list[bytes] = []
        self.gone = asyncio.Event()
        self.task = asyncio.create_task(app(scope, self._receive, self._send), name="a stream")

    @property
    def text(self) -> str:
        return b"".join(self.sent).decode()

    def shows(self, text: str) -> bool:
        return text in self.text

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message.get("body", b""))


@pytest.mark.lasting_keys("runner:fleet*")
async def test_a_page_whose_worker_ends_goes_on_and_says_so(redis_url: str) -> None:
    app = dashboard(redis_url)
    try:
        async with serving(redis_url, [works], monitor=True) as worker:
            listed = app._desk.workers

            async def is_listed() -> bool:
                return bool(await listed())

            await wait_until(is_listed, description="the worker is listed")
            stream = Stream(app, scope_of("/worker", f"name={worker.name}"))
            await wait_until(lambda: "Host and process" in stream.text, description="its page")
        await wait_until(lambda: "There is no worker" in stream.text, description="it has ended")
        assert not stream.task.done()
        stream.gone.set()
        await stream.task
    finally:
        await app.aclose()


async def test_those_who_leave_are_not_counted_among_those_who_look(redis_url: str) -> None:
    app = dashboard(redis_url)
    try:
        for _ in range(3):
            streams = [Stream(app, scope_of("/jobs")) for _ in range(100)]
            for stream in streams:
                await wait_until(partial(stream.shows, "event: page"), description="an event")
                stream.gone.set()
            await asyncio.gather(*(stream.task for stream in streams))
            await wait_until(lambda: not app._live._count, description="nobody looks")
    finally:
        await app.aclose()


async def test_who_asks_for_the_head_of_a_stream_gets_no_stream(redis_url: str) -> None:
    app = dashboard(redis_url)
    try:
        stream = Stream(app, scope_of("/jobs", method="HEAD"))
        await wait_until(stream.task.done, description="it is answered")
        await stream.task
    finally:
        await app.aclose()


async def test_websockets_are_closed(redis_url: str) -> None:
    app = dashboard(redis_url)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({**scope_of("/"), "type": "websocket"}, receive, send)
    assert sent == ["websocket.close"]


async def test_what_was_typed_is_not_lost_when_it_is_refused(redis_url: str) -> None:
    async with looking(redis_url, tasks=[works]) as visitor:
        for typed, kept in (
            ('["a", {"b": "é<&\\"}]', True),
            ("[" * 1_600, False),
            ("[1]", False),
        ):
            await visitor.get("/task", name="works")
            reply = await visitor.http.post(
                "/tasks/enqueue",
                content=urlencode({"csrf": visitor.token, "name": "works", "arguments": typed}),
                headers={
                    "content-type": "application/x-www-form-urlencoded",
                    "origin": BASE,
                    "referer": f"{BASE}/task?name=works&arguments=old&" + "a=1&" * (90 * kept),
                },
            )
            page = await visitor.http.get(reply.headers["location"])
            assert page.status_code == 200
            assert (
                f"{html.escape(typed, quote=False)}</textarea>" in page.text.replace("&#34;", '"')
            ) is kept
            assert ("<details open" in page.text.replace(' class="card form"', "")) is kept
            assert "old</textarea>" not in page.text


def test_a_job_that_was_requeued_has_its_first_enqueue_first() -> None:
    def failed(at_ms: int, enqueued_ms: int) -> AttemptError:
        return AttemptError(
            attempt=1,
            outcome="failed",
            error_type="E",
            error="e",
            ended_ms=at_ms,
            enqueued_ms=enqueued_ms,
            started_ms=at_ms - 1,
            worker="w",
        )

    def told(*errors: AttemptError, enqueued_ms: int) -> list[str]:
        story = JobStory(
            job_id="x", queue="q", kwargs={}, state="failed", enqueued_ms=enqueued_ms, errors=errors
        )
        return [moment.what for moment in moments(story)]

    ends = "attempt 1 failed"
    assert told(failed(5, 3), enqueued_ms=3) == ["enqueued", ends]
    assert told(failed(5, 3), failed(9, 7), enqueued_ms=7) == ["enqueued", ends, "requeued", ends]
    assert told(failed(5, 0), failed(9, 7), enqueued_ms=7) == [ends, "requeued", ends]
    assert told(failed(5, 0), enqueued_ms=0) == [ends]


async def test_a_long_history_is_not_read_whole(redis_url: str, client: Client) -> None:
    def piece(*rows: tuple[Any, ...]) -> bytes:
        return b"%d:" % len(rows) + packed("w:1:1", rows)

    times = (1_000, 1_000, 1_000, 2_000)
    good = [("works", "succeeded", f"job{number}", 1, *times) for number in range(100)]
    bad = ("works", "failed", "the oldest", 1, *times, "ValueError: long ago")
    name = keys.finished(keys.DEFAULT_QUEUE)
    async with raw(redis_url) as redis:
        await redis.rpush(name, *[piece(*good)] * 300, piece(bad))
        await redis.pexpire(name, 600_000)
    history = client.history
    assert [job.job_id for job in await history.finished(outcomes=["failed"])] == ["the oldest"]
    assert await history.finished(outcomes=["failed"], most=20_000) == []
    async with looking(redis_url) as visitor:
        for path, fields in (
            ("/", {}),
            ("/task", {"name": "works"}),
            ("/jobs", {"state": "finished", "outcome": "bad"}),
        ):
            page = await visitor.get(path, **fields)
            assert page.status_code == 200
            assert "long ago" not in page.text, path
        assert "long ago" in (await visitor.get("/jobs", state="finished", start=30_000)).text


@pytest.mark.lasting_keys("runner:fleet*")
async def test_a_heartbeat_that_cannot_be_read_hides_nobody_else(
    redis_url: str, client: Client
) -> None:
    names = (b"\xff\xfe", b"garbage", b"newer")
    async with (
        serving(redis_url, [works], monitor=True) as worker,
        raw(redis_url) as redis,
        looking(redis_url) as visitor,
    ):
        for name, beat in zip(names, (b"\x80", b"no msgpack", b"\x81\xa4name\x01"), strict=True):
            await redis.zadd(keys.WORKERS, {name: 2**42})
            await redis.set(keys.WORKER.encode() + name, beat, px=60_000)

        async def listed() -> list[str]:
            return [info.name for info in await client.workers.list()]

        await wait_until(listed, description="the worker is listed")
        assert await listed() == [worker.name]
        for path in ("/", "/workers", "/jobs"):
            assert (await visitor.get(path)).status_code == 200, path
        await redis.zrem(keys.WORKERS, *names)
        await redis.delete(*(keys.WORKER.encode() + name for name in names))


async def test_a_page_goes_on_when_redis_comes_back(chaos_servers: ChaosServers) -> None:
    app = dashboard(chaos_servers.redis_url)
    try:
        async with outside(app) as visitor:
            assert (await visitor.get("/jobs")).status_code == 200
            stream = Stream(app, scope_of("/jobs"))
            await wait_until(partial(stream.shows, "event: page"), description="the page")
            await chaos_servers.stop_redis()
            shows = partial(stream.shows, "event: trouble")
            await wait_until(shows, description="the trouble", timeout_s=30)
            reply = await visitor.get("/jobs")
            assert reply.status_code == 503
            assert "Redis does not answer" in reply.text
            await chaos_servers.start_redis()
            stream.sent.clear()
            again = partial(stream.shows, "event: page")
            await wait_until(again, description="the page again", timeout_s=30)
            assert (await visitor.get("/jobs")).status_code == 200
            stream.gone.set()
            await stream.task
    finally:
        await app.aclose()


async def test_a_paused_queue_that_nobody_reads_can_be_resumed(
    redis_url: str, client: Client
) -> None:
    await client.pause(queue="nobody reads it")
    async with looking(redis_url) as visitor:
        page = await visitor.get("/")
        assert "nobody reads it" in page.text
        said = await visitor.act("/queues/resume?queue=nobody%20reads%20it")
        assert said == "Queue nobody reads it goes on."
        assert "there is no queue" in await visitor.act("/queues/resume?queue=other")
    assert not (await client.paused()).queues
