"""Begin the supervisor: in place of the process that parsed its command, and small."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from .supervisor import Plan, Supervisor


def become(plan: Plan) -> NoReturn:
    """Put a supervisor with this plan in the place of this process; its id stays."""
    text = json.dumps(
        {
            "command": plan.command,
            "processes": plan.processes,
            "watched": [str(folder) for folder in plan.watched],
        }
    )
    folder = Path(__file__).resolve().parent
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, str(folder), text])  # noqa: S606  our own


def main(text: str) -> int:
    """Supervise the plan that `become` has written down; return the status to exit with."""
    fields = json.loads(text)
    plan = Plan(
        command=tuple(fields["command"]),
        processes=fields["processes"],
        watched=tuple(map(Path, fields["watched"])),
    )
    configure(os.environ.get("RUNNER_LOG", "plain"))
    return asyncio.run(supervise(plan))


async def supervise(plan: Plan) -> int:
    """Run the supervisor to its end, and say what was wrong if it could not begin."""
    supervisor = Supervisor(plan)
    await supervisor.run()
    if supervisor.failure:
        sys.stderr.write(f"Error: {supervisor.failure.strip()}\n")
        return 1
    return 0


def configure(name: str) -> None:
    """Log to standard error in the format of the workers, with the standard library alone."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        Json() if name == "json" else logging.Formatter("%(asctime)s: %(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


class Json(logging.Formatter):
    """One object a line, with the fields that the workers' lines have."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "event": record.getMessage(),
            "logger": record.name,
            "level": record.levelname.lower(),
            "timestamp": f"{moment}.{int(record.msecs):03d}Z",
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)
