"""``python -m runner.cli``: the same as ``runner``."""

from runner.cli import main

main(prog_name="runner")
