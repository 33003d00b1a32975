"""What tasks may declare of limits, and how it is read."""

from __future__ import annotations

from typing import Any

import pytest

from runner import Context, RateLimit, RunningLimit, errors, task
from runner.limits import Bucket, Window
from runner.limits.gate import shown
from runner.limits.options import check_alike
from runner.limits.texts import count_and_period

SECOND_US = 1_000_000


@pytest.mark.parametrize(
    ("rate", "count", "period_us"),
    [
        ("100/m", 100, 60 * SECOND_US),
        ("5/10s", 5, 10 * SECOND_US),
        (" 1 / hour ", 1, 3600 * SECOND_US),
        ("7/1.5s", 7, 1_500_000),
        ("3/250ms", 3, 250_000),
        ("1000/d", 1000, 86_400 * SECOND_US),
        ("1/2min", 1, 120 * SECOND_US),
    ],
)
def test_a_rate_is_read(rate: str, count: int, period_us: int) -> None:
    assert count_and_period(rate) == (count, period_us)


@pytest.mark.parametrize(
    "rate", ["", "100", "100/x", "-1/s", "0/m", "1/0s", "1.5/s", "1/9999d", "1/.s", 100, None]
)
def test_what_is_no_rate_is_refused(rate: Any) -> None:
    with pytest.raises(errors.LimitError, match="rate"):
        count_and_period(rate)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Window(100, 60 * SECOND_US), "100/m"),
        (Window(5, 10 * SECOND_US), "5/10s"),
        (Bucket(1, 1_500_000, 4), "1/1500ms burst 4"),
    ],
)
def test_a_rule_is_shown_as_it_is_written(rule: Any, text: str) -> None:
    assert str(rule) == text
    assert count_and_period(text.partition(" ")[0]) == (rule.count, rule.period_us)


MAIL = RateLimit("mail", "10/s")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": "10/s", "weight": 11}, "a weight of 11 never fits"),
        ({"rate": "10/s", "burst": 3, "weight": 4}, "a weight of 4 never fits"),
        ({"limits": [MAIL], "weight": 11}, "never fits into 'mail'"),
        ({"weight": 2}, "weight goes with a rate"),
        ({"rate": "10/s", "weight": 0}, "weight must be"),
        ({"burst": 3}, "burst goes with rate"),
        ({"rate_key": "tenant_id"}, "rate_key goes with rate"),
        ({"max_running_key": "tenant_id"}, "max_running_key goes with max_running"),
        ({"rate": "10/s", "rate_key": "tenant"}, "none of its parameters tenant_id"),
        ({"max_running": 0}, "max_running must be"),
        ({"max_running": True}, "max_running must be"),
        ({"rate": "10/s", "burst": 0}, "burst must be"),
        ({"rate": "200000/h"}, "too much for an exact window"),
        ({"limits": MAIL}, "limits is a list"),
        ({"limits": ["mail"]}, "limits is a list"),
        ({"limits": [MAIL, RateLimit("mail", "5/s")]}, "two limits called 'mail'"),
        ({"limits": [RunningLimit("db", 2, key="nothing")]}, "none of its parameters"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    async def work(_ctx: Context, tenant_id: int) -> None: ...

    with pytest.raises(errors.SettingsError, match=message):
        task(**options)(work)


@pytest.mark.parametrize("name", ["", "a[b]", "a\nb", "x" * 201, None])
def test_names_that_could_not_be_told_apart_are_refused(name: Any) -> None:
    with pytest.raises(errors.LimitError, match="name"):
        RunningLimit(name, 1)


def test_a_task_has_its_own_limits_first() -> None:
    @task(name="work", rate="10/s", max_running=3, max_running_key="tenant_id", limits=[MAIL])
    async def work(_ctx: Context, tenant_id: int) -> None: ...

    names = [(limit.name, limit.key) for limit in work.task_options.limits]
    assert names == [("work.rate", None), ("work.running", "tenant_id"), ("mail", None)]


def test_limits_of_one_name_are_the_same_or_refused() -> None:
    assert check_alike([("a", MAIL), ("b", RateLimit("mail", "10/s"))]) == {"mail": MAIL}
    with pytest.raises(errors.LimitError, match="'a' and 'b'"):
        check_alike([("a", MAIL), ("b", RateLimit("mail", "11/s"))])


def test_values_of_a_key_stay_apart_and_short() -> None:
    texts = [shown(value) for value in ("a", "a\nb", "x" * 500, "x" * 501, "\ud800", 7, None)]
    assert len(set(texts)) == len(texts)
    assert all(len(text) < 200 and "\n" not in text for text in texts)
    assert shown(7) == shown("7")
