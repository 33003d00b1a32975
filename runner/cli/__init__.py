"""The command line: parse, call, print."""

from __future__ import annotations

import click

from runner.cli import cron, dead, dev, jobs, limits, watch, worker, writer
from runner.errors import RunnerError


class Group(click.Group):
    """Show an error of ours as one line, not as a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an expected error ends it with status 1."""
        try:
            return super().invoke(ctx)
        except RunnerError as exc:
            raise click.ClickException(str(exc)) from exc


@click.group(cls=Group)
@click.version_option(package_name="arq-runner", prog_name="runner")
def main() -> None:
    """Run and look after the parts of arq-runner.

    A single worker is also started by arq's own command: arq settings.WorkerSettings
    """


main.add_command(worker.worker)
main.add_command(writer.writer)
main.add_command(dev.dev)
main.add_command(cron.cron)
main.add_command(dead.dead)
main.add_command(jobs.jobs)
main.add_command(jobs.purge)
main.add_command(limits.limits)
for _command in (limits.pause, limits.resume, limits.paused):
    main.add_command(_command)
main.add_command(watch.top)
main.add_command(watch.workers)
main.add_command(watch.queues)
main.add_command(watch.health)
