"""Find the settings class that a command was given, and connect as its workers do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from runner.codec import Codec, codec_of
from runner.connection import open_client
from runner.errors import SettingsError, did_you_mean
from runner.settings import WorkerSettings
from runner.signing import chosen_codec
from runner.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from runner.client import Client

T = TypeVar("T")


def load_settings(path: str) -> type[WorkerSettings]:
    """Import ``module.Class``, looking in the current folder too.

    Raises:
        SettingsError: there is no such module or class, or it is no `WorkerSettings`.
    """
    module_name, _, class_name = path.rpartition(".")
    if not module_name:
        raise SettingsError(f"{path!r} must name a class, as in settings.WorkerSettings")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name != module_name:
            raise
        raise SettingsError(f"there is no module {module_name!r} in {folder}") from exc
    found = getattr(module, class_name, None)
    if found is None:
        hint = did_you_mean(class_name, vars(module))
        raise SettingsError(f"{module_name} has no {class_name!r}{hint}")
    if not (isinstance(found, type) and issubclass(found, WorkerSettings)):
        raise SettingsError(f"{path} must be a subclass of runner.WorkerSettings")
    return found


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


def tasks_by(settings: type[WorkerSettings]) -> dict[str, Task[..., Any]]:
    """Return the declared tasks of the workers, by name."""
    declared = [function for function in settings.functions if isinstance(function, Task)]
    return {task.name: task for task in declared}
