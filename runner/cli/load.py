"""Find the settings class that a command was given, and connect as its workers do."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from runner import settings as settings_module
from runner.codec import Codec, codec_of
from runner.connection import open_client
from runner.errors import RunnerError, SettingsError
from runner.schedule import Schedule
from runner.signing import chosen_codec
from runner.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from runner.client import Client
    from runner.settings import WorkerSettings

T = TypeVar("T")


def load_settings(path: str) -> type[WorkerSettings]:
    """Import ``module.Class`` as workers do; what goes wrong in the module is told in a line.

    Raises:
        SettingsError: there is no such class, or its module cannot be imported.
    """
    try:
        return settings_module.load_settings(path)
    except RunnerError:
        raise
    except Exception as exc:
        module = path.rpartition(".")[0]
        raise SettingsError(
            f"{module} cannot be imported: {_said(exc)}{_place_of(exc)}; "
            f"python -c 'import {module}' tells all of it"
        ) from exc


def check_there(path: str) -> None:
    """Raise `SettingsError` when there is no such module or package; nothing of it runs."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    top, *rest = path.split(".")
    if not all(rest) or not rest or not top or find_spec(top) is None:
        load_settings(path)  # which says what is wrong


def _said(exc: Exception) -> str:
    frames = traceback.extract_tb(exc.__traceback__)
    if isinstance(exc, KeyError) and frames[-1].filename.endswith(("os.py", "<frozen os>")):
        return f"the environment variable {exc.args[0]} is not set"
    text = exc.msg if isinstance(exc, SyntaxError) else str(exc)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def _place_of(exc: Exception) -> str:
    """Return the line that raised, the last one of the user's own, or ""."""
    if isinstance(exc, SyntaxError):
        found = [(exc.filename, exc.lineno)]
    else:
        frames = traceback.extract_tb(exc.__traceback__)
        found = [(frame.filename, frame.lineno) for frame in frames]
    here = str(Path.cwd()) + os.sep
    own = [
        (name, line)
        for name, line in found
        if name and name.startswith(here) and "site-packages" not in name
    ]
    return f" ({own[-1][0].removeprefix(here)}, line {own[-1][1]})" if own else ""


def codec_by(settings: type[WorkerSettings]) -> Codec:
    """Return the codec of the workers."""
    hooks = (getattr(settings, name, None) for name in ("job_serializer", "job_deserializer"))
    return chosen_codec(settings.codec, settings.signing_keys) or codec_of(*hooks)


async def client_by(settings: type[WorkerSettings], *, waits: bool = True) -> Client:
    """Connect to the Redis of the workers, with their codec and queue.

    Args:
        settings: theirs.
        waits: try again for some seconds where it is away; somebody who types hears it at once.
    """
    redis_settings = settings.redis_settings
    return await open_client(
        redis_settings if waits else replace(redis_settings, conn_retries=0),
        codec=codec_by(settings),
        queue=settings.queue_name,
        expires_extra_ms=settings.expires_extra_ms,
    )


def do(settings: type[WorkerSettings], work: Callable[[Client], Awaitable[T]]) -> T:
    """Do something with a client of the workers' Redis, and return what came of it."""

    async def connected() -> T:
        client = await client_by(settings, waits=False)
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


__all__ = [
    "check_there",
    "client_by",
    "codec_by",
    "do",
    "function_names",
    "load_settings",
    "tasks_by",
]
