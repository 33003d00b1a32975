"""The class that `settings.py` subclasses: typed, validated, and read by arq's command line."""

from __future__ import annotations

import gc
import importlib
import inspect
import logging
import math
import sys
from datetime import timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import arq.worker
from arq.connections import ArqRedis, RedisSettings
from arq.cron import CronJob
from arq.worker import Function

from runner import keys, logs
from runner.bus import is_subscriber
from runner.codec import Codec, codec_named
from runner.errors import SettingsError, did_you_mean
from runner.executors import MAX_THREADS
from runner.middleware import Middleware
from runner.middleware.errors import switch_off_arq
from runner.parts import Part
from runner.queues import named
from runner.schedule import Schedule, check_names
from runner.signing import KeyRing, SigningKeys
from runner.tasks import KEPT_RULE, MOST_KEPT_S, Task, seconds
from runner.watch import LEFT_RESOURCES, LEFT_TASKS, RECYCLED
from runner.worker import CANCEL_GRACE_S, KEEP_JOB_LOG_S, KEEP_LETTERS_S, MOST_LETTERS, Worker
from runner.writer import BOUND_ENTRIES, STATEMENT_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from arq.typing import StartupShutdown

    from runner.events import Subscriber

_MISSING = inspect.Parameter.empty


class SettingsWorker(Worker):
    """The Worker that `WorkerSettings` starts: it also formats the logs of its process."""

    async def main(self) -> None:
        """Format the logs as the environment asks, then do as every worker does."""
        logs.configure()
        await super().main()

    def run(self) -> None:
        """Run until told to stop; exit with status 75 when a limit of the process was reached."""
        # What is loaded by now lives as long as the process: no collection is to look at it again.
        gc.collect()
        gc.freeze()
        super().run()
        if self.recycled:
            sys.exit(RECYCLED)


class WorkerSettings:
    """The settings of a worker: subclass it, and run ``arq settings.WorkerSettings``.

    Each attribute is a parameter of `runner.Worker` (arq's own, and ours), with defaults for
    a fleet of ours: the safe codec, results and counters kept, uvloop, health every 5 s.
    Unknown names near a known one, and values of the wrong type, are refused when the class
    is made; constants and helpers with other names are left alone.

    Example:
        >>> class WorkerSettings(runner.WorkerSettings):
        ...     functions = [place_order]
        ...     redis_settings = RedisSettings.from_dsn("redis://localhost")
        ...     max_jobs = 200
    """

    functions: ClassVar[Sequence[Any]] = ()
    queue_name: ClassVar[str] = keys.DEFAULT_QUEUE
    cron_jobs: ClassVar[Sequence[CronJob | Schedule]] = ()
    redis_settings: ClassVar[RedisSettings] = RedisSettings()
    on_startup: ClassVar[StartupShutdown | None] = None
    on_shutdown: ClassVar[StartupShutdown | None] = None
    on_job_start: ClassVar[StartupShutdown | None] = None
    on_job_end: ClassVar[StartupShutdown | None] = None
    after_job_end: ClassVar[StartupShutdown | None] = None
    max_jobs: ClassVar[int] = 100
    job_timeout: ClassVar[float | timedelta] = 300
    keep_result: ClassVar[float | timedelta] = 3600
    keep_result_forever: ClassVar[bool] = False
    poll_delay: ClassVar[float | timedelta] = 0.5
    max_tries: ClassVar[int] = 5
    job_completion_wait: ClassVar[int] = 0
    health_check_interval: ClassVar[float | timedelta] = 5
    expires_extra_ms: ClassVar[int] = keys.KEEP_MS
    codec: ClassVar[str | Codec] = "msgpack"
    signing_keys: ClassVar[SigningKeys | None] = None
    history: ClassVar[bool] = True
    lease: ClassVar[float | timedelta] = 15.0
    lanes: ClassVar[int] = 2
    max_crashes: ClassVar[int] = 3
    database_url: ClassVar[str | None] = None
    writer: ClassVar[bool] = True
    writer_backlog_bytes: ClassVar[int | None] = None
    writer_backlog_entries: ClassVar[int] = BOUND_ENTRIES
    writer_statement_timeout: ClassVar[float | timedelta] = STATEMENT_TIMEOUT_S
    read_pool_size: ClassVar[int] = 2
    use_uvloop: ClassVar[bool] = True
    queues: ClassVar[Sequence[str] | Mapping[str, int]] = ()
    subscribers: ClassVar[Sequence[Subscriber]] = ()
    max_threads: ClassVar[int] = MAX_THREADS
    max_processes: ClassVar[int | None] = None
    calls_per_process: ClassVar[int | None] = None
    cancel_grace: ClassVar[float | timedelta] = CANCEL_GRACE_S
    dead_letters_keep: ClassVar[float | timedelta] = KEEP_LETTERS_S
    dead_letters_max: ClassVar[int] = MOST_LETTERS
    middleware: ClassVar[Sequence[Middleware]] = ()
    max_jobs_per_process: ClassVar[int | None] = None
    max_memory_mb: ClassVar[float | None] = None
    max_memory_hard_mb: ClassVar[float | None] = None
    max_age: ClassVar[float | timedelta | None] = None
    blocked_after: ClassVar[float | timedelta | None] = 1.0
    overdue_factor: ClassVar[float | None] = None
    left_tasks: ClassVar[str] = "ignore"
    left_resources: ClassVar[str] = "ignore"
    vitals_interval: ClassVar[float | timedelta | None] = 10.0
    parts: ClassVar[Sequence[Part]] = ()
    monitor: ClassVar[bool] = True
    history_jobs: ClassVar[int] = 1_000
    job_log_lines: ClassVar[int] = 100
    health_port: ClassVar[int | None] = None
    health_host: ClassVar[str] = "127.0.0.1"
    job_log: ClassVar[bool] = False
    job_log_keep: ClassVar[float | timedelta | None] = KEEP_JOB_LOG_S

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = _parameters()
        for name, value in _inherited(cls).items():
            if name in known:
                _check(cls.__name__, name, value)
                # arq reads nothing but the class's own __dict__.
                setattr(cls, name, value)
            elif not name.startswith("_"):
                _refuse_near_miss(cls.__name__, name, known)
        _check_together(cls)
        install()


def install() -> None:
    """Let arq's command line start our worker.

    ``arq.worker.create_worker`` looks the class up in its module when it is called, so this
    one assignment makes ``arq settings.WorkerSettings`` with ``--burst``, ``--check`` and
    ``--watch`` run ours. It is the only place where this package changes another; and Sentry's
    SDK must not, where it is there: it would wrap the functions.
    """
    arq.worker.Worker = SettingsWorker  # type: ignore[misc]
    switch_off_arq()


def load_settings(path: str) -> type[WorkerSettings]:
    """Import ``module.Class``, looking in the current folder too.

    Raises:
        SettingsError: there is no such module or class, or it is no `WorkerSettings`.
    """
    module_name, _, class_name = path.rpartition(".")
    if not all(path.split(".")) or not module_name:
        raise SettingsError(f"{path!r} must name a class, as in settings.WorkerSettings")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if not f"{module_name}.".startswith(f"{exc.name}."):
            raise  # it is there, and imports what is not
        raise SettingsError(f"there is no module {module_name!r} in {folder}") from exc
    found = getattr(module, class_name, None)
    if found is None:
        hint = did_you_mean(class_name, vars(module))
        raise SettingsError(f"{module_name} has no {class_name!r}{hint}")
    if not (isinstance(found, type) and issubclass(found, WorkerSettings)):
        raise SettingsError(f"{path} must be a subclass of runner.WorkerSettings")
    return found


def _parameters() -> Mapping[str, inspect.Parameter]:
    return inspect.signature(Worker).parameters


def _inherited(cls: type) -> dict[str, Any]:
    """Return every attribute of the class and its parents, the nearest first."""
    values: dict[str, Any] = {}
    for parent in reversed(cls.__mro__[:-1]):
        values.update(vars(parent))
    bound = {name: getattr(cls, name) for name in values}
    return {
        name: bound[name] if isinstance(values[name], staticmethod | classmethod) else values[name]
        for name in values
    }


def _refuse_near_miss(owner: str, name: str, known: Mapping[str, Any]) -> None:
    hint = did_you_mean(name, known)
    if hint:
        raise SettingsError(f"{owner}: unknown setting {name!r}{hint}")


def _number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, timedelta):
        return value >= timedelta(0)
    return isinstance(value, int | float) and 0 <= value < math.inf


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_text, value))


def _queues(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_text, value)) and all(map(_whole, value.values()))
    return _names(value)


def _hook(value: Any) -> bool:
    return value is None or inspect.iscoroutinefunction(value)


def _function(value: Any) -> bool:
    """Take what a worker can run by its name: also a text "module.function"."""
    if isinstance(value, str):
        module, _, name = value.strip(" ").rpartition(".")
        return all(part.isidentifier() for part in (*module.split("."), name))
    return isinstance(value, Function | Task) or inspect.iscoroutinefunction(value)


def _functions(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_function, value))


def _cron_jobs(value: Any) -> bool:
    return value is None or (
        isinstance(value, list | tuple)
        and all(isinstance(job, CronJob | Schedule) for job in value)
    )


def _subscribers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(is_subscriber, value))


def _middleware(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, Middleware) for one in value)


def _parts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, Part) for one in value)


def _above_zero(value: Any) -> bool:
    return value is None or (_number(value) and seconds(value) > 0)


def _codec(value: Any) -> bool:
    if value is None or isinstance(value, str):
        return True
    methods = (getattr(value, name, None) for name in ("dumps", "loads"))
    return not isinstance(value, type) and all(map(callable, methods))


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        (
            "job_timeout",
            "keep_result",
            "poll_delay",
            "health_check_interval",
            "lease",
            "cancel_grace",
            "dead_letters_keep",
            "writer_statement_timeout",
        ),
        (_number, "a number of seconds, 0 or more, or a timedelta"),
    ),
    **dict.fromkeys(
        (
            "max_jobs",
            "max_tries",
            "lanes",
            "max_crashes",
            "read_pool_size",
            "expires_extra_ms",
            "max_burst_jobs",
            "writer_backlog_entries",
            "max_threads",
            "dead_letters_max",
            "history_jobs",
            "job_log_lines",
        ),
        (_whole, "a whole number"),
    ),
    **dict.fromkeys(
        (
            "burst",
            "history",
            "writer",
            "use_uvloop",
            "keep_result_forever",
            "retry_jobs",
            "allow_abort_jobs",
            "handle_signals",
            "log_results",
            "monitor",
            "job_log",
        ),
        (_flag, "True or False"),
    ),
    **dict.fromkeys(
        ("on_startup", "on_shutdown", "on_job_start", "on_job_end", "after_job_end"),
        (_hook, "an async function, or None"),
    ),
    **dict.fromkeys(
        ("job_serializer", "job_deserializer"),
        (lambda value: value is None or callable(value), "a function, or None"),
    ),
    "functions": (
        _functions,
        "a list or tuple of tasks, async functions, arq's Function, or texts 'module.function'",
    ),
    "cron_jobs": (_cron_jobs, "a list or tuple of cron jobs, as cron(...) makes them, or None"),
    "codec": (_codec, "the name of a codec, an object with dumps and loads, or None"),
    "job_completion_wait": (
        lambda value: _number(value) and not isinstance(value, timedelta),
        "a number of seconds, 0 or more",
    ),
    "queue_read_limit": (
        lambda value: value is None or (_whole(value) and value >= 0),
        "a whole number, 0 or more, or None",
    ),
    "writer_backlog_bytes": (
        lambda value: value is None or (_whole(value) and value > 0),
        "a whole number of bytes, or None",
    ),
    **dict.fromkeys(
        ("max_processes", "calls_per_process"),
        (
            lambda value: value is None or (_whole(value) and value > 0),
            "a whole number, more than 0, or None",
        ),
    ),
    "health_check_key": (
        lambda value: value is None or _text(value),
        "the name of a key of Redis, or None",
    ),
    "ctx": (lambda value: value is None or isinstance(value, dict), "a dict, or None"),
    "timezone": (
        lambda value: value is None or isinstance(value, tzinfo),
        "a tzinfo such as ZoneInfo('Europe/Zurich'), or None",
    ),
    "redis_pool": (
        lambda value: value is None or isinstance(value, ArqRedis),
        "a client that runner.connect or arq's create_pool made, or None",
    ),
    **dict.fromkeys(
        ("max_age", "blocked_after", "vitals_interval", "job_log_keep"),
        (_above_zero, "a number of seconds, more than 0, a timedelta, or None"),
    ),
    **dict.fromkeys(
        ("max_memory_mb", "max_memory_hard_mb"),
        (
            lambda value: _above_zero(value) and not isinstance(value, timedelta),
            "a number of megabytes, more than 0, or None",
        ),
    ),
    "max_jobs_per_process": (
        lambda value: value is None or (_whole(value) and value > 0),
        "a whole number, more than 0, or None",
    ),
    "overdue_factor": (
        lambda value: value is None or (_number(value) and seconds(value) >= 1),
        "a number, 1 or more, or None",
    ),
    "left_resources": (lambda value: value in LEFT_RESOURCES, f"one of {LEFT_RESOURCES}"),
    "left_tasks": (lambda value: value in LEFT_TASKS, f"one of {LEFT_TASKS}"),
    "parts": (_parts, "a list or tuple of objects of subclasses of runner.Part"),
    "middleware": (_middleware, "a list or tuple of objects of subclasses of runner.Middleware"),
    "queue_name": (_text, "a name"),
    "health_host": (_text, "an address such as 127.0.0.1"),
    "health_port": (
        lambda value: value is None or (_whole(value) and 0 <= value < 65_536),  # noqa: PLR2004
        "a port, 0 for any that is free, or None",
    ),
    "subscribers": (_subscribers, "a list or tuple of plain functions of one event"),
    "queues": (
        _queues,
        "a tuple or list of names, not one text, or a dict of names and whole numbers",
    ),
    "redis_settings": (
        lambda value: isinstance(value, RedisSettings),
        "arq's RedisSettings; RedisSettings.from_dsn(url) makes one",
    ),
    "database_url": (
        lambda value: (
            value is None
            or (isinstance(value, str) and value.startswith(("postgresql://", "postgres://")))
        ),
        "a postgresql:// URL, or None",
    ),
}

# Parameters of the worker without a rule, and why.
_NO_RULE = {"signing_keys": "KeyRing.of checks them, and never shows a key"}

_LEAST = {
    "max_jobs": 1,
    "max_tries": 1,
    "lanes": 1,
    "max_crashes": 1,
    "max_threads": 1,
    "read_pool_size": 0,
    "writer_backlog_entries": 1,
    "expires_extra_ms": 0,
    "dead_letters_max": 1,
    "history_jobs": 1,
    "job_log_lines": 0,
}
_LEAST_LEASE_S = 1.0


_SECRET = frozenset({"database_url", "redis_settings"})
"""There may be a password in them: what they are is shown, and not what they say."""


def _check(owner: str, name: str, value: Any) -> None:
    rule = _RULES.get(name)
    if rule is not None and not rule[0](value):
        shown = type(value).__name__ if name in _SECRET else repr(value)
        raise SettingsError(f"{owner}.{name} is {shown}, but must be {rule[1]}")
    if name == "cron_jobs":
        check_names(value or ())
    least = _LEAST.get(name)
    if least is not None and value < least:
        raise SettingsError(f"{owner}.{name} is {value}, but must be at least {least}")
    if name == "keep_result" and seconds(value) > MOST_KEPT_S:
        raise SettingsError(f"{owner}.keep_result is {value!r}, but must be {KEPT_RULE}")
    if name == "dead_letters_keep" and not 1 <= seconds(value) <= MOST_KEPT_S:
        raise SettingsError(f"{owner}.{name} is {value!r}, but must be 1 s to 100 years")
    if name == "lease" and seconds(value) < _LEAST_LEASE_S:
        raise SettingsError(f"{owner}.lease is {value}, but must be at least {_LEAST_LEASE_S} s")
    try:
        if name == "codec" and isinstance(value, str):
            codec_named(value)
        if name == "signing_keys" and value is not None:
            KeyRing.of(value)
    except SettingsError as exc:
        raise SettingsError(f"{owner}.{name}: {exc}") from None


def _check_together(cls: type[WorkerSettings]) -> None:
    serializer = getattr(cls, "job_serializer", None)
    if serializer is not None and "codec" in vars(cls):
        if cls.signing_keys is not None:
            raise SettingsError(
                f"{cls.__name__} has signing_keys and a job_serializer: leave the hooks out, and "
                "give codec=SignedCodec(HookCodec(serializer, deserializer), keys)",
            )
        # A fleet with hooks of its own keeps them: they are its codec.
        cls.codec = None  # type: ignore[assignment]
    try:
        named(cls.queue_name, cls.queues, default=keys.DEFAULT_QUEUE)
    except SettingsError as exc:
        raise SettingsError(f"{cls.__name__}: {exc}") from None
    if cls.job_log and cls.database_url is None:
        raise SettingsError(
            f"{cls.__name__}.job_log is True, but there is no database: set database_url, too"
        )
    if not cls.functions and not cls.cron_jobs:
        logging.getLogger(__name__).debug("%s names no functions yet", cls.__name__)


__all__ = ["SettingsWorker", "WorkerSettings", "install", "load_settings"]
