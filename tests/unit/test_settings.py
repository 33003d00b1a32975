"""Settings are checked when the class is made, and arq sees every one of them."""

from __future__ import annotations

import pickle
import re
from datetime import UTC, timedelta
from typing import Any, ClassVar, cast

import arq.worker
import pytest
from arq.worker import get_kwargs

import runner
from runner import RedisSettings, cron, func, settings, task
from runner.codec import MsgpackCodec
from runner.errors import SettingsError
from runner.settings import SettingsWorker

StockWorker = runner.Worker.__mro__[1]


@task
async def work(_ctx: Any) -> None: ...


@pytest.fixture(autouse=True)
def _arq_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a settings class does to arq's command line."""
    monkeypatch.setattr(arq.worker, "Worker", arq.worker.Worker)


def seen_by_arq(cls: type) -> dict[str, Any]:
    return cast(Any, get_kwargs)(cls)  # type: ignore[no-any-return]  # its annotations are wrong


def made(**given: Any) -> type[runner.WorkerSettings]:
    return type("Settings", (runner.WorkerSettings,), {"functions": [work], **given})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_job", "max_jobs"),
        ("function", "functions"),
        ("on_start_up", "on_startup"),
        ("redis_setting", "redis_settings"),
        ("keep_results", "keep_result"),
        ("job_timeouts", "job_timeout"),
        ("queuename", "queue_name"),
        ("cronjobs", "cron_jobs"),
        ("databaseurl", "database_url"),
        ("max_trys", "max_tries"),
        ("leases", "lease"),
    ],
)
def test_name_near_a_setting_is_refused(name: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=f"unknown setting '{name}'; did you mean '{meant}'"):
        made(**{name: 1})


def test_other_names_are_left_alone() -> None:
    cls = made(SHOP_URL="https://shop", helper=print, _private=1)
    assert cls.__dict__["SHOP_URL"] == "https://shop"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_jobs", "10"),
        ("max_jobs", 0),
        ("max_jobs", 2.5),
        ("max_jobs", True),
        ("max_tries", 0),
        ("dead_letters_max", 0),
        ("dead_letters_max", 1.5),
        ("dead_letters_keep", 0.5),
        ("dead_letters_keep", "7d"),
        ("dead_letters_keep", timedelta(days=40_000)),
        ("lanes", 0),
        ("max_crashes", 0),
        ("read_pool_size", -1),
        ("job_timeout", "30"),
        ("job_timeout", -1),
        ("job_timeout", timedelta(seconds=-1)),
        ("job_timeout", float("nan")),
        ("keep_result", float("inf")),
        ("writer_statement_timeout", -1),
        ("poll_delay", None),
        ("health_check_interval", "5"),
        ("lease", 0.5),
        ("lease", "15"),
        ("history", 1),
        ("writer", "yes"),
        ("use_uvloop", None),
        ("keep_result_forever", 0),
        ("allow_abort_jobs", "true"),
        ("queue_name", ""),
        ("queue_name", 5),
        ("redis_settings", "redis://localhost"),
        ("database_url", "mysql://localhost/x"),
        ("database_url", 5),
        ("on_startup", print),
        ("on_job_end", "hook"),
        ("after_job_end", lambda _ctx: None),
        ("functions", "x"),
        ("functions", ""),
        ("functions", None),
        ("functions", [3]),
        ("functions", ["work"]),
        ("functions", ["jobs..work"]),
        ("functions", [print]),
        ("functions", [cron(work, minute=1)]),  # its place is cron_jobs
        ("functions", {work}),
        ("cron_jobs", 3),
        ("cron_jobs", [work]),
        ("cron_jobs", "x"),
        ("codec", 3),
        ("codec", MsgpackCodec),
        ("codec", print),
        ("job_completion_wait", "x"),
        ("job_completion_wait", -1),
        ("job_completion_wait", timedelta(seconds=1)),
        ("timezone", "x"),
        ("queue_read_limit", "x"),
        ("queue_read_limit", -1),
        ("max_burst_jobs", "a"),
        ("max_burst_jobs", None),
        ("health_check_key", 3),
        ("health_check_key", ""),
        ("ctx", 3),
        ("expires_extra_ms", -1),
        ("expires_extra_ms", "1"),
        ("retry_jobs", 3),
        ("job_serializer", "x"),
        ("job_deserializer", 3),
        ("redis_pool", "redis://localhost"),
        ("lease", None),
        ("lease", timedelta(milliseconds=999)),
        ("lease", timedelta(seconds=-5)),
        ("queues", "later"),
    ],
)
def test_value_of_the_wrong_kind_is_refused(name: str, value: Any) -> None:
    shown = rf"({re.escape(repr(value))}|{re.escape(str(value))})"
    if name in ("database_url", "redis_settings"):
        shown = type(value).__name__  # there may be a password in it
    with pytest.raises(SettingsError, match=rf"^Settings\.{name} is {shown}, but must be \S"):
        made(**{name: value})


def test_unknown_codec_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^Settings\.codec: unknown codec 'json'.*known:"):
        made(codec="json")


@pytest.mark.parametrize("value", [3, "", "a:zz", b"key", {"a": b"short"}])
def test_keys_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match=r"^Settings\.signing_keys: signing_keys"):
        made(signing_keys=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("job_timeout", timedelta(minutes=1)),
        ("keep_result", 0),
        ("lease", 1),
        ("codec", "pickle"),
        ("database_url", None),
        ("database_url", "postgresql://localhost/x"),
        ("read_pool_size", 0),
        ("on_startup", None),
        ("lease", timedelta(seconds=5)),
        ("dead_letters_keep", timedelta(days=90)),
        ("dead_letters_keep", 1),
        ("dead_letters_max", 1),
        ("functions", ()),
        (
            "functions",
            (work, work.function, func(cast(Any, work.function)), "jobs.departures.worst_routes"),
        ),
        ("cron_jobs", None),
        ("cron_jobs", [cron(work, minute=1)]),
        ("codec", None),
        ("codec", MsgpackCodec()),
        ("codec", pickle),
        ("job_completion_wait", 1.5),
        ("timezone", UTC),
        ("timezone", None),
        ("queue_read_limit", None),
        ("queue_read_limit", 1),
        ("max_burst_jobs", -1),
        ("health_check_key", None),
        ("health_check_key", "alive"),
        ("ctx", {"a": 1}),
        ("ctx", None),
        ("expires_extra_ms", 0),
        ("job_serializer", None),
        ("job_deserializer", pickle.loads),
        ("redis_pool", None),
    ],
)
def test_value_at_the_edge_is_taken(name: str, value: Any) -> None:
    assert made(**{name: value}).__dict__[name] == value


def test_arq_sees_every_default() -> None:
    seen = seen_by_arq(made())
    assert seen["functions"] == [work]
    assert (seen["max_jobs"], seen["codec"], seen["history"]) == (100, "msgpack", True)
    assert seen["health_check_interval"] == 5
    offered = {n for n in vars(runner.WorkerSettings) if not n.startswith("_")}
    assert offered <= set(seen)


def test_subclass_of_a_subclass_inherits_into_its_own_dict() -> None:
    class Base(runner.WorkerSettings):
        functions: ClassVar = [work]
        max_jobs = 7
        redis_settings = RedisSettings(port=1234)

    class Child(Base):
        queue_name = "slow"

    class Grandchild(Child):
        max_jobs = 9

    seen = seen_by_arq(Grandchild)
    assert (seen["max_jobs"], seen["queue_name"]) == (9, "slow")
    assert seen["redis_settings"].port == 1234
    assert seen_by_arq(Child)["max_jobs"] == 7


def test_setting_of_a_mixin_counts() -> None:
    class Big:
        max_jobs = 500

    class Settings(Big, runner.WorkerSettings):
        functions: ClassVar = [work]

    assert seen_by_arq(Settings)["max_jobs"] == 500


async def test_hooks_may_be_functions_static_or_class_methods() -> None:
    called: list[str] = []

    class Settings(runner.WorkerSettings):
        functions: ClassVar = [work]

        async def on_startup(ctx: Any) -> None:  # type: ignore[override]  # noqa: N805
            called.append(f"plain {ctx}")

        @staticmethod
        async def on_shutdown(ctx: Any) -> None:
            called.append(f"static {ctx}")

        @classmethod
        async def on_job_start(cls, ctx: Any) -> None:
            called.append(f"class {cls.__name__} {ctx}")

    seen: dict[str, Any] = seen_by_arq(Settings)
    for name in ("on_startup", "on_shutdown", "on_job_start"):
        await seen[name]("ctx")
    assert called == ["plain ctx", "static ctx", "class Settings ctx"]


def test_settings_class_lets_arqs_command_start_our_worker() -> None:
    made()
    assert arq.worker.Worker is SettingsWorker
    assert issubclass(SettingsWorker, StockWorker)


def test_own_serializer_takes_the_place_of_the_codec() -> None:
    def dumps(_fields: Any) -> bytes:
        return b""

    seen = seen_by_arq(made(job_serializer=dumps))
    assert seen["codec"] is None
    assert seen["job_serializer"] is dumps


def test_every_rule_is_about_a_setting_that_exists() -> None:
    known = set(settings._parameters())
    assert set(settings._RULES) <= known
    assert set(settings._LEAST) <= known


def test_every_setting_has_a_rule_or_a_reason_to_have_none() -> None:
    known = set(settings._parameters())
    assert set(settings._RULES) | set(settings._NO_RULE) == known
    assert not set(settings._RULES) & set(settings._NO_RULE)
    assert all(settings._NO_RULE.values())


async def test_worker_takes_a_lease_as_a_timedelta() -> None:
    for lease in (5, 5.0, timedelta(seconds=5)):
        worker = runner.Worker([work], lease=lease, handle_signals=False)
        assert worker.lease_s == 5.0
