"""Templates: everything that they show is escaped, and shown as the bytes that it is."""

from __future__ import annotations

import hashlib
import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from runner.dashboard import charts, texts
from runner.dashboard.asked import address, spelled
from runner.lengths import length

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from runner.inspect import FinishedJob, Latency

STATIC = ("style.css", "live.js")

WORDS = {
    "too_many_tries": "too many tries",
    "too_many_crashes": "too many crashes",
    "timed_out": "timed out",
    "unknown_task": "unknown task",
    "lost_lease": "lost lease",
    "handed_back": "handed back",
}

TONES = {
    **dict.fromkeys(("succeeded", "up", "active"), "good"),
    **dict.fromkeys(("running", "committing"), "busy"),
    **dict.fromkeys(("retrying", "retried", "draining", "paused", "parked", "late"), "warn"),
    **dict.fromkeys(("cancelled", "aborted", "skipped", "expired"), "calm"),
    **dict.fromkeys(("queued", "deferred", "waiting", "snoozed", "ended", "stopping"), "idle"),
}


def badge(state: str) -> Markup:
    """Return a state as a dot of its colour and its word."""
    word = WORDS.get(state, state)
    kind = tone(state)
    return Markup('<span class="badge {}"><i></i>{}</span>').format(kind, texts.cut(word, 40))


def moment(ms: float, now_ms: float) -> Markup:
    """Return a time as how long ago it is, with the whole of it as a tooltip."""
    if not ms:
        return Markup('<span class="none">{}</span>').format(texts.NOTHING)
    stamp = texts.stamp(ms)
    return Markup('<time title="{}">{}</time>').format(stamp, texts.away(ms, now_ms))


def tone(state: str) -> str:
    """Return what kind of thing a state is: good, busy, warn, bad, calm or idle."""
    plain = {"", "delayed", "handed_back", "no worker"}
    return TONES.get(state, "idle" if state in plain else "bad")


def ms_of(when: datetime | None) -> float:
    """Return a time as Unix time in milliseconds; 0 for none."""
    return 0.0 if when is None else when.timestamp() * 1000


def quantile(measured: Latency, which: str) -> str:
    """Return "p50", "p95" or "p99" of what was measured; nothing where nothing was."""
    return length(getattr(measured, which)) if measured.count else texts.NOTHING


def waited(job: FinishedJob) -> str:
    """Return how long a job that ended had waited since it was due."""
    return length(max(job.started_ms - job.due_ms, 0)) if job.due_ms else texts.NOTHING


def ran(job: FinishedJob) -> str:
    """Return how long a job that ended had run."""
    if not (job.started_ms and job.ended_ms):
        return texts.NOTHING
    return length(max(job.ended_ms - job.started_ms, 0))


def shown(value: object) -> Markup:
    """Return text that may be anything, with what cannot be seen made visible."""
    return escape(texts.visible(str(value)))


def finish(value: Any) -> Any:
    """Make every value that a template writes into text that can be sent."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return texts.visible(value)
    return value


class Renderer:
    """Fill templates in.

    Attributes:
        static: the files that pages use: name → (type, contents).
        version: changes with them, so that browsers may keep them.
    """

    def __init__(self, title: str) -> None:
        folder = files("runner.dashboard") / "static"
        kinds = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
        self.static = {
            name: (kinds[name.rpartition(".")[2]], (folder / name).read_bytes()) for name in STATIC
        }
        contents = b"".join(body for _, body in self.static.values())
        self.version = hashlib.sha256(contents).hexdigest()[:12]
        self._env = jinja2.Environment(
            loader=jinja2.PackageLoader("runner.dashboard"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=finish,
            auto_reload=False,
        )
        self._env.globals |= {
            "title": title,
            "version": self.version,
            "address": address,
            "badge": badge,
            "moment": moment,
            "progress_bar": charts.progress,
            "tone": tone,
            "ms_of": ms_of,
            "call": texts.call,
            "waited": waited,
            "ran": ran,
        }
        self._env.filters |= {
            "number": texts.number,
            "noun": texts.noun,
            "span": length,
            "quantile": quantile,
            "size": texts.size,
            "cut": texts.cut,
            "shown": shown,
            "stamp": texts.stamp,
            "spelled": spelled,
            "told": texts.told,
            "lately": texts.lately,
        }
        self._env.globals["ui"] = self._env.get_template("ui.html").module

    def page(self, template: str, values: Mapping[str, Any]) -> bytes:
        """Return a whole page."""
        text = self._env.get_template(template).render({**values, "now_ms": now_ms()})
        return text.encode(errors="backslashreplace")

    def live(self, template: str, values: Mapping[str, Any]) -> str:
        """Return the part of a page that changes."""
        found = self._env.get_template(template)
        block = found.blocks["live"]
        return "".join(block(found.new_context({**values, "now_ms": now_ms()})))


def now_ms() -> int:
    """Return the time, Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


__all__ = ["Renderer", "badge", "moment", "now_ms", "shown"]
