"""What people are shown of an exception that ours led to, or that ours did not."""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING

import pytest

from runner import errors, failures

if TYPE_CHECKING:
    from collections.abc import Callable


def raised(function: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  whatever it is
        function()
    exc = caught.value
    trace = exc.__traceback__
    assert trace is not None
    return exc.with_traceback(trace.tb_next)


def plain() -> None:
    raise ValueError("no")


def grouped() -> None:
    raise BaseExceptionGroup("both", [raised(plain), raised(reads)])


def reads() -> None:
    failures.restore({"type": "runner.errors.WriteRejected", "facts": [], "message": 1 / 0})


def long() -> None:
    exc = raised(plain)
    for _ in range(3_000):
        behind = ValueError("once more")
        behind.__cause__ = exc
        exc = behind
    raise exc


def in_a_circle() -> None:
    first, second = raised(plain), raised(reads)
    first.__cause__, second.__cause__ = second, first
    raise first


def without_any() -> None:
    raise ValueError("no") from KeyError("why")


def unspeakable() -> None:
    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    raise UnspeakableError


@pytest.mark.parametrize(
    "function", [plain, grouped, reads, long, in_a_circle, without_any, unspeakable]
)
def test_what_ours_did_not_call_is_shown_as_python_does(function: Callable[[], object]) -> None:
    exc = raised(function)
    assert failures.shown(exc) == "".join(traceback.format_exception(exc))


def test_the_exception_keeps_its_traceback() -> None:
    exc = raised(plain)
    before = traceback.extract_tb(exc.__traceback__)
    failures.shown(exc)
    assert traceback.extract_tb(exc.__traceback__) == before


def test_a_traceback_without_code_of_the_user_is_whole() -> None:
    with pytest.raises(AttributeError) as caught:
        failures.restore(None)  # type: ignore[arg-type]
    trace = caught.value.__traceback__
    assert trace is not None
    own = caught.value.with_traceback(trace.tb_next)
    assert failures.users_part(own.__traceback__) is own.__traceback__
    assert "in restore" in failures.shown(own)
    assert failures.users_part(None) is None


def test_the_name_and_message_are_those_that_are_described() -> None:
    for exc in (
        raised(plain),
        raised(unspeakable),
        errors.RemoteError("shop.Lost", "no row", "Traceback…"),
        errors.QueueFull("full"),
    ):
        described = failures.describe(exc)
        assert failures.named(exc) == (described["type"], described["message"])


def test_a_frame_of_python_itself_is_told_apart() -> None:
    assert failures.is_standard(contextlib.__file__)
    assert failures.is_standard("<frozen importlib._bootstrap>")
    assert not failures.is_standard(pytest.__file__)
    assert not failures.is_standard(__file__)
