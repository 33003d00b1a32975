"""``runner writer``: a candidate for the writer in a process of its own."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import click
import uvloop

from runner import logs
from runner.cli.load import load_settings
from runner.client import open_client
from runner.codec import codec_named
from runner.errors import SettingsError
from runner.writer import Candidate

if TYPE_CHECKING:
    from runner.settings import WorkerSettings


@click.command()
@click.argument("settings", default="settings.WorkerSettings")
def writer(settings: str) -> None:
    """Run a candidate for the writer until it is told to stop.

    SETTINGS is the class that the workers use, for its redis_settings, database_url and codec.
    """
    logs.configure()
    uvloop.run(serve(load_settings(settings)))


async def serve(settings: type[WorkerSettings]) -> None:
    """Stand for election and write, until SIGINT or SIGTERM."""
    if settings.database_url is None:
        raise SettingsError(f"{settings.__name__}.database_url is not set: nothing to write to")
    codec = settings.codec if not isinstance(settings.codec, str) else codec_named(settings.codec)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    redis = await open_client(
        settings.redis_settings,
        codec=codec,
        queue=settings.queue_name,
        expires_extra_ms=settings.expires_extra_ms,
    )
    candidate = Candidate(redis=redis, database_url=settings.database_url, codec=codec)
    await candidate.start()
    try:
        await stop.wait()
    finally:
        await candidate.stop()
        await redis.aclose()
