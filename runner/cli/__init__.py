"""The command line: parse, call, print."""

from __future__ import annotations

import click
from redis.exceptions import ConnectionError, RedisError, TimeoutError  # noqa: A004  redis's own

from runner.cli import (
    completion,
    cron,
    dashboard,
    dead,
    dev,
    flows,
    history,
    jobs,
    limits,
    queues,
    watch,
    worker,
    writer,
)
from runner.errors import RunnerError


class Group(click.Group):
    """Show an error of ours as one line, not as a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an expected error ends it with status 1."""
        try:
            return super().invoke(ctx)
        except RunnerError as exc:
            raise click.ClickException(str(exc)) from exc
        except RedisError as exc:
            said = f"Redis: {str(exc) or type(exc).__name__}"
            if isinstance(exc, ConnectionError | TimeoutError):
                said += " (the address is that of redis_settings, in the settings)"
            raise click.ClickException(said) from exc


@click.group(cls=Group)
@click.version_option(package_name="arq-runner", prog_name="runner")
def main() -> None:
    """Run and look after the parts of arq-runner.

    A single worker is also started by arq's own command: arq settings.WorkerSettings

    Exit status: 0 done; 1 refused, failed, not ready, or nobody answers; 2 wrong words; 75 a
    worker that is to be started again, because a limit of its process is reached.
    """


main.add_command(worker.worker)
main.add_command(writer.writer)
main.add_command(dev.dev)
main.add_command(watch.top)
main.add_command(watch.workers)
main.add_command(queues.queues)
main.add_command(jobs.jobs)
main.add_command(jobs.purge)
main.add_command(dead.dead)
main.add_command(history.history)
main.add_command(cron.cron)
main.add_command(flows.flows)
main.add_command(limits.limits)
for _command in (limits.pause, limits.resume, limits.paused):
    main.add_command(_command)
main.add_command(dashboard.dashboard)
main.add_command(watch.health)
main.add_command(completion.completion)
