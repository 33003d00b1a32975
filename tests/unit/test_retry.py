"""Whether and when another try follows: a pure value, and a pure function."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from arq.worker import RetryJob
from hypothesis import given
from hypothesis import strategies as st

from runner import Backoff, Cancel, Retry, RetryPolicy, Rule, Snooze, give_up, on
from runner.errors import (
    ArgumentsError,
    DecodeError,
    SettingsError,
    TaskError,
    UnitChanged,
    UnitError,
    WriteRejected,
)
from runner.retry import Decision, Verdict, decide

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (RetryPolicy(backoff=Backoff.CONSTANT, base=3, jitter=0), [3, 3, 3, 3]),
        (RetryPolicy(backoff=Backoff.LINEAR, base=2, jitter=0), [2, 4, 6, 8]),
        (RetryPolicy(backoff=Backoff.EXPONENTIAL, base=1, jitter=0), [1, 2, 4, 8]),
        (RetryPolicy(backoff=Backoff.EXPONENTIAL, base=5, cap=12, jitter=0), [5, 10, 12, 12]),
        (RetryPolicy(backoff=Backoff.LINEAR, base=5, cap=12, jitter=0), [5, 10, 12, 12]),
        (RetryPolicy(base=0, cap=0), [0, 0, 0, 0]),
    ],
)
def test_delay_grows_as_the_policy_says(policy: RetryPolicy, delays: list[float]) -> None:
    assert [policy.delay(attempt=n, random=0.5) for n in range(1, 5)] == delays


@pytest.mark.parametrize(("random", "delay"), [(0, 5), (0.5, 7.5), (1, 10)])
def test_jitter_spreads_its_part_of_the_delay(random: float, delay: float) -> None:
    assert RetryPolicy(base=10, jitter=0.5).delay(attempt=1, random=random) == delay


@pytest.mark.parametrize(
    "settings",
    [{"base": -1}, {"base": 10, "cap": 5}, {"jitter": 1.1}, {"jitter": -0.1}],
)
def test_policy_that_contradicts_itself_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        RetryPolicy(**settings)  # type: ignore[arg-type]


policies = st.builds(
    lambda backoff, base, more, jitter: RetryPolicy(
        backoff=backoff, base=base, cap=base + more, jitter=jitter
    ),
    st.sampled_from(Backoff),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.floats(0, 1),
)


@given(policies, st.integers(1, 10**9), st.floats(0, 1))
def test_delay_lies_between_nothing_and_the_cap(
    policy: RetryPolicy, attempt: int, random: float
) -> None:
    delay = policy.delay(attempt=attempt, random=random)
    assert 0 <= delay <= policy.cap
    assert math.isfinite(delay)


@given(st.integers(1, 2000), st.floats(0, 1))
def test_later_tries_wait_no_less(attempt: int, random: float) -> None:
    policy = RetryPolicy()
    earlier = policy.delay(attempt=attempt, random=random)
    assert policy.delay(attempt=attempt + 1, random=random) >= earlier


class RateLimitError(Exception):
    pass


class OddError(ConnectionError):
    pass


GIVE_UP = Decision(Verdict.GIVE_UP)
FLAT = RetryPolicy(backoff=Backoff.CONSTANT, base=3, jitter=0, retries=2)
RULES = replace(
    FLAT,
    rules=(
        on(OddError, give_up),
        on(ConnectionError, retries=4, backoff=RetryPolicy(base=10, jitter=0)),
        on((RateLimitError, KeyError), delay=60),
    ),
)


def group(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("several", errors)


def again(delay_s: float | None) -> Decision:
    return Decision(Verdict.AGAIN, delay_s)


@pytest.mark.parametrize(
    ("policy", "exc", "attempt", "decision"),
    [
        # control flow: whatever the policy says
        (None, Retry(), 9, again(None)),
        (None, Retry(defer=5), 1, again(5)),
        (FLAT, Retry(defer=timedelta(minutes=1)), 3, again(60)),
        (FLAT, RetryJob(), 3, again(None)),
        (FLAT, Snooze(7), 99, Decision(Verdict.SNOOZE, 7)),
        (None, Snooze(timedelta(seconds=2)), 1, Decision(Verdict.SNOOZE, 2)),
        (FLAT, Cancel(), 1, Decision(Verdict.CANCEL)),
        # no policy, no count, no try
        (None, ValueError(), 1, GIVE_UP),
        (RetryPolicy(), ValueError(), 1, GIVE_UP),
        # the policy's own numbers
        (FLAT, ValueError(), 1, again(3)),
        (FLAT, ValueError(), 2, again(3)),
        (FLAT, ValueError(), 3, GIVE_UP),
        (replace(FLAT, retries=0), ValueError(), 1, GIVE_UP),
        (replace(FLAT, retries=99), ValueError(), 9, again(3)),
        (replace(FLAT, retries=99), ValueError(), 10, GIVE_UP),  # max_tries
        # what does not fit today does not fit tomorrow
        (FLAT, ArgumentsError(), 1, GIVE_UP),
        (FLAT, DecodeError(), 1, GIVE_UP),
        (FLAT, UnitError(), 1, GIVE_UP),
        (FLAT, UnitChanged("changed"), 1, GIVE_UP),
        (FLAT, WriteRejected("no"), 1, again(3)),
        # rules, in their order
        (RULES, OddError(), 1, GIVE_UP),
        (RULES, ConnectionError(), 1, again(10)),
        (RULES, ConnectionResetError(), 3, again(40)),
        (RULES, ConnectionError(), 4, again(80)),
        (RULES, ConnectionError(), 5, GIVE_UP),
        (RULES, RateLimitError(), 2, again(60)),
        (RULES, KeyError(), 3, GIVE_UP),
        (RULES, ValueError(), 2, again(3)),
        (RULES, ValueError(), 3, GIVE_UP),
        # a rule without a count, in a policy without one: as often as the worker allows
        (RetryPolicy(rules=(on(KeyError, delay=1),)), KeyError(), 9, again(1)),
        (RetryPolicy(rules=(on(KeyError, delay=1),)), KeyError(), 10, GIVE_UP),
        (RetryPolicy(rules=(on(KeyError, delay=1),)), ValueError(), 1, GIVE_UP),
        # the two short lists
        (replace(FLAT, retry_on=OSError), OSError(), 1, again(3)),
        (replace(FLAT, retry_on=OSError), ConnectionError(), 1, again(3)),
        (replace(FLAT, retry_on=OSError), ValueError(), 1, GIVE_UP),
        (replace(FLAT, retry_on=(OSError, ValueError)), ValueError(), 1, again(3)),
        (replace(FLAT, give_up_on=LookupError), KeyError(), 1, GIVE_UP),
        (replace(FLAT, give_up_on=[LookupError]), ValueError(), 1, again(3)),
        (replace(FLAT, give_up_on=OddError, retry_on=OSError), OddError(), 1, GIVE_UP),
        (replace(RULES, retry_on=OSError), RateLimitError(), 1, again(60)),
        (replace(RULES, give_up_on=OSError), ConnectionError(), 1, again(10)),
        # a TimeoutError of the task's own is an error like others
        (FLAT, TimeoutError(), 1, again(3)),
        # a group by what is in it, the gravest first
        (FLAT, group(ValueError()), 1, again(3)),
        (FLAT, group(ValueError(), group(KeyError())), 3, GIVE_UP),
        (RULES, group(ConnectionError()), 3, again(40)),
        (RULES, group(ConnectionError(), RateLimitError()), 1, again(60)),
        (RULES, group(RateLimitError(), group(OddError())), 1, GIVE_UP),
        (RULES, group(ConnectionError(), ValueError()), 3, GIVE_UP),
        (FLAT, group(ValueError(), ArgumentsError()), 1, GIVE_UP),
        (None, group(Retry(defer=5)), 9, again(5)),
        (None, group(Retry(defer=5), Retry()), 9, again(5)),
        (None, group(Retry(defer=5), ValueError()), 1, GIVE_UP),
        (FLAT, group(Snooze(7), Snooze(9)), 9, Decision(Verdict.SNOOZE, 9)),
        (FLAT, group(Snooze(7), ValueError()), 1, again(3)),
        (FLAT, group(Cancel(), ValueError()), 1, Decision(Verdict.CANCEL)),
        # unless the policy names groups
        (replace(FLAT, give_up_on=ExceptionGroup), group(ValueError()), 1, GIVE_UP),
        (replace(FLAT, retry_on=ExceptionGroup), group(ValueError()), 1, again(3)),
        (replace(FLAT, rules=(on(ExceptionGroup, delay=9),)), group(ValueError()), 1, again(9)),
        (replace(FLAT, rules=(on(Exception, delay=9),)), group(ValueError()), 1, again(9)),
    ],
)
def test_decision(
    policy: RetryPolicy | None, exc: BaseException, attempt: int, decision: Decision
) -> None:
    made = decide(exc, attempt=attempt, policy=policy, max_tries=10, random=0.5)
    assert made == decision


@pytest.mark.parametrize(
    ("policy", "attempt", "decision"),
    [
        (None, 1, GIVE_UP),
        (FLAT, 1, GIVE_UP),
        (replace(FLAT, rules=(on(TimeoutError, retries=9),)), 1, GIVE_UP),
        (replace(FLAT, retry_on_timeout=True), 1, again(3)),
        (replace(FLAT, retry_on_timeout=True), 3, GIVE_UP),
        (replace(FLAT, retry_on_timeout=True, rules=(on(TimeoutError, delay=9),)), 1, again(9)),
        (replace(FLAT, retry_on_timeout=True, give_up_on=TimeoutError), 1, GIVE_UP),
        (RetryPolicy(retry_on_timeout=True, base=1, jitter=0), 9, again(256)),
        (RetryPolicy(retry_on_timeout=True), 10, GIVE_UP),
    ],
)
def test_time_limit_is_final_unless_the_policy_says_otherwise(
    policy: RetryPolicy | None, attempt: int, decision: Decision
) -> None:
    made = decide(
        TimeoutError(), attempt=attempt, policy=policy, max_tries=10, random=0.5, overran=True
    )
    assert made == decision


@pytest.mark.parametrize("defer", ["soon", None, math.inf, math.nan])
def test_snooze_until_no_time_is_the_tasks_own_fault(defer: Any) -> None:
    made = decide(Snooze(defer), attempt=1, policy=FLAT, max_tries=5, random=0)
    assert made.verdict is Verdict.GIVE_UP
    assert isinstance(made.fault, TaskError)
    assert "Snooze takes" in str(made.fault)


@pytest.mark.parametrize(
    "make",
    [
        lambda: on(ValueError, 3),  # type: ignore[arg-type]
        lambda: on(3),  # type: ignore[arg-type]
        lambda: on(()),
        lambda: on(KeyboardInterrupt),
        lambda: on(ValueError, give_up, retries=1),
        lambda: on(ValueError, delay=1, backoff=RetryPolicy()),
        lambda: on(ValueError, delay="soon"),  # type: ignore[arg-type]
        lambda: on(ValueError, delay=-1),
        lambda: on(ValueError, delay=math.inf),
        lambda: on(ValueError, retries=-1),
        lambda: on(ValueError, retries=True),
        lambda: on(ValueError, backoff=FLAT),
        lambda: on(ValueError, backoff=5),  # type: ignore[arg-type]
        lambda: RetryPolicy(retries=-1),
        lambda: RetryPolicy(retries=1.5),  # type: ignore[arg-type]
        lambda: RetryPolicy(base=math.inf, cap=math.inf),
        lambda: RetryPolicy(base=math.nan),
        lambda: RetryPolicy(rules=on(ValueError)),  # type: ignore[arg-type]
        lambda: RetryPolicy(rules=(ValueError,)),  # type: ignore[arg-type]
        lambda: RetryPolicy(retry_on=(3,)),  # type: ignore[arg-type]
        lambda: RetryPolicy(give_up_on=asyncio.CancelledError),
    ],
)
def test_rule_or_policy_that_makes_no_sense_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(SettingsError):
        make()


@pytest.mark.parametrize(
    ("policy", "most"),
    [(RetryPolicy(), None), (FLAT, 2), (RULES, 4), (RetryPolicy(rules=(on(OSError),)), None)],
)
def test_policy_says_how_many_retries_there_are_at_most(
    policy: RetryPolicy, most: int | None
) -> None:
    assert policy.most_retries == most


errors = st.sampled_from(
    [ValueError(), KeyError(), OddError(), ConnectionError(), RateLimitError()]
)
kinds = st.lists(
    st.sampled_from([Exception, ValueError, LookupError, OSError, OddError]), max_size=3
)
rules = st.builds(
    lambda classes, gives_up, retries, delays: Rule(tuple(classes), gives_up, retries, delays),
    kinds,
    st.booleans(),
    st.none() | st.integers(0, 50),
    st.none() | policies,
)
whole_policies = st.builds(
    replace,
    policies,
    retries=st.none() | st.integers(0, 50),
    rules=st.lists(rules, max_size=4).map(tuple),
    give_up_on=kinds,
    retry_on=st.none() | kinds,
    retry_on_timeout=st.booleans(),
)


@given(whole_policies, errors, st.integers(1, 60), st.integers(1, 40), st.floats(0, 1))
def test_no_job_is_tried_more_often_than_allowed(
    policy: RetryPolicy, exc: Exception, attempt: int, max_tries: int, random: float
) -> None:
    for overran in (False, True):
        made = decide(
            exc,
            attempt=attempt,
            policy=policy,
            max_tries=max_tries,
            random=random,
            overran=overran,
        )
        assert made.verdict in (Verdict.AGAIN, Verdict.GIVE_UP)
        if made.verdict is Verdict.AGAIN:
            assert attempt < max_tries
            limits = [policy.cap, *(rule.backoff.cap for rule in policy.rules if rule.backoff)]
            assert made.delay_s is not None
            assert 0 <= made.delay_s <= max(limits)
            said = policy.rule_for(exc)
            assert said is None or not said.gives_up


@given(whole_policies, errors, st.integers(1, 40))
def test_a_job_that_keeps_failing_is_given_up(
    policy: RetryPolicy, exc: Exception, max_tries: int
) -> None:
    attempt = 1
    while (
        decide(exc, attempt=attempt, policy=policy, max_tries=max_tries, random=0).verdict
        is Verdict.AGAIN
    ):
        attempt += 1
    assert attempt <= max_tries
