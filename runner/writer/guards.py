"""What the writer's session is set to, and how it comes back to that after raw SQL."""

from __future__ import annotations

__all__ = [
    "AFTER_RAW",
    "APPLICATION_NAME",
    "GUARDS",
    "SINCE_17",
    "STATEMENT_TIMEOUT_S",
    "TO_DEFAULTS",
    "TO_OURS",
]

APPLICATION_NAME = "arq-runner writer"
STATEMENT_TIMEOUT_S = 30.0

# The session plans for structured statements: look rows up by index, whatever the statistics of
# a table that grows by thousands of rows a second say. Raw SQL and triggers get the defaults.
_PLANNER_SETTINGS = {
    "plan_cache_mode": ("force_generic_plan", "auto"),
    "enable_seqscan": ("off", "on"),
    "enable_hashjoin": ("off", "on"),
    "enable_mergejoin": ("off", "on"),
}

# A session that does not answer ends by itself, should nobody be left to end it. In the startup
# packet, so that RESET ALL gives these values back and not the server's.
GUARDS = {
    "application_name": APPLICATION_NAME,
    "synchronous_commit": "on",
    "idle_session_timeout": "10s",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_user_timeout": "5s",
    "jit": "off",
    "row_security": "on",
    **{name: values[0] for name, values in _PLANNER_SETTINGS.items()},
}
SINCE_17 = {"transaction_timeout": "10min"}

AFTER_RAW = (
    "RESET ALL; RESET SESSION AUTHORIZATION; RESET ROLE; DISCARD TEMP; CLOSE ALL; UNLISTEN *"
)
"""Undoes what raw SQL may have left in the session, also within a transaction."""


def _settings(at: int) -> str:
    calls = (
        f"set_config('{name}', '{values[at]}', true)" for name, values in _PLANNER_SETTINGS.items()
    )
    return f"SELECT {', '.join(calls)}"


# Within a transaction: for what is ours, and for raw SQL and triggers.
TO_OURS, TO_DEFAULTS = _settings(0), _settings(1)
