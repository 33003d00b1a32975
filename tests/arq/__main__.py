"""Fetch arq's source distribution, and run its tests against our engine: ``make test-arq``.

Its tests want older test tools than ours, so they get an environment of their own under
``.runner/``. Nothing of arq's is kept in the repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from runner import embedded

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".runner" / "arq"
VERSION = "0.28.0"
TESTS = HOME / f"arq-{VERSION}"
PYTHON = HOME / "venv" / "bin" / "python"
MADE_OF = HOME / "venv" / "made-of.txt"
NEEDS = (
    f"arq[watch]=={VERSION}",
    "dirty-equals",
    "msgpack",
    "pydantic",
    "pytest<9",
    "pytest-asyncio<0.24",  # arq's fixtures use the event_loop fixture, which went with 1.0
    "pytest-mock",
    "pytest-timeout",
    "pytz",
)
TIME_LIMIT_S = 600


def main(arguments: list[str]) -> int:
    """Set up what is missing, start a Valkey, run the tests; return pytest's status."""
    prepare()
    with embedded.start(postgres=False) as servers:
        address = servers.redis_url.removeprefix("redis://").partition("/")[0]
        environment = {
            **os.environ,
            "ARQ_TEST_REDIS": address,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'arq'}",
        }
        command = [str(PYTHON), "-m", "pytest", "-p", "arq_in_place", "-q", *arguments]
        # arq installs signal handlers in every Worker: a run that hangs needs the harder end
        # that subprocess's time limit gives it.
        return subprocess.run(
            command,
            cwd=TESTS,
            env=environment,
            timeout=TIME_LIMIT_S,
            check=False,
        ).returncode


def prepare() -> None:
    """Fetch the tests, and make their environment whenever what is needed has changed."""
    HOME.mkdir(parents=True, exist_ok=True)
    lock = ROOT / "requirements.lock"
    wanted = "\n".join((*NEEDS, lock.read_text()))
    if not MADE_OF.exists() or MADE_OF.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(HOME / "venv")], check=True)
        pip("install", "-r", str(lock))
        pip("install", *NEEDS)
        MADE_OF.write_text(wanted)
    if not TESTS.exists():
        pip("download", "--no-deps", "--no-binary", ":all:", "-d", str(HOME), f"arq=={VERSION}")
        with tarfile.open(HOME / f"arq-{VERSION}.tar.gz") as archive:
            archive.extractall(HOME, filter="data")


def pip(*arguments: str) -> None:
    """Run pip in the tests' environment."""
    command = [str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
