"""The tree of errors, what arq sees of it, and the nearest name."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest
from arq.jobs import DeserializationError, SerializationError
from arq.worker import JobExecutionFailed

from runner import errors


def classes() -> list[type[BaseException]]:
    return [
        value
        for value in vars(errors).values()
        if inspect.isclass(value)
        and issubclass(value, BaseException)
        and value.__module__ == "runner.errors"
    ]


CONTROL_FLOW = {errors.Snooze, errors.Cancel, errors.SoftTimeLimit}


def test_every_error_descends_from_one_base() -> None:
    apart = {kind for kind in classes() if not issubclass(kind, errors.RunnerError)}
    assert apart == {*CONTROL_FLOW, errors.ArqCompatible}


def test_tree_at_the_top_names_every_error() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or "")) | {"RunnerError"}
    assert drawn == {kind.__name__ for kind in classes() if issubclass(kind, errors.RunnerError)}


def test_everything_public_is_exported() -> None:
    public = {kind.__name__ for kind in classes()} - {"ArqCompatible"} | {"Retry"}
    assert set(errors.__all__) == public


@pytest.mark.parametrize(
    ("ours", "arqs"),
    [
        (errors.TaskNotFound, JobExecutionFailed),
        (errors.JobExpired, JobExecutionFailed),
        (errors.TooManyTries, JobExecutionFailed),
        (errors.TooManyCrashes, JobExecutionFailed),
        (errors.EncodeError, SerializationError),
        (errors.DecodeError, DeserializationError),
    ],
)
def test_failure_that_arq_knows_is_caught_under_arqs_name(
    ours: type[Exception], arqs: type[Exception]
) -> None:
    assert issubclass(ours, arqs)


@pytest.mark.parametrize("kind", [errors.JobExpired, errors.TooManyTries, errors.TaskNotFound])
def test_pickled_failure_needs_none_of_our_modules(kind: type[Exception]) -> None:
    data = pickle.dumps(kind("why"))
    assert b"runner" not in data
    restored = pickle.loads(data)
    assert type(restored) is JobExecutionFailed
    assert restored.args == ("why",)


def test_remote_error_survives_pickling_whole() -> None:
    error = pickle.loads(pickle.dumps(errors.RemoteError("LookupError", "no row", "Traceback…")))
    assert (error.type_name, error.message, error.remote_traceback) == (
        "LookupError",
        "no row",
        "Traceback…",
    )
    assert str(error) == "LookupError: no row"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_job", "; did you mean 'max_jobs'?"),
        ("max_jobs", "; did you mean 'max_jobs'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_nearest_name_is_suggested_when_it_is_near(name: str, hint: str) -> None:
    assert errors.did_you_mean(name, ["max_jobs", "lease"]) == hint
