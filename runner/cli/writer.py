"""``runner writer``: how the writer is, and a candidate for it in a process of its own."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import click
import uvloop

from runner import logs
from runner.cli import where as options
from runner.cli.load import client_by, codec_by, do, load_settings
from runner.cli.tables import as_json, escaped
from runner.errors import SettingsError
from runner.joblog import Collector
from runner.lengths import length
from runner.middleware import all_of
from runner.tasks import seconds
from runner.types import Retention, WriterStatus
from runner.writer import Bounds, Candidate, adopt_database

if TYPE_CHECKING:
    from runner.settings import WorkerSettings


class Chosen(click.Group):
    """A group that runs one of its commands where none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the command in front where the first word names none."""
        names_none = not args or (args[0] not in self.commands and args[0] != "--help")
        if names_none and not ctx.resilient_parsing:  # which is how words are completed
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=Chosen)
def writer() -> None:
    """Run a candidate for the writer, or see how the elected one is.

    "runner writer SETTINGS" is short for "runner writer run SETTINGS".
    """


@writer.command()
@options.settings_option
@options.as_json_flag
@click.pass_context
def status(ctx: click.Context, path: str, *, as_json: bool) -> None:
    """Show who writes, how far it is, and what waits; status 1 when something waits for nobody."""
    found = do(load_settings(path), lambda client: client.writer_status())
    if as_json:
        click.echo(_json(shown(found)))
    else:
        for line in told(found):
            click.echo(line)
    ctx.exit(1 if found.backlog and not found.leader else 0)


def shown(found: WriterStatus) -> dict[str, Any]:
    """Return what is printed of the writer."""
    names = "leader position backlog backlog_bytes lag_s units operations batches rejected"
    return {name: getattr(found, name) for name in names.split()}


def told(found: WriterStatus) -> list[str]:
    """Return the lines that show the writer to a person."""
    mean = found.units / found.batches if found.batches else 0
    facts = {
        "leader": found.leader or "nobody",
        "position": found.position,
        "waiting": f"{found.backlog:,} units, {found.backlog_bytes:,} bytes",
        "lag": length(found.lag_s * 1000),
        "committed": f"{found.units:,} units, {found.operations:,} operations",
        "batches": f"{found.batches:,}, {mean:.1f} units each",
        "rejected": f"{found.rejected:,}",
    }
    return [f"{name:>9}  {escaped(text)}" for name, text in facts.items()]


@writer.command()
@click.argument("settings", default="settings.WorkerSettings")
@click.option(
    "--adopt",
    "adopts",
    is_flag=True,
    help="Declare that this Redis and this database belong together, and end. For a cloned "
    "database or a Redis that was emptied; units in the stream count as applied.",
)
def run(settings: str, *, adopts: bool) -> None:
    """Run a candidate for the writer until it is told to stop.

    SETTINGS is the class that the workers use, for its redis_settings, database_url, codec
    and signing_keys.
    """
    logs.configure()
    found = load_settings(settings)
    if adopts:
        click.echo(f"adopted: identity {uvloop.run(declare(found))}")
    else:
        uvloop.run(serve(found))


async def declare(settings: type[WorkerSettings]) -> str:
    """Give the Redis and the database of these settings one new identity; return it."""
    redis = await client_by(settings)
    try:
        return await adopt_database(
            redis, _database_url(settings), codec_by(settings), retention=_retention(settings)
        )
    finally:
        await redis.aclose()


def _database_url(settings: type[WorkerSettings]) -> str:
    if settings.database_url is None:
        raise SettingsError(f"{settings.__name__}.database_url is not set: nothing to write to")
    return settings.database_url


def _retention(settings: type[WorkerSettings]) -> Retention:
    log_s = seconds(settings.job_log_keep) if settings.job_log else None
    return Retention(
        int(seconds(settings.dead_letters_keep) * 1000),
        settings.dead_letters_max,
        job_log_ms=int((log_s or 0) * 1000),
        history_jobs=settings.history_jobs if settings.monitor else 0,
    )


async def serve(settings: type[WorkerSettings]) -> None:
    """Stand for election and write, until SIGINT or SIGTERM."""
    database_url = _database_url(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    redis = await client_by(settings)
    log = Collector("") if settings.job_log else None  # of what is refused, here
    candidate = Candidate(
        redis=redis,
        database_url=database_url,
        codec=codec_by(settings),
        bounds=Bounds(settings.writer_backlog_entries, settings.writer_backlog_bytes),
        statement_timeout_s=seconds(settings.writer_statement_timeout),
        retention=_retention(settings),
        told=(*all_of(settings.middleware, "committed"), *((log.told,) if log else ())),
    )
    if log is not None:
        await log.start(redis)
    await candidate.start()
    try:
        await stop.wait()
    finally:
        await candidate.stop()
        if log is not None:
            await log.stop()
        await redis.aclose()


_json = as_json
