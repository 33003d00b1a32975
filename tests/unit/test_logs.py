"""The three ways to write a line of log."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from runner import logs
from runner.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root, theirs = logging.getLogger(), logging.getLogger("arq")
    before = (list(root.handlers), root.level, list(theirs.handlers), theirs.propagate)
    yield
    root.handlers[:], level, theirs.handlers[:], theirs.propagate = before
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def configured(name: str) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(name, stream=stream)
    return stream


def objects(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_plain_lines_are_arqs_own() -> None:
    stream = configured("plain")
    logging.getLogger("arq.worker").info("%6.2fs → %s", 0.5, "j:add()")
    assert stream.getvalue().endswith(":   0.50s → j:add()\n")


def test_json_lines_carry_what_is_bound_to_the_job() -> None:
    stream = configured("json")
    structlog.contextvars.bind_contextvars(job_id="j", task="add", attempt=2)
    logging.getLogger("arq.worker").info("line %d", 1)
    (line,) = objects(stream)
    assert line["event"] == "line 1"
    assert (line["job_id"], line["task"], line["attempt"]) == ("j", "add", 2)
    assert (line["level"], line["logger"]) == ("info", "arq.worker")
    assert line["timestamp"].endswith("Z")


def test_json_of_structlogs_own_loggers_has_the_same_fields() -> None:
    stream = configured("json")
    structlog.contextvars.bind_contextvars(job_id="j")
    structlog.get_logger("shop").warning("sold out", sku="a")
    (line,) = objects(stream)
    assert (line["event"], line["sku"], line["job_id"]) == ("sold out", "a", "j")
    assert (line["level"], line["logger"]) == ("warning", "shop")


def test_json_of_a_failure_is_one_line_with_the_traceback_as_data() -> None:
    stream = configured("json")
    try:
        raise LookupError("no\nrow")  # noqa: TRY301  it needs a traceback
    except LookupError:
        logging.getLogger("arq.worker").exception("failed")
    (line,) = objects(stream)
    assert line["exception"][0]["exc_type"] == "LookupError"
    assert line["exception"][0]["exc_value"] == "no\nrow"


def test_console_lines_name_the_job() -> None:
    stream = configured("console")
    structlog.contextvars.bind_contextvars(job_id="j-17")
    logging.getLogger("arq.worker").info("hello")
    assert "hello" in stream.getvalue()
    assert "j-17" in stream.getvalue()


@pytest.mark.parametrize("name", logs.FORMATS)
def test_lines_are_written_once_beside_arqs_own_handler(name: str) -> None:
    theirs = logging.StreamHandler(io.StringIO())
    theirs.set_name(logs.ARQ_HANDLER)
    logging.getLogger("arq").addHandler(theirs)
    stream = configured(name)
    configured_again = configured(name)
    logging.getLogger("arq.worker").info("once")
    written = "".join(s.getvalue() for s in (stream, configured_again, theirs.stream))
    assert written.count("once") == 1


def test_handler_of_a_custom_log_dict_stays() -> None:
    theirs = logging.StreamHandler(io.StringIO())
    theirs.set_name("mine")
    logging.getLogger("arq").addHandler(theirs)
    configured("json")
    assert theirs in logging.getLogger("arq").handlers


def test_environment_chooses_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    assert logs.chosen_format() == "plain"
    monkeypatch.setenv(logs.VARIABLE, "json")
    assert logs.chosen_format() == "json"


def test_unknown_format_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.VARIABLE, "consol")
    with pytest.raises(SettingsError, match="did you mean 'console'"):
        logs.chosen_format()


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


def test_worker_with_plain_lines_and_no_database_imports_neither_structlog_nor_asyncpg() -> None:
    out = in_a_fresh_process(
        """
        import sys
        import runner
        from runner import logs

        class WorkerSettings(runner.WorkerSettings):
            functions = ()

        logs.configure("plain")
        logs.bind("j", "add", 1)
        print([name for name in ("structlog", "rich", "asyncpg") if name in sys.modules])
        """
    )
    assert out == "[]\n"


def test_structlog_that_is_imported_late_is_configured_with_the_first_job() -> None:
    out = in_a_fresh_process(
        """
        from runner import logs

        logs.configure("plain")
        import structlog

        assert not structlog.is_configured()
        logs.bind("j", "add", 1)
        print(structlog.is_configured(), sorted(structlog.contextvars.get_contextvars().items()))
        """
    )
    assert out == "True [('attempt', 1), ('job_id', 'j'), ('task', 'add')]\n"
