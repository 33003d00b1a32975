"""Find the settings class that a command was given, and connect as its workers do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from runner.codec import Codec, codec_of
from runner.connection import open_client
from runner.schedule import Schedule
from runner.settings import load_settings
from runner.signing import chosen_codec
from runner.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from runner.client import Client
    from runner.settings import WorkerSettings

T = TypeVar("T")


def codec_by(settings: type[WorkerSettings]) -> Codec:
    """Return the codec of the workers."""
    hooks = (getattr(settings, name, None) for name in ("job_serializer", "job_deserializer"))
    return chosen_codec(settings.codec, settings.signing_keys) or codec_of(*hooks)


async def client_by(settings: type[WorkerSettings]) -> Client:
    """Connect to the Redis of the workers, with their codec and queue."""
    return await open_client(
        settings.redis_settings,
        codec=codec_by(settings),
        queue=settings.queue_name,
        expires_extra_ms=settings.expires_extra_ms,
    )


def do(settings: type[WorkerSettings], work: Callable[[Client], Awaitable[T]]) -> T:
    """Do something with a client of the workers' Redis, and return what came of it."""

    async def connected() -> T:
        client = await client_by(settings)
        try:
            return await work(client)
        finally:
            await client.aclose()

    return uvloop.run(connected())


def function_names(settings: type[WorkerSettings]) -> set[str]:
    """Return the names of the functions that workers with these settings have."""
    functions = [*settings.functions, *(settings.cron_jobs or ())]
    names = {job.task for job in functions if isinstance(job, Schedule)}
    others = [function for function in functions if not isinstance(function, Schedule)]
    return names | {_name(function) for function in others}


def _name(function: Any) -> str:
    if isinstance(function, str):
        return function.rpartition(".")[2]
    name: str = getattr(function, "name", None) or function.__qualname__
    return name


def tasks_by(settings: type[WorkerSettings]) -> dict[str, Task[..., Any]]:
    """Return the declared tasks of the workers, by name."""
    declared = [function for function in settings.functions if isinstance(function, Task)]
    return {task.name: task for task in declared}


__all__ = ["client_by", "codec_by", "do", "function_names", "load_settings", "tasks_by"]
