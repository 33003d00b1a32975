"""What is kept of a line that a job logs."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest

from runner.lines import MOST_LINE, text_of


def record(message: Any, *args: Any, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("shop", logging.INFO, "shop.py", 1, message, args, exc_info)


def caught() -> OSError:
    try:
        raise OSError("no disk")  # noqa: TRY301  to have a traceback
    except OSError as exc:
        return exc


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("half \ud800 of \udcff", "half \\ud800 of \\udcff"),
        ("a\0b", "a\0b"),
        ("x" * 5_000, "x" * (MOST_LINE - 1) + "…"),
        ({"event": "paid", "order": 7, "level": "info"}, "paid order=7"),
        ({"event": "e", "exception": "Traceback: as text"}, "e\nTraceback: as text"),
        ({"event": "e", "exc_info": None}, "e"),
        ({}, ""),
    ],
)
def test_a_line_is_text_of_a_bounded_length(message: Any, text: str) -> None:
    assert text_of(record(message)) == text


def test_an_exception_comes_with_its_traceback_however_it_is_given() -> None:
    exc = caught()
    triple = (type(exc), exc, exc.__traceback__)
    lines = [
        text_of(record("lost", exc_info=triple)),
        text_of(record({"event": "lost", "exc_info": triple})),
        text_of(record({"event": "lost", "exc_info": exc})),
    ]
    try:
        raise exc
    except OSError:
        lines.append(text_of(record({"event": "lost", "exc_info": True})))
    for line in lines:
        assert line.startswith("lost\nTraceback (most recent call last):")
        assert line.endswith("\nOSError: no disk")
    assert text_of(record({"event": "none", "exc_info": True})) == "none"
    assert text_of(record("none", exc_info=(None, None, None))) == "none"


def test_of_what_is_too_long_the_error_is_kept_and_a_broken_one_is_said() -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    for error in (OSError("x" * 5_000 + " the end"), BrokenError()):
        for head in ("short", "y" * 5_000):
            text = text_of(record(head, exc_info=(type(error), error, None)))
            assert len(text) <= MOST_LINE
            assert text.startswith(head[:5])
            assert text.endswith(("the end", "<exception str() failed>"))
    assert sys.exc_info()[1] is None
