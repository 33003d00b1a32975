"""``runner completion``: what a shell needs to complete words of these commands."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from runner.errors import SettingsError

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_RUNNER_COMPLETE"


@click.command()
@click.argument("shell", required=False, type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str | None) -> None:
    """Print a script that completes commands and options in SHELL.

    \b
    bash:  echo 'eval "$(runner completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(runner completion zsh)"' >> ~/.zshrc
    fish:  runner completion fish > ~/.config/fish/completions/runner.fish

    Without SHELL it is that of the environment variable SHELL.
    """  # noqa: D301  the mark by which click leaves lines as they are
    shell = shell or Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(shell) if shell in SHELLS else None
    if kind is None:
        raise SettingsError(f"which shell? Say one of {', '.join(SHELLS)}")
    click.echo(kind(ctx.find_root().command, {}, "runner", VARIABLE).source())
