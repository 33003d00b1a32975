"""The dashboard in a real browser, beside a real worker under load.

Debian's Chromium, driven by Playwright; without one on this machine the tests are skipped. With
``RUNNER_SCREENSHOTS=folder`` they leave pictures there; `tests.pictures` makes those of the docs.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import runner
from runner import Flow
from tests import dashboard_shop as shop
from tests.support import wait_until

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, Page

    from runner import Client

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)
HOSTILE = "<script>document.title='taken'</script>"
PASSWORD = "open sesame"
WAIT_MS = 30_000
REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no Chromium on this machine: apt-get install chromium, or name it in CHROMIUM",
    ),
    pytest.mark.lasting_keys("runner:*"),
    pytest.mark.timeout(300),
]


async def start(url: str, database_url: str, *words: str, **pipes: Any) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *words),
        cwd=REPOSITORY,
        env={**os.environ, "REDIS_URL": url, "DATABASE_URL": database_url},
        **pipes,
    )


async def end(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 30)
    except TimeoutError:
        process.kill()
        await process.wait()


@asynccontextmanager
async def standing(url: str, database_url: str, *options: str) -> AsyncIterator[str]:
    """Run a worker and a dashboard; give the address of the dashboard."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE IF NOT EXISTS orders (id int PRIMARY KEY, state text)")
    await connection.close()
    quiet = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}
    settings = "tests.dashboard_shop.WorkerSettings"
    worker = await start(url, database_url, "arq", settings, **quiet)
    dashboard = await start(
        *(url, database_url, "runner.cli", "dashboard", settings, "--port", "0", *options),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert dashboard.stderr is not None
        while True:
            line = (await asyncio.wait_for(dashboard.stderr.readline(), 60)).decode()
            assert line, "the dashboard ended"
            if found := re.search(r"running on (http://\S+)", line):
                break
        reading = asyncio.create_task(dashboard.stderr.read(), name="what the dashboard says")
        try:
            yield found[1]
        finally:
            await end(dashboard)
            await reading
    finally:
        await end(worker)
        await end(dashboard)


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    from playwright.async_api import async_playwright  # noqa: PLC0415  where there is a browser

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def window(
    browser: Browser, base: str, *, width: int = 1280, height: int = 800, **given: Any
) -> AsyncIterator[Page]:
    """Open a window; what its pages complain about fails the test."""
    context = await browser.new_context(
        base_url=base, viewport={"width": width, "height": height}, **given
    )
    page = await context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.on("dialog", lambda dialog: dialog.accept())
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None,
    )
    try:
        yield page
    finally:
        await context.close()
    # A navigation ends the stream of the page before.
    left = [text for text in complaints if "ERR_" not in text and "status of 40" not in text]
    assert not left


@asynccontextmanager
async def load_on(client: Client) -> AsyncIterator[None]:
    """Enqueue without end."""

    async def enqueue() -> None:
        number = 0
        while True:
            number += 1
            await client.enqueue(shop.send_mail, f"customer{number}@example.com")
            if number % 3 == 0:
                await client.enqueue(shop.charge_card, number, number * 10)
            if number % 4 == 0:
                await client.enqueue(shop.place_order, number)
            await asyncio.sleep(0.02)

    enqueuing = asyncio.create_task(enqueue(), name="load")
    try:
        yield
    finally:
        enqueuing.cancel()
        with suppress(asyncio.CancelledError):
            await enqueuing


def warehouse(*, fails: bool = False) -> Flow:
    flow = Flow("nightly warehouse")
    sources = ("shop", "stock", "web")
    raw = [flow.add(shop.extract.call(name), name=f"extract {name}") for name in sources]
    clean = [
        flow.add(shop.clean.call(step.result, name), name=f"clean {name}", after=[step])
        for step, name in zip(raw, sources, strict=True)
    ]
    total = flow.add(
        shop.load.call([step.result for step in clean], fails=fails), name="load", after=clean
    )
    flow.add(shop.publish.call(total.result), name="publish", after=[total])
    return flow


async def shot(page: Page, name: str) -> None:
    if folder := os.environ.get("RUNNER_SCREENSHOTS"):
        await page.screenshot(path=Path(folder) / f"{name}.png")


async def act(page: Page, name: str, *, within: str = "main") -> str:
    """Press a button, and return what the page says then."""
    await page.locator(within).get_by_role("button", name=name, exact=True).first.click()
    toast = page.locator(".toast:not([hidden])")
    await toast.first.wait_for()
    return await toast.first.inner_text()


ALL_IN_SIGHT = """(element) => {
    element.scrollIntoView({block: "center"});
    const box = element.getBoundingClientRect();
    const heights = [0.25, 0.5, 0.75].map((part) => box.top + box.height * part);
    const widths = [0.02, 0.5, 0.98].map((part) => box.left + box.width * part);
    return heights.every((y) => widths.every((x) =>
        element.contains(document.elementFromPoint(x, y))));
}"""


async def test_every_page_opens_and_figures_move_under_load(
    redis_url: str, database_url: str
) -> None:
    async with (
        runner.connect(redis_url) as client,
        standing(redis_url, database_url) as base,
        load_on(client),
        browsing() as browser,
        window(browser, base) as page,
    ):
        hostile = await client.enqueue(shop.send_mail.options(delay=3_000), HOSTILE)
        running = await client.enqueue(shop.import_catalogue, "autumn.csv", 4_000)
        for month in range(1, 7):
            await client.enqueue(shop.monthly_report, f"2026-{month:02}")
        run = await client.start(warehouse(fails=True))
        assert (await run.wait(60)).state.value == "failed"

        await page.goto("/")
        assert await page.title() == "Overview · arq-runner"
        await page.locator("[data-pulse]:not([hidden])").wait_for()
        ended = page.locator(".tile", has_text="Throughput").locator(".figure")
        before = await ended.inner_text()
        await page.wait_for_function(
            "([before]) => document.querySelector('.tile .figure').textContent.trim() !== before",
            arg=[before.strip()],
        )
        await page.locator(".rows li", has_text="declined").first.wait_for()

        names = [
            *("Tasks", "Jobs", "Dead letters", "Schedules", "Workflows"),
            *("Workers", "Limits", "Writer", "Overview"),
        ]
        for name in names:
            await page.get_by_role("navigation", name="Areas").get_by_text(name).click()
            heading = page.get_by_role("heading", level=1)
            assert (await heading.inner_text()).startswith(name)

        await page.goto(f"/job?id={running.job_id}")
        progress = page.locator(".card", has=page.get_by_role("heading", name="Progress"))
        said = progress.locator(".hint")
        first = await said.inner_text()
        assert "of 4,000" in first
        await page.wait_for_function(
            "(first) => !document.body.innerText.includes(first.split(' of ')[0] + ' of ')",
            arg=first,
        )

        await page.goto("/jobs?state=deferred")
        cell = page.locator("tr", has_text=hostile.job_id[:10]).locator("td.args")
        assert HOSTILE in await cell.inner_text()
        await page.goto(f"/job?id={hostile.job_id}")
        assert HOSTILE in await page.locator("pre").first.inner_text()
        assert "taken" not in await page.title()

        await page.goto(f"/workflow?id={run.id}")
        assert await page.locator("svg.flow g.node").count() == 8
        assert await page.locator("svg.flow g.failed").count() == 1
        await page.locator("svg.flow g.failed").click()
        await page.get_by_text("the warehouse is closed").first.wait_for()


async def test_buttons_act(redis_url: str, database_url: str) -> None:
    async with (
        runner.connect(redis_url) as client,
        standing(redis_url, database_url) as base,
        browsing() as browser,
        window(browser, base) as page,
    ):
        broken = await client.enqueue(shop.charge_card, 17, 1_000)
        later = await client.enqueue(shop.send_mail.options(delay=3_000), "one@example.com")
        never = await client.enqueue(shop.send_mail.options(delay=4_000), "two@example.com")

        async def has_died() -> bool:
            return await client.dead.count() == 1

        await wait_until(has_died, description="the card was declined", timeout_s=60)

        await page.goto(f"/jobs?state=deferred&arg=0%3D{'two@example.com'}")
        assert "is cancelled" in await act(page, "Cancel")
        with pytest.raises(runner.errors.JobCancelled):
            await never.result(timeout=10)
        await page.goto(f"/job?id={later.job_id}")
        assert "due now" in await act(page, "Run now")
        assert await later.result(timeout=60) == "welcome to one@example.com"
        await page.locator(".badge", has_text="succeeded").first.wait_for()

        await page.goto("/dead")
        assert "in its queue again" in await act(page, "Requeue")
        await wait_until(has_died, description="it was declined again", timeout_s=60)
        await page.goto(f"/job?id={broken.job_id}")
        await page.get_by_text("attempt 2", exact=True).first.wait_for()
        assert await page.locator("details.error").count() >= 3

        await page.goto("/schedules")
        row = "tr:has-text('tidy_up'):has-text('0 4')"
        assert "runs now" in await act(page, "Run now", within=row)

        async def has_run() -> bool:
            return any(job.task == "tidy_up" for job in await client.history.finished())

        await wait_until(has_run, description="the schedule's task has run", timeout_s=60)
        assert "is paused" in await act(page, "Pause", within=row)
        assert (await client.schedules.get("tidy_up")).paused
        assert "goes on" in await act(page, "Resume", within=row)

        await page.goto("/")
        assert "is paused" in await act(page, "Pause")
        assert (await client.paused()).queues == ("arq:queue",)
        assert "goes on" in await act(page, "Resume", within=".notice")

        await page.goto("/task?name=send_mail")
        await page.get_by_text("Enqueue a job").click()
        await page.get_by_label("Arguments").fill('{"address": "form@example.com"}')
        assert "Enqueued send_mail" in await act(page, "Enqueue")

        await page.goto("/workers")
        assert "draining" in await act(page, "Drain")
        (worker,) = await client.workers.list()
        await page.goto(f"/worker?name={worker.name}")
        await page.get_by_label("Jobs at once").fill("3")
        assert "concurrency 3" in await act(page, "Set")
        assert "running" in await act(page, "Resume")

        run = await client.start(warehouse(fails=True))
        await run.wait(60)
        await page.goto(f"/workflow?id={run.id}")
        assert "2 steps" in await act(page, "Retry what did not succeed")


async def test_a_password_keeps_others_out_and_lets_its_owner_in(
    redis_url: str, database_url: str
) -> None:
    options = ("--password", PASSWORD, "--read-only")
    async with (
        standing(redis_url, database_url, *options) as base,
        browsing() as browser,
        window(browser, base) as page,
    ):
        await page.goto("/jobs")
        assert page.url.endswith("/sign-in")
        await page.get_by_label("Password").fill("wrong")
        await page.get_by_role("button", name="Sign in").click()
        await page.get_by_text("not the password").wait_for()
        await page.get_by_label("Password").fill(PASSWORD)
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Overview").wait_for()
        await page.get_by_text("read-only").wait_for()
        assert await page.locator("[formaction]").count() == 0
        forged = await page.evaluate(
            "(async () => (await fetch('/queues/pause', {method: 'POST', body: "
            "new URLSearchParams({csrf: '0'})})).status)()"
        )
        assert forged == 403
        await page.get_by_role("button", name="Sign out").click()
        await page.goto("/")
        assert page.url.endswith("/sign-in")


async def test_it_can_be_read_on_a_phone_in_the_dark_by_keyboard_and_without_scripts(
    redis_url: str, database_url: str
) -> None:
    async with (
        runner.connect(redis_url) as client,
        standing(redis_url, database_url) as base,
        load_on(client),
        browsing() as browser,
    ):
        run = await client.start(warehouse())
        await client.enqueue(shop.import_catalogue, "autumn.csv", 4_000)

        async def has_failed() -> bool:
            return await client.dead.count() > 0 and (await run.status()).has_ended

        await wait_until(has_failed, description="something has failed", timeout_s=90)
        (letter, *_) = (await client.dead.list(limit=1)).letters
        pages = {
            "overview": "/",
            "jobs": "/jobs",
            "dead": "/dead",
            "job": f"/job?id={letter.job_id}",
            "workflow": f"/workflow?id={run.id}",
            "workers": "/workers",
        }
        for scheme in ("light", "dark"):
            async with window(browser, base, color_scheme=scheme) as page:
                for name, path in pages.items():
                    await page.goto(path)
                    await page.locator("[data-pulse]:not([hidden])").wait_for()
                    await shot(page, f"{name}-{scheme}")
                ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (max(map(int, re.findall(r"\d+", ground))) < 60) == (scheme == "dark")
        async with window(browser, base, width=390, height=844, is_mobile=True) as page:
            for name, path in pages.items():
                await page.goto(path)
                await shot(page, f"{name}-phone")
                width = await page.evaluate("document.documentElement.scrollWidth")
                assert width <= 390, f"{name} fits the width of a phone"
            await page.goto("/dead")
            error = page.locator("td.args").first
            assert "bank: the card of order" in await error.inner_text()
            assert await error.evaluate(ALL_IN_SIGHT), "nothing lies over the error"
        async with window(browser, base, java_script_enabled=False) as page:
            for path in pages.values():
                await page.goto(path)
                assert await page.locator("main h1").count() >= 1
            assert await page.locator("table tbody tr").count() == 1
        async with window(browser, base) as page:
            await page.goto("/")
            await page.keyboard.press("/")
            await page.keyboard.type(letter.job_id)
            await page.keyboard.press("Enter")
            await page.get_by_role("heading", name=letter.job_id).wait_for()
            requeue = page.get_by_role("button", name="Requeue", exact=True)
            await requeue.focus()
            await page.keyboard.press("Enter")
            await page.locator(".toast", has_text="in its queue again").wait_for()
