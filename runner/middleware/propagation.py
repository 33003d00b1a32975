"""Let chosen context variables travel with jobs: a request's id, a tenant, a language."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from runner.errors import SettingsError
from runner.middleware.base import Middleware

if TYPE_CHECKING:
    from runner.middleware.base import Execute, JobCall

CONTEXT = "context"


class Propagation(Middleware):
    """Carry context variables from who enqueues a job to the job, and to the jobs it enqueues.

    Give the same to the client and to the workers. A variable travels under its own name, when it
    is set, in the codec of the jobs: plain data. In a worker that does not know it, it is lost.

    Example:
        >>> REQUEST_ID: ContextVar[str] = ContextVar("request_id")
        >>> propagation = Propagation(REQUEST_ID)
        >>> client = await runner.connect(url, middleware=[propagation])
    """

    def __init__(self, *variables: ContextVar[Any]) -> None:
        for variable in variables:
            if not isinstance(variable, ContextVar):
                raise SettingsError(f"Propagation takes context variables, not {variable!r}")
        self._variables = {variable.name: variable for variable in variables}
        if len(self._variables) < len(variables):
            raise SettingsError("Propagation takes context variables with different names")

    def carry(self, task: str, carried: dict[str, Any]) -> None:  # noqa: ARG002  for all tasks
        """Write the variables that are set into what the job carries."""
        context = {
            name: variable.get()
            for name, variable in self._variables.items()
            if variable.get(_UNSET) is not _UNSET
        }
        if context:
            carried[CONTEXT] = context

    async def execute(self, job: JobCall, proceed: Execute) -> Any:
        """Set the variables that the job carries; each job has a context of its own."""
        context = job.carried.get(CONTEXT)
        if isinstance(context, dict):
            for name, value in context.items():
                if name in self._variables:
                    self._variables[name].set(value)
        return await proceed(job)


_UNSET: Any = object()
