"""The delay before another try, as a pure value."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import Backoff, RetryPolicy
from runner.errors import SettingsError


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
    assert 0 <= delay <= policy.cap * (1 + 1e-9)
    assert math.isfinite(delay)


@given(st.integers(1, 2000), st.floats(0, 1))
def test_later_tries_wait_no_less(attempt: int, random: float) -> None:
    policy = RetryPolicy()
    earlier = policy.delay(attempt=attempt, random=random)
    assert policy.delay(attempt=attempt + 1, random=random) >= earlier
