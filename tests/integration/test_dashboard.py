"""The dashboard without a browser: who is let in, what pages show, what buttons do."""

from __future__ import annotations

import asyncio
import html
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import runner
from runner import Context, Flow, RunningLimit, cron, errors, keys, task
from runner.dashboard import dashboard
from runner.dashboard.asked import spelled
from runner.dashboard.views import ACTIONS, PAGES
from tests.engine import Gate, drain, raw, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client
    from tests.servers import ChaosServers

BASE = "http://localhost:8080"
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


class Visitor:
    """Somebody with a browser: keeps cookies, and sends the forms of the page that was loaded."""

    def __init__(self, http: httpx.AsyncClient, root: str = "") -> None:
        self.http = http
        self.root = root
        self.page = ""

    async def get(self, path: str, **fields: object) -> httpx.Response:
        given = urlencode({name: str(value) for name, value in fields.items()})
        reply = await self.http.get(f"{self.root}{path}" + (f"?{given}" if given else ""))
        self.page = reply.text
        return reply

    @property
    def token(self) -> str:
        found = re.search(r'name="csrf" value="(\w+)"', self.page)
        assert found, "the page has a form"
        return found[1]

    async def post(self, path: str, **fields: object) -> httpx.Response:
        form = {"csrf": self.token, **{name: str(value) for name, value in fields.items()}}
        return await self.http.post(
            f"{self.root}{path}",
            content=urlencode(form),
            headers={
                "content-type": "application/x-www-form-urlencoded",
                "origin": str(self.http.base_url).rstrip("/"),
            },
        )

    async def act(self, path: str, **fields: object) -> str:
        """Send a form, follow it, and return what the page says then."""
        if not self.page:
            await self.get("/")
        reply = await self.post(path, **fields)
        assert reply.status_code == 303, reply.text
        page = await self.http.get(reply.headers["location"])
        self.page = page.text
        found = re.search(r'<p class="toast (\w+)">(.*?)</p>', page.text)
        assert found, "the page says what was done"
        return f"{'! ' if found[1] == 'bad' else ''}{html.unescape(found[2])}"


@asynccontextmanager
async def visiting(app: Any, base: str = BASE, root: str = "") -> AsyncIterator[Visitor]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=base) as http:
        yield Visitor(http, root)


@asynccontextmanager
async def looking(redis_url: str, **given: Any) -> AsyncIterator[Visitor]:
    app = dashboard(redis_url, **given)
    try:
        async with visiting(app) as visitor:
            yield visitor
    finally:
        await app.aclose()


@task
async def works(_ctx: Context, /, number: int = 0, **_more: Any) -> int:
    return number


@task
async def breaks(_ctx: Context, word: str = "") -> None:
    raise ValueError(f"as it should {word}")


def job_states(page: str) -> list[str]:
    return re.findall(r'<span class="badge \w+"><i></i>([a-z ]+)</span>', page)


# Who is let in


async def test_without_auth_this_machine_alone_is_let_in(redis_url: str) -> None:
    app = dashboard(redis_url)
    try:
        for base, status in (
            (BASE, 200),
            ("http://127.0.0.1:1", 200),
            ("http://[::1]:1", 200),
            ("http://dash.example.com", 403),
            ("http://localhost.example.com", 403),
        ):
            async with visiting(app, base) as visitor:
                assert (await visitor.get("/")).status_code == status, base
        async with visiting(app) as visitor:
            reply = await visitor.http.get("/", headers={"x-forwarded-for": "10.0.0.9"})
            assert reply.status_code == 403
        transport = httpx.ASGITransport(app=app, client=("192.0.2.7", 5))
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
            assert (await http.get("/")).status_code == 403
    finally:
        await app.aclose()


async def test_a_password_is_asked_for_once(redis_url: str) -> None:
    async with looking(redis_url, auth="opensesame") as visitor:
        assert (await visitor.get("/")).status_code == 303
        assert (await visitor.get("/static/style.css")).status_code == 200
        live = await visitor.http.get("/", headers={"accept": "text/event-stream"})
        assert live.status_code == 401
        await visitor.get("/sign-in")
        assert "Dead letters" not in visitor.page
        wrong = await visitor.post("/sign-in", password="opensesam")
        assert wrong.status_code == 401
        assert "not the password" in wrong.text
        right = await visitor.post("/sign-in", password="opensesame")
        assert right.status_code == 303
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite" in cookie
        assert (await visitor.get("/")).status_code == 200
        assert (await visitor.post("/sign-out")).status_code == 303
        assert (await visitor.get("/")).status_code == 303


async def test_a_session_that_was_altered_or_is_of_another_password_counts_for_nothing(
    redis_url: str,
) -> None:
    async with looking(redis_url, auth="one") as visitor:
        await visitor.get("/sign-in")
        await visitor.post("/sign-in", password="one")
        session = visitor.http.cookies["runner_session"]
        until, rest = session.split(".", 1)
        other_end = f"{session[:-1]}{'1' if session[-1] == '0' else '0'}"
        for forged in (f"{int(until) + 9}.{rest}", other_end, "", "9999999999..", "é.."):
            headers = [(b"cookie", f"runner_session={forged}".encode("latin-1"))]
            async with visiting(visitor.http._transport.app) as other:  # type: ignore[attr-defined]
                reply = await other.http.get("/", headers=headers)
                assert reply.status_code == 303, forged
        async with looking(redis_url, auth="two") as other:
            other.http.cookies.set("runner_session", session)
            assert (await other.get("/")).status_code == 303


async def test_wrong_passwords_are_counted(redis_url: str) -> None:
    async with looking(redis_url, auth="opensesame") as visitor:
        await visitor.get("/sign-in")
        statuses = [(await visitor.post("/sign-in", password="x")).status_code for _ in range(12)]
        assert statuses == [401] * 10 + [429] * 2
        assert (await visitor.post("/sign-in", password="opensesame")).status_code == 429


async def test_a_callable_decides(redis_url: str, client: Client) -> None:
    async def auth(request: Any) -> Any:
        await asyncio.sleep(0)
        return {"boss": True, "guest": "read"}.get(request.headers.get("x-user", ""), False)

    job = await client.enqueue(works.options(delay=100))
    async with looking(redis_url, auth=auth) as visitor:
        assert (await visitor.get("/")).status_code == 403
        visitor.http.headers["x-user"] = "guest"
        page = await visitor.get("/jobs")
        assert page.status_code == 200
        assert "Cancel" not in page.text
        assert 'id="act"' not in page.text
        visitor.http.headers["x-user"] = "boss"
        await visitor.get("/jobs")
        token = visitor.token
        visitor.http.headers["x-user"] = "guest"
        visitor.page = f'name="csrf" value="{token}"'
        assert (await visitor.post("/jobs/cancel", id=job.job_id)).status_code == 403
        assert (await client.jobs.show(job.job_id)).job_id == job.job_id


@pytest.mark.parametrize("action", [action.path for action in ACTIONS])
async def test_forged_posts_are_refused(action: str, redis_url: str) -> None:
    async with looking(redis_url) as visitor:
        await visitor.get("/")
        form = {"content-type": "application/x-www-form-urlencoded"}
        token = f"csrf={visitor.token}&id=x&name=x"
        for headers, body, status in (
            ({**form, "origin": "http://evil.example"}, token, 403),
            ({**form, "origin": "null"}, token, 403),
            (form, token, 403),
            ({**form, "origin": BASE}, "id=x&name=x", 403),
            ({**form, "origin": BASE}, "csrf=0000&id=x", 403),
            ({"content-type": "text/plain", "origin": BASE}, token, 415),
            ({**form, "origin": BASE}, "csrf=" + "x" * 1_100_000, 413),
        ):
            reply = await visitor.http.post(action, content=body, headers=headers)
            assert reply.status_code == status, headers
        visitor.http.cookies.clear()
        reply = await visitor.http.post(action, content=token, headers={**form, "origin": BASE})
        assert reply.status_code == 403, "the token goes with its cookie"
        assert (await visitor.http.get(action)).status_code == 405


async def test_read_only_refuses_every_action(redis_url: str, client: Client) -> None:
    job = await client.enqueue(works.options(delay=100))
    async with looking(redis_url, auth="pass", read_only=True) as visitor:
        await visitor.get("/sign-in")
        await visitor.post("/sign-in", password="pass")
        await visitor.get("/jobs")
        assert "read-only" in visitor.page
        assert "formaction" not in visitor.page
        for action in ACTIONS:
            reply = await visitor.post(action.path, id=job.job_id, name="works", value="1")
            assert reply.status_code == 403, action.path
            assert "read-only" in reply.text
    assert (await client.jobs.show(job.job_id)).job_id == job.job_id
    assert await client.limits.list() == []


async def test_pages_allow_no_script_of_anybody_and_no_frame(redis_url: str) -> None:
    async with looking(redis_url) as visitor:
        for path in ("/", "/nowhere", "/static/live.js"):
            reply = await visitor.get(path)
            policy = reply.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert reply.headers["x-content-type-options"] == "nosniff"
        await visitor.get("/")
        assert not re.search(r"<script(?! src)|\son\w+=|\sstyle=|javascript:", visitor.page)


# What pages show


@pytest.mark.parametrize("page", [page.path for page in PAGES])
async def test_every_page_says_what_to_do_when_there_is_nothing(page: str, redis_url: str) -> None:
    async with looking(redis_url) as visitor:
        reply = await visitor.get(page, id="none", name="none")
        assert reply.status_code in (200, 404)
        assert "<main" in reply.text


async def test_the_overview_says_what_a_new_fleet_has_to_do_first(
    redis_url: str, client: Client
) -> None:
    def notices(page: str) -> list[str]:
        found = re.findall(r'<p class="notice">(.*?)</p>', page, re.DOTALL)
        return [html.unescape(re.sub(r"<[^>]*>", "", text)).strip() for text in found]

    async with looking(redis_url) as visitor:

        async def says(*wanted: str) -> bool:
            told = notices((await visitor.get("/")).text)
            return len(told) == len(wanted) and all(
                text in notice for text, notice in zip(wanted, told, strict=True)
            )

        assert await says("Start one: runner worker settings.WorkerSettings"), visitor.page
        job = await client.enqueue(works, 7)
        assert await says("No worker lives."), "a worker comes first, whatever waits"
        await client.jobs.cancel(job.job_id)
        async with serving(redis_url, [works], monitor=True):

            async def asks_for_a_job() -> bool:
                return await says("No job has run here yet. Open a task under Tasks")

            await wait_until(asks_for_a_job, description="a worker without a job is told of")
            assert '<a href="/tasks">Tasks</a>' in visitor.page
            job = await client.enqueue(works, 7)
            assert await job.result(timeout=20) == 7

            async def says_nothing() -> bool:
                return await says()

            await wait_until(says_nothing, description="with a job in the counts it is no news")


@pytest.mark.lasting_keys("runner:schedule*", "runner:limits*", "runner:fleet*")
async def test_every_page_opens_beside_a_worker(redis_url: str, client: Client) -> None:
    gate = Gate()

    @task(max_running=1)
    async def waits(ctx: Context) -> None:
        await ctx.progress(3, 10, "three of ten")
        await gate()

    flow = Flow("pair")
    first = flow.add(works.call(1), name="first")
    flow.add(works.call(2), name="second", after=[first])
    schedules = (cron(works, "0 3 * * *", name="nightly"),)
    tasks = [works, breaks, waits]
    async with (
        serving(redis_url, tasks, monitor=True, cron_jobs=schedules) as worker,
        looking(redis_url, tasks=tasks) as visitor,
    ):
        await client.enqueue(works, 1)
        broken = await client.enqueue(breaks, "again")
        running = await client.enqueue(waits)
        run = await client.start(flow)
        await run.wait(10)
        await gate.runs.wait()

        async def counted() -> bool:
            found = await client.history.last()
            return found.ended >= 4 and bool(await client.workers.list())

        await wait_until(counted, description="the worker has said what happened")

        async def shows_running() -> bool:
            page = await visitor.get("/job", id=running.job_id)
            return "three of ten" in page.text and "running" in page.text

        await wait_until(shows_running, description="the job's page shows its progress")
        for path, fields, words in (
            ("/", {}, ("ValueError: as it should again", "Throughput", "1 worker")),
            ("/tasks", {}, ("works", "breaks", "waits")),
            ("/tasks", {"q": "brea"}, ("1 task;",)),
            ("/task", {"name": "works"}, ("works(number: ", "succeeded", "Enqueue")),
            ("/jobs", {}, (running.job_id[:10], "Abort")),
            ("/jobs", {"state": "finished", "outcome": "bad"}, ("ValueError",)),
            ("/job", {"id": broken.job_id}, ("Traceback", "as it should again", "Requeue", "word")),
            ("/dead", {}, ("breaks", "Requeue")),
            ("/schedules", {}, ("nightly", "Run now", "0 3 * * *")),
            ("/workflows", {}, ("pair", "2 of 2")),
            ("/workflow", {"id": run.id}, ("<svg", "second", "first")),
            ("/workers", {}, (worker.name, "Drain", "1 of")),
            ("/worker", {"name": worker.name}, (running.job_id[:10], "Jobs at once")),
            ("/limits", {}, ("waits.running", "1 at once")),
            ("/writer", {}, ("No writer has run here",)),
        ):
            assert (await visitor.get(path, **fields)).status_code == 200, (path, visitor.page)
            for word in words:

                async def shown(path: str = path, fields: Any = fields, word: str = word) -> bool:
                    return word in html.unescape((await visitor.get(path, **fields)).text)

                await wait_until(shown, description=f"{path} shows {word}")
        gate.opens.set()


async def test_what_jobs_hold_is_shown_as_text(redis_url: str, client: Client) -> None:
    await client.enqueue(works, 1, name=HOSTILE, esc="\x1b[31m", over="\u202eevil")
    await client.enqueue("works", "x" * 5_000_000)
    await client.enqueue(breaks, HOSTILE)
    await client.enqueue(HOSTILE)
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    await client.enqueue("works", deep)
    await client.enqueue(works.options(key=f'"><{HOSTILE}'), 1)
    bytes_id = b"\xff\xfe\x00<b>"
    async with raw(redis_url) as redis:
        await redis.zadd(keys.DEFAULT_QUEUE, {bytes_id: 1})
        await redis.set(b"arq:job:" + bytes_id, b"\x80\x05cos\nsystem\n(S'true'\ntR.", px=60_000)
        await redis.zadd(keys.DEFAULT_QUEUE, {b"wrong type": 1})
        await redis.lpush("arq:job:wrong type", "x")
        await redis.pexpire("arq:job:wrong type", 60_000)
    known = await client.jobs.list()
    async with looking(redis_url, tasks=[works, breaks]) as visitor:
        page = await visitor.get("/jobs")
        assert page.status_code == 200
        assert HOSTILE not in page.text
        assert html.escape(HOSTILE) in page.text
        assert "\x1b" not in page.text
        assert "\u202e" not in page.text
        assert len(page.content) < 200_000
        for job in known.jobs:
            reply = await visitor.http.get(f"/job?id={spelled(job.job_id)}")
            assert reply.status_code == 200, job.job_id
            assert HOSTILE not in reply.text
            assert len(reply.content) < 200_000
        for path in ("/job", "/jobs", "/task", "/dead", "/workflow", "/worker"):
            hostile = dict.fromkeys(("id", "name", "queue", "task", "after", "arg"), HOSTILE)
            assert HOSTILE not in (await visitor.get(path, **hostile)).text
            for name in hostile:
                reply = await visitor.http.get(f"{path}?{name}=%ff%00%0d%0aset-cookie:x")
                assert reply.status_code in (200, 400, 404), (path, name)
        said = await visitor.act("/jobs/cancel", id=spelled("\udcff\udcfe\x00<b>"))
        assert "is cancelled" in said
    async with raw(redis_url) as redis:
        assert await redis.zscore(keys.DEFAULT_QUEUE, bytes_id) is None
        await redis.zrem(keys.DEFAULT_QUEUE, b"wrong type")


async def test_dead_letters_and_results_are_hostile_too(redis_url: str, client: Client) -> None:
    broken = await client.enqueue(breaks, HOSTILE)
    returned = await client.enqueue(works, 1, out=HOSTILE)
    await drain(redis_url, [works, breaks], monitor=True, keep_result=60)
    async with looking(redis_url) as visitor:
        asked: tuple[tuple[str, dict[str, str]], ...] = (
            ("/", {}),
            ("/dead", {}),
            ("/jobs", {"state": "finished"}),
            ("/job", {"id": broken.job_id}),
            ("/job", {"id": returned.job_id}),
        )
        for path, fields in asked:
            assert (await visitor.get(path, **fields)).status_code == 200
            assert HOSTILE not in visitor.page, path
        assert html.escape(HOSTILE) in visitor.page


async def test_what_is_pickled_is_not_unpickled(redis_url: str) -> None:
    bomb = b"\x80\x04cbuiltins\nexit\n)R."
    async with raw(redis_url) as redis:
        await redis.zadd(keys.DEFAULT_QUEUE, {"bomb": 1})
        await redis.set("arq:job:bomb", bomb, px=60_000)
        await redis.set("arq:result:gone", bomb, px=60_000)
        for codec in ("pickle", "msgpack"):
            async with looking(redis_url, codec=codec) as visitor:
                assert (await visitor.get("/jobs")).status_code == 200
                page = await visitor.get("/job", id="bomb")
                assert "Unreadable" in page.text
                assert (await visitor.get("/job", id="gone")).status_code == 200
        await redis.zrem(keys.DEFAULT_QUEUE, "bomb")


async def test_mounted_below_a_path_its_links_and_forms_lead_there(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(works.options(delay=100))
    inner = dashboard(redis_url)
    app = Starlette(routes=[Mount("/admin/jobs", inner)])
    try:
        async with visiting(app, root="/admin/jobs") as visitor:
            page = await visitor.get("/jobs")
            assert page.status_code == 200
            links = re.findall(r'(?:href|src|action|formaction)="([^"]*)"', page.text)
            ours = [link for link in links if not link.startswith(("data:", "#"))]
            assert ours
            assert all(link.startswith("/admin/jobs/") for link in ours)
            assert "path=/admin/jobs" in page.headers["set-cookie"].lower()
            assert "is cancelled" in await visitor.act("/jobs/cancel", id=job.job_id)
    finally:
        await inner.aclose()


async def test_a_page_says_so_when_redis_is_away() -> None:
    async with looking("redis://127.0.0.1:1") as visitor:
        reply = await visitor.get("/")
        assert reply.status_code == 503
        assert "Redis does not answer" in reply.text


async def test_another_queue_that_nobody_reads_is_not_there(redis_url: str) -> None:
    async with looking(redis_url, queues=["a", "b"]) as visitor:
        assert (await visitor.get("/jobs", queue="b")).status_code == 200
        reply = await visitor.get("/jobs", queue="runner:writer")
        assert reply.status_code == 400
        assert "there is no queue" in reply.text


async def test_live_events_bring_the_part_that_changes(redis_url: str, client: Client) -> None:
    app = dashboard(redis_url)
    sent: list[bytes] = []
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/jobs",
        "raw_path": b"/jobs",
        "root_path": "",
        "query_string": b"",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(b"host", b"localhost"), (b"accept", b"text/event-stream")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    serving_it = asyncio.create_task(app(scope, receive, send), name="a stream")
    try:
        await wait_until(
            lambda: b"No job waits or runs" in b"".join(sent), description="the first event"
        )
        job = await client.enqueue(works)
        told = job.job_id[:10].encode()
        await wait_until(lambda: told in b"".join(sent), description="the event of the new job")
        assert b"<html" not in b"".join(sent)
        assert b"csrf" not in b"".join(sent)
    finally:
        app.close()
        await wait_until(serving_it.done, description="the stream ends with the dashboard")
        gone.set()
        await serving_it
        await app.aclose()


# What buttons do


async def test_jobs_are_cancelled_and_hurried(redis_url: str, client: Client) -> None:
    one, two, three = [await client.enqueue(works.options(delay=900), n) for n in range(3)]
    async with looking(redis_url) as visitor:
        assert "is cancelled" in await visitor.act("/jobs/cancel", id=one.job_id)
        assert "not in the queue" in await visitor.act("/jobs/cancel", id=one.job_id)
        assert "due now" in await visitor.act("/jobs/run", id=two.job_id)
        assert (await client.jobs.show(two.job_id)).state.value == "queued"
        with pytest.raises(errors.JobNotFound):
            await client.jobs.show(one.job_id)
        assert "1 job is due" in await visitor.act("/jobs/run-all", state="deferred")
        said = await visitor.act("/jobs/cancel-all", task="works", arg="0=2")
        assert "1 job is cancelled" in said
        assert [job.job_id for job in (await client.jobs.list()).jobs] == [two.job_id]
        assert three.job_id not in (await visitor.get("/jobs")).text


async def test_a_job_that_runs_is_aborted(redis_url: str, client: Client) -> None:
    gate = Gate()

    @task
    async def waits(_ctx: Context) -> None:
        await gate()

    async with (
        serving(redis_url, [waits], allow_abort_jobs=True, monitor=True),
        looking(redis_url) as visitor,
    ):
        job = await client.enqueue(waits)
        await gate.runs.wait()
        assert "left alone" in await visitor.act("/jobs/cancel", id=job.job_id)
        assert "asked to end" in await visitor.act("/jobs/abort", id=job.job_id)
        with pytest.raises(asyncio.CancelledError):
            await job.result(timeout=10)


async def test_dead_letters_are_requeued_and_purged(redis_url: str, client: Client) -> None:
    jobs = [await client.enqueue(breaks, str(n)) for n in range(4)]
    await drain(redis_url, [breaks])
    async with looking(redis_url) as visitor:
        said = await visitor.act("/dead/requeue", id=jobs[0].job_id)
        assert "in its queue again" in said
        assert (await client.jobs.show(jobs[0].job_id)).task == "breaks"
        assert "no dead letter" in await visitor.act("/dead/requeue", id=jobs[0].job_id)
        assert "is gone" in await visitor.act("/dead/purge", id=jobs[1].job_id)
        assert "1 job is in" in await visitor.act("/dead/requeue-all", text="should 2")
        assert "1 letter is gone" in await visitor.act("/dead/purge-all", error="ValueError")
        assert await client.dead.count() == 0


async def test_schedules_run_pause_and_go_on(redis_url: str, client: Client) -> None:
    await client.schedules.add(cron("works", "0 3 * * *", name="nightly"), tasks=["works"])
    async with looking(redis_url) as visitor:
        assert "runs now" in await visitor.act("/schedules/run", name="nightly")
        assert len((await client.jobs.list()).jobs) == 1
        assert "is paused" in await visitor.act("/schedules/pause", name="nightly")
        assert (await client.schedules.get("nightly")).paused
        assert "Resume" in (await visitor.get("/schedules")).text
        assert "goes on" in await visitor.act("/schedules/resume", name="nightly")
        assert not (await client.schedules.get("nightly")).paused
        assert "there is no schedule" in await visitor.act("/schedules/run", name="weekly")
    await client.schedules.remove("nightly")


async def test_queues_and_tasks_are_paused_and_resumed(redis_url: str, client: Client) -> None:
    async with looking(redis_url, tasks=[works]) as visitor:
        assert "is paused" in await visitor.act("/tasks/pause", name="works")
        assert "is paused" in await visitor.act("/queues/pause")
        paused = await client.paused()
        assert (paused.tasks, paused.queues) == (("works",), (keys.DEFAULT_QUEUE,))
        assert "nothing is claimed" in (await visitor.get("/")).text
        assert "goes on" in await visitor.act("/tasks/resume", name="works")
        assert "goes on" in await visitor.act("/queues/resume")
        paused = await client.paused()
        assert (paused.tasks, paused.queues) == ((), ())


async def test_jobs_are_enqueued_from_a_tasks_page(redis_url: str, client: Client) -> None:
    async with looking(redis_url, tasks=[works]) as visitor:
        said = await visitor.act("/tasks/enqueue", name="works", arguments='{"number": 7}')
        assert "Enqueued works" in said
        assert "Enqueued other" in await visitor.act(
            "/tasks/enqueue", name="other", arguments="[1, 2]"
        )
        found = {job.task: (job.args, job.kwargs) for job in (await client.jobs.list()).jobs}
        assert found == {"works": ((), {"number": 7}), "other": ((1, 2), {})}
        for arguments in ("[", '"x"', '{"_queue_name": "x"}', '{"number": "seven"}'):
            said = await visitor.act("/tasks/enqueue", name="works", arguments=arguments)
            assert said.startswith("! "), arguments
        assert len((await client.jobs.list()).jobs) == 2


async def test_workers_are_drained_resumed_and_resized(redis_url: str, client: Client) -> None:
    async with (
        serving(redis_url, [works], monitor=True, max_jobs=9) as worker,
        looking(redis_url) as visitor,
    ):

        async def listed() -> bool:
            return bool(await client.workers.list())

        await wait_until(listed, description="the worker is listed")
        assert "draining" in await visitor.act("/workers/drain", name=worker.name)
        assert not worker.allow_pick_jobs
        assert "running" in await visitor.act("/workers/resume", name=worker.name)
        said = await visitor.act("/workers/concurrency", name=worker.name, jobs=4)
        assert "concurrency 4, was 9" in said
        assert (await visitor.act("/workers/concurrency", name=worker.name, jobs="x")).startswith(
            "! "
        )


@pytest.mark.lasting_keys("runner:limits")
async def test_limits_are_set_and_cleared(redis_url: str, client: Client) -> None:
    @task(limits=[RunningLimit("database", 2)])
    async def limited(_ctx: Context) -> None: ...

    async with serving(redis_url, [limited], monitor=True), looking(redis_url) as visitor:

        async def declared() -> bool:
            return bool(await client.limits.list())

        await wait_until(declared, description="the limit is declared")
        said = await visitor.act("/limits/set", name="database", value="7")
        assert said == "database is 7 at once from now on, in all workers."
        assert str((await client.limits.get("database")).rule) == "7 at once"
        said = await visitor.act("/limits/clear", name="database")
        assert said == "database is 2 at once again."
        said = await visitor.act("/limits/set", task="mail", value="20/m")
        assert "mail.rate is 20/m" in said
        assert (await visitor.act("/limits/set", name="database", value="20/m")).startswith("! ")
        await visitor.act("/limits/clear", name="mail.rate")
    async with looking(redis_url, tasks=[works, breaks]) as visitor:
        said = await visitor.act("/limits/set", task="breaks", value="2", key="wrod")
        assert said == "! breaks has no parameter 'wrod'; did you mean 'word'?"
        said = await visitor.act("/limits/set", task="works", value="2", key="any")
        assert "works.running is 2 at once" in said
        await visitor.act("/limits/clear", name="works.running")


async def test_workflows_are_cancelled_and_run_again(redis_url: str, client: Client) -> None:
    flow = Flow("failing")
    first = flow.add(breaks.call(), name="first")
    flow.add(works.call(1), name="second", after=[first])
    run = await client.start(flow)
    async with looking(redis_url) as visitor:
        assert "is cancelled" in await visitor.act("/workflows/cancel", id=run.id)
        await drain(redis_url, [works, breaks])
        assert (await run.status()).state.value == "cancelled"
        assert "had ended" in await visitor.act("/workflows/cancel", id=run.id)
        assert "2 steps" in await visitor.act("/workflows/retry", id=run.id)
        await drain(redis_url, [works, breaks])
        assert (await run.status()).state.value == "failed"
        page = await visitor.get("/workflow", id=run.id)
        assert {"failed", "skipped"} <= set(job_states(page.text))


# What it costs


async def test_a_page_asks_a_bounded_number_of_commands_whatever_there_is(
    chaos_servers: ChaosServers,
) -> None:
    url = chaos_servers.redis_url  # commands are counted for a whole server
    async with runner.connect(url) as client:
        for start in range(0, 20_000, 5_000):
            await client.enqueue_many([works.call(n) for n in range(start, start + 5_000)])
    async with raw(url) as redis, looking(url, tasks=[works]) as visitor:
        await visitor.get("/")
        for path, fields in (
            ("/", {}),
            ("/jobs", {}),
            ("/jobs", {"task": "nobody"}),
            ("/jobs", {"state": "running"}),
            ("/jobs", {"arg": "0=-1"}),
            ("/task", {"name": "works"}),
        ):
            before = await redis.zcard(keys.DEFAULT_QUEUE)
            await redis.config_resetstat()
            reply = await visitor.get(path, **fields)
            assert reply.status_code == 200
            calls = {
                name.removeprefix("cmdstat_"): stats["calls"]
                for name, stats in (await redis.info("commandstats")).items()
            }
            assert before == 20_000
            assert "keys" not in calls
            assert calls.get("get", 0) <= 12_100, (path, calls)
            assert calls.get("evalsha", 0) + calls.get("eval", 0) <= 20, (path, calls)
        page = await visitor.get("/jobs", arg="0=-1")
        assert "Search on" in page.text


async def test_the_page_of_a_task_has_its_jobs_of_all_queues(redis_url: str) -> None:
    async with (
        runner.connect(redis_url) as client,
        looking(redis_url, tasks=[works], queues=["arq:queue", "bulk"]) as visitor,
    ):
        job = await client.enqueue(works.options(queue="bulk", delay=60), 1)
        page = (await visitor.get("/task?name=works")).text
        assert f"id={job.job_id}&amp;queue=bulk" in page


async def test_figures_of_nothing_are_not_shown_as_nought(redis_url: str) -> None:
    async with looking(redis_url) as visitor:
        page = (await visitor.get("/")).text
        assert "p50 \N{EN DASH}" in page
        assert "nothing waits" in page
        assert "0 ms</p>" not in page
