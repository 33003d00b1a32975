"""The pictures of the docs: ``python -m tests.pictures [folder]``.

A shop under load, beside its own Valkey and Postgres, in Chromium. An hour of counts is written
beforehand, so that the chart of the last hour has a shape; all else is what happens meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import runner
from runner import embedded, keys
from runner.inspect.latency import bucket
from tests.acceptance.test_dashboard_browser import (
    browsing,
    load_on,
    standing,
    warehouse,
    window,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, Page

    from runner import Client

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
WIDE, PHONE = (1280, 820), (390, 760)
LOW = 620
"""How high a page is shown whose lower part is of no interest."""
LOAD_S = 20
"""For how long there is load before the first picture."""


async def write_an_hour(client: Client) -> None:
    """Write counts of the last hour, which go up and down."""
    chance = random.Random(7)
    seconds, _ = await client.time()
    for ago in range(60, -1, -1):
        share = 1 if ago else seconds % 60 / 60
        usual = 2_600 + 1_000 * math.cos(ago / 60 * 2 * math.pi) + chance.randrange(250)
        ended = int(usual * share)
        failed = chance.randrange(5, 40) * (4 if 22 <= ago <= 24 else 1)
        counts: dict[str, int] = {"succeeded": ended, "failed": failed}
        for kind, usual_ms in (("w", 3), ("r", 40)):
            times = [usual_ms * math.exp(chance.gauss(0, 0.7)) for _ in range(200)]
            counts[f"{kind}s"] = int(sum(times) / len(times) * (ended + failed))
            for ms in times:
                name = f"{kind}{bucket(ms)}"
                counts[name] = counts.get(name, 0) + (ended + failed) // len(times)
        name = keys.minute(keys.DEFAULT_QUEUE, seconds // 60 - ago)
        await cast(Any, client).hset(name, mapping=counts)


async def take(page: Page, path: str, target: Path) -> None:
    """Open a page, wait until it is live, and take a picture of it."""
    await page.goto(path)
    await page.locator("[data-pulse]:not([hidden])").wait_for()
    await page.screenshot(path=target)


async def take_all(base: str, client: Client, browser: Browser, folder: Path) -> None:
    """Take the pictures that the docs show."""
    run = await client.start(warehouse(fails=True))
    assert (await run.wait(60)).state.value == "failed"
    await asyncio.sleep(LOAD_S)
    (letter,) = (await client.dead.list(runner.LetterFilter(task="charge_card"), limit=1)).letters

    @asynccontextmanager
    async def shown(scheme: str, size: tuple[int, int]) -> AsyncIterator[Page]:
        width, height = size
        async with window(browser, base, width=width, height=height, color_scheme=scheme) as page:
            yield page

    for scheme in ("light", "dark"):
        async with shown(scheme, WIDE) as page:
            await take(page, "/", folder / f"overview-{scheme}.png")
    async with shown("light", PHONE) as page:
        await take(page, "/", folder / "overview-phone.png")
    async with shown("dark", (WIDE[0], LOW)) as page:
        await take(page, f"/job?id={letter.job_id}", folder / "job-dark.png")
    async with shown("light", (WIDE[0], LOW)) as page:
        await take(page, f"/workflow?id={run.id}", folder / "workflow-light.png")


async def main(folder: Path) -> None:
    """Start everything, and take the pictures."""
    with embedded.start() as servers:
        async with (
            runner.connect(servers.redis_url) as client,
            standing(servers.redis_url, servers.database_url) as base,
            load_on(client),
            browsing() as browser,
        ):
            await write_an_hour(client)
            await take_all(base, client, browser, folder)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if sys.argv[1:] else IMAGES))
