"""Traces by OpenTelemetry: from who enqueues, over each attempt, to the commit of what it wrote.

============================  =====================================================
span                          where, and when
============================  =====================================================
``enqueue <task>`` producer   around a call that enqueues, in the client
``start <flow>`` producer     around the start of a flow or a batch, in the client
``run <task>`` consumer       each attempt, in the worker; a child of the two above
``writer commit`` client      a unit of an attempt or of a service, in the process of the
                              elected writer: the transaction that applied or refused it
============================  =====================================================

What ties them travels with the job as W3C's ``traceparent``, and whatever else the propagator of
the process writes, among what middleware lets travel; jobs that carry it run on stock arq workers.
Spans of the service's framework around an enqueue, and those that a function opens, find their
places by themselves. The names of attributes are those of OpenTelemetry's conventions for
messaging, and ``runner.…`` for what these have no word for.

Only this module imports OpenTelemetry, and nothing imports this module but you.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner import failures
from runner.errors import Cancel, Retry, SettingsError, Snooze
from runner.execution.records import LIMITED
from runner.middleware import CARRIED, Middleware
from runner.schedule import CRON_OPTION
from runner.types import Outcome
from runner.workflow.plan import JOB_PREFIX

try:
    from opentelemetry import context as contexts
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as exc:
    raise SettingsError("traces need OpenTelemetry: pip install 'arq-runner[traces]'") from exc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.trace import TracerProvider

    from runner.bus import Bus
    from runner.errors import WriteRejected
    from runner.execution import Attempt, Ending
    from runner.job import Job
    from runner.middleware import (
        Enqueue,
        EnqueueCall,
        Execute,
        FlowCall,
        JobCall,
        StartFlow,
    )
    from runner.writer.entries import CommitHeader, JobHeader, Unit

__all__ = ["Tracing"]

TRACE = "trace"
"""Under which name the trace travels, among what middleware lets travel."""
SYSTEM = "arq"
MOST_ERROR = 500
_CONTROL = (Retry, Snooze, Cancel)
_FINE = frozenset(
    {
        Outcome.SUCCEEDED,
        Outcome.SNOOZED,
        Outcome.HANDED_BACK,
        Outcome.CANCELLED,
        Outcome.ABORTED,
    }
)
_W3C = TraceContextTextMapPropagator()
_NONE = (trace.ProxyTracerProvider, trace.NoOpTracerProvider)


@dataclass(frozen=True, slots=True)
class _Run:
    """The span of an attempt; a `Trace` of its context."""

    span: Span
    traceparent: str


class Tracing(Middleware):
    """Trace jobs by OpenTelemetry.

    Give one to ``runner.connect(middleware=[...])`` and to ``WorkerSettings.middleware``, as the
    outermost. Set OpenTelemetry itself up as ever, in the module of the settings: without its SDK
    spans are made of nothing, and nothing travels.

    Args:
        tracer_provider: makes the tracer; None: the process's own.

    Raises:
        SettingsError: when this module is imported, and opentelemetry-api is not installed.

    Example:
        >>> from runner.traces import Tracing
        >>> class WorkerSettings(runner.WorkerSettings):
        ...     middleware = [Tracing()]
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("arq-runner", tracer_provider=tracer_provider)
        self._has_sdk = tracer_provider is not None

    async def enqueue(self, call: EnqueueCall, proceed: Enqueue) -> Job[Any] | None:
        """Trace the call, and let its context travel with the job."""
        if self._is_idle():
            return await proceed(call)
        with self._tracer.start_as_current_span(
            f"enqueue {call.task}",
            kind=SpanKind.PRODUCER,
            attributes={**_messaging("enqueue", "send"), "runner.task": call.task},
        ) as span:
            _inject(call.carried)
            job = await proceed(call)
            if job is not None and span.is_recording():
                span.set_attribute("messaging.message.id", job.job_id)
                span.set_attribute("messaging.destination.name", job._queue_name)  # noqa: SLF001  arq's
            return job

    async def start(self, call: FlowCall, proceed: StartFlow) -> str:
        """Trace the start of a flow, whose jobs carry its context."""
        if self._is_idle():
            return await proceed(call)
        with self._tracer.start_as_current_span(
            f"start {call.name}",
            kind=SpanKind.PRODUCER,
            attributes={**_messaging("start", "send"), "runner.flow.name": call.name},
        ) as span:
            flow_id = await proceed(call)
            span.set_attribute("runner.flow.id", flow_id)
            return flow_id

    async def execute(self, job: JobCall, proceed: Execute) -> Any:
        """Trace the attempt; its span ends when it is decided how it ended."""
        if TRACE not in job.carried and self._is_idle():
            return await proceed(job)
        # Each job has a context of its own, so nothing is to be put back.
        contexts.attach(self._begin(job))
        return await proceed(job)

    def carry(self, task: str, carried: dict[str, Any]) -> None:  # noqa: ARG002  all alike
        """Let the context of the moment travel, with jobs that are made in other ways: of flows."""
        if TRACE not in carried and not self._is_idle():
            _inject(carried)

    def traceparent(self) -> str:
        """Tie what a service writes to the span that is current."""
        return _traceparent(trace.get_current_span())

    def join(self, worker: str, events: Bus) -> None:
        """Watch how attempts end."""
        events.watch(_Ends(self._end, worker))

    def _end(self, worker: str, attempt: Attempt, ending: Ending) -> None:
        """End the span of an attempt; one that never began has a short one."""
        if ending.outcome in LIMITED:
            return
        run: Any = attempt.context.trace if attempt.context is not None else None
        if run is None:
            if attempt.context is None and ending.outcome is Outcome.HANDED_BACK:
                return
            if not self._keeps_spans():
                return
            span, _ = self._span(_of_attempt(attempt), attempt.record.options.get(CARRIED))
        else:
            span = run.span
        if span.is_recording():
            span.set_attribute("messaging.client.id", worker)
            _tell(span, attempt, ending)
        span.end()

    def committed(
        self, units: Sequence[Unit], refused: Mapping[str, WriteRejected], began_ns: int
    ) -> None:
        """Trace what the writer in this process did for attempts and services that are traced."""
        ended_ns = 0
        for unit in units:
            owner = unit.job or unit.commit
            parent = unit.trace if owner is None else owner.trace
            if not parent:
                continue
            ended_ns = ended_ns or time.time_ns()
            span = self._tracer.start_span(
                "writer commit",
                context=_W3C.extract({"traceparent": parent}, Context()),
                kind=SpanKind.CLIENT,
                start_time=began_ns,
                attributes={
                    "db.system.name": "postgresql",
                    "db.operation.name": "COMMIT",
                    **({} if owner is None else _place(owner)),
                    "runner.unit.entry": unit.entry,
                    "runner.unit.operations": unit.count,
                    "runner.batch.units": len(units),
                },
            )
            why = refused.get(unit.entry)
            if why is not None:
                _fail(span, why)
                if why.sqlstate:
                    span.set_attribute("db.response.status_code", why.sqlstate)
            span.end(ended_ns)

    def _is_idle(self) -> bool:
        """Whether there is nothing to trace: no SDK, and no context that came from elsewhere."""
        return not self._keeps_spans() and not contexts.get_current()

    def _keeps_spans(self) -> bool:
        """Whether an SDK is set up, which may be later than this was made."""
        if not self._has_sdk:
            self._has_sdk = not isinstance(trace.get_tracer_provider(), _NONE)
        return self._has_sdk

    def _begin(self, job: JobCall) -> Context:
        """Begin the span of an attempt, and return the context in which its function runs."""
        span, parent = self._span(
            (job.task, job.queue, job.job_id, job.attempt, job.started_ms), job.carried
        )
        job.ctx.trace = _Run(span, _traceparent(span))
        if span.is_recording() and math.isfinite(job.due_ms):
            span.set_attribute("runner.wait_ms", max(int(job.started_ms - job.due_ms), 0))
        return trace.set_span_in_context(span, parent)

    def _span(self, facts: tuple[str, str, str, int, int], carried: object) -> tuple[Span, Context]:
        task, queue, job_id, attempt, started_ms = facts
        parent = propagate.extract(_carrier(carried), Context())
        span = self._tracer.start_span(
            f"run {task}",
            context=parent,
            kind=SpanKind.CONSUMER,
            start_time=started_ms * 1_000_000,
            attributes={
                **_messaging("run", "process"),
                "messaging.destination.name": queue,
                "messaging.message.id": job_id.encode(errors="backslashreplace").decode(),
                "runner.task": task,
                "runner.attempt": attempt,
            },
        )
        return span, parent


def _place(owner: JobHeader | CommitHeader) -> dict[str, str]:
    return {"messaging.message.id": owner.job_id, "messaging.destination.name": owner.queue}


class _Ends:
    """Watches how the attempts of one worker end."""

    def __init__(self, end: Callable[[str, Attempt, Ending], None], worker: str) -> None:
        self._end = end
        self._worker = worker

    def ended(self, attempt: Attempt, ending: Ending) -> None:
        self._end(self._worker, attempt, ending)

    def lost(self, queue: str, job_id: str) -> None:
        """Hear that an end did not count: its span is over, and the other attempt has its own."""


def _tell(span: Span, attempt: Attempt, ending: Ending) -> None:
    """Say on a span how its attempt ended."""
    outcome, result, claimed = ending.outcome, ending.result, attempt.claimed
    span.set_attribute("runner.outcome", outcome.value)
    if claimed.crashes:
        span.set_attribute("runner.crashes", claimed.crashes)
    if ending.delay_s is not None:
        span.set_attribute("runner.delay_s", ending.delay_s)
    if claimed.job_id.startswith(JOB_PREFIX):
        span.set_attribute("runner.flow.id", claimed.job_id.split(":")[1])
    match attempt.record.options.get(CRON_OPTION):
        case [_, str(name), *_]:
            span.set_attribute("runner.schedule", name)
    if outcome in _FINE or isinstance(result, _CONTROL):
        return
    if isinstance(result, BaseException):
        _fail(span, result)
    else:
        span.set_status(Status(StatusCode.ERROR, outcome.value))


def _messaging(operation: str, kind: str) -> dict[str, str]:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
    }


def _of_attempt(attempt: Attempt) -> tuple[str, str, str, int, int]:
    claimed = attempt.claimed
    return (
        attempt.record.task,
        claimed.queue,
        claimed.job_id,
        attempt.number,
        attempt.started_ms,
    )


def _inject(carried: dict[str, Any]) -> None:
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    if carrier:
        carried[TRACE] = carrier


def _carrier(carried: object) -> dict[str, str]:
    """Return what a job carries of a trace; who may enqueue may have put anything there."""
    found = carried.get(TRACE) if isinstance(carried, Mapping) else None
    if not isinstance(found, Mapping):
        return {}
    return {
        name: value
        for name, value in found.items()
        if isinstance(name, str) and isinstance(value, str)
    }


def _traceparent(span: Span) -> str:
    """Return what ties the writer's span to this one, "" where nobody keeps either."""
    about = span.get_span_context()
    if not about.is_valid or not about.trace_flags.sampled:
        return ""
    return f"00-{about.trace_id:032x}-{about.span_id:016x}-{about.trace_flags:02x}"


def _fail(span: Span, exc: BaseException) -> None:
    """Say why; not by `record_exception`, which asks the exception for its text: it may raise."""
    kind = f"{type(exc).__module__}.{type(exc).__qualname__}"
    described, message = failures.describe(exc), failures.message_of(exc)
    span.add_event(
        "exception",
        {
            "exception.type": described["type"],
            "exception.message": message,
            "exception.stacktrace": described["traceback"],
        },
    )
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, f"{type(exc).__name__}: {message}"[:MOST_ERROR]))
