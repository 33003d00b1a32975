"""What can be known of the image and the compose file without an engine to run them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
COMPOSE = ROOT / "docker" / "compose.yaml"


def test_compose_file_fits_its_schema() -> None:
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    command[0] = str(Path(sys.executable).with_name(command[0]))
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_everything_the_image_copies_is_in_the_repository() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = [source for line in copied for source in shlex.split(line)]
    assert {"runner", "jobs", "settings.py", "requirements.lock"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_image_runs_as_another_user_than_root_and_says_how_it_is() -> None:
    assert re.search(r"^USER (?!root)", DOCKERFILE, re.MULTILINE)
    assert '["arq", "settings.WorkerSettings", "--check"]' in DOCKERFILE


def test_files_that_compose_mounts_are_in_the_repository() -> None:
    mounted = re.findall(r"- (\.\./\S+):/", COMPOSE.read_text("utf-8"))
    assert mounted
    assert [path for path in mounted if not (COMPOSE.parent / path).exists()] == []
