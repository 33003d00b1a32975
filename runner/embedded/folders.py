"""Choose the folders and the user of the servers, and change no folder that was there before.

Postgres refuses to run as root. As root, both servers therefore run as an unprivileged user that
exists already, and whatever they read or write must lie where that user may go.

A folder of this module is locked by the supervisor for as long as it lives. What a killed
supervisor has left behind is swept by the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from runner.embedded.errors import EmbeddedServerError
from runner.embedded.programs import SHELL_SPECIAL
from runner.embedded.supervisor.messages import Account

__all__ = [
    "choose_account",
    "lock",
    "make_data_dir",
    "make_data_folder",
    "make_log",
    "make_temporary",
    "may_reach",
    "sweep",
]

UNPRIVILEGED: Final = ("nobody", "daemon")
PREFIX: Final = "runner-embedded-"
LOCK: Final = "lock"
YOUNG_S: Final = 60.0  # a folder may be that old before its lock must be held
LOCK_WAIT_S = 5.0
POLL_S: Final = 0.01
# Where root's lasting data go when the asked folder lies where the unprivileged user may not go.
ROOT_DATA: Final = Path("/var/lib/arq-runner")


def choose_account(data_dir: Path | None) -> Account | None:
    """Return who the servers run as: the owner of data that are there, else `nobody`, for root.

    None says: as who we are.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "redis"):
        with contextlib.suppress(FileNotFoundError):
            if data_dir and (owner := (data_dir / name).stat()).st_uid != 0:
                return Account(owner.st_uid, owner.st_gid)
    for name in UNPRIVILEGED:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return Account(user.pw_uid, user.pw_gid)
    raise EmbeddedServerError(
        "Postgres refuses to run as root, and there is neither a user "
        f"{' nor '.join(UNPRIVILEGED)} to run it as. Start as another user."
    )


def may_reach(path: Path, account: Account | None) -> bool:
    """Say whether the account may read `path` (enter it, if a folder) through all folders above."""
    if account is None:
        return True
    real = path.resolve()
    folders = [real, *real.parents] if real.is_dir() else list(real.parents)
    return all(_allows(folder, account, 0o1) for folder in folders) and (
        real.is_dir() or _allows(real, account, 0o5)
    )


def _allows(path: Path, account: Account, wanted: int) -> bool:
    status = path.stat()
    if status.st_uid == account.uid:
        given = status.st_mode >> 6
    elif status.st_gid == account.gid:
        given = status.st_mode >> 3
    else:
        given = status.st_mode
    return given & wanted == wanted


def make_temporary(account: Account | None, *, for_programs: bool) -> tuple[Path, int]:
    """Make the folder of one run and return it with its lock.

    With `for_programs`, programs can be run from there.
    """
    base = _temporary_base(account, for_programs=for_programs)
    sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    if account:
        folder.chmod(0o711)
    held = lock(folder)
    assert held is not None
    return folder, held


def _temporary_base(account: Account | None, *, for_programs: bool) -> Path:
    candidates = dict.fromkeys(map(Path, (tempfile.gettempdir(), "/tmp", "/var/tmp")))  # noqa: S108  mkdtemp follows
    for base in candidates:
        if not base.is_dir() or not may_reach(base, account):
            continue
        if for_programs and not _runs_programs(base):
            continue
        return base
    raise EmbeddedServerError(
        "The servers find no temporary folder that they may use among "
        f"{', '.join(map(str, candidates))}. Set TMPDIR to one that every user may enter."
    )


def _runs_programs(folder: Path) -> bool:
    if SHELL_SPECIAL.search(str(folder)):
        return False
    return sys.platform != "linux" or not os.statvfs(folder).f_flag & os.ST_NOEXEC


def lock(folder: Path) -> int | None:
    """Return a descriptor that holds the folder's lock; None if another process holds it."""
    held = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def sweep(base: Path) -> None:
    """Remove the folders of runs whose supervisor was killed before it could."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another sweeps too, or it is not ours
            if _abandoned(folder) and (held := lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(held)


def _abandoned(folder: Path) -> bool:
    status = folder.lstat()
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and time.time() - status.st_mtime > YOUNG_S
    )


def make_data_dir(data_dir: Path) -> int:
    """Make the folder of lasting data, if it is not there, and return its lock."""
    if not data_dir.exists():
        data_dir.mkdir(parents=True)
        data_dir.chmod(0o755)
        (data_dir / ".gitignore").write_text("*\n")
    until = time.monotonic() + LOCK_WAIT_S
    while (held := lock(data_dir)) is None:
        if time.monotonic() > until:
            raise EmbeddedServerError(f"Other servers already run on the data in {data_dir}.")
        time.sleep(POLL_S)  # those of a program that has just been killed are about to end
    return held


def make_data_folder(parent: Path, name: str, account: Account | None) -> Path:
    """Return the folder of one server's data, made for the account if it is not there.

    Where the account may not reach `parent`, the data go to `ROOT_DATA` and `parent` holds a link.
    """
    folder = parent / name
    if not folder.exists():
        _make_for(folder, account)
    owner = folder.stat().st_uid
    if owner != (account.uid if account else os.geteuid()):
        raise EmbeddedServerError(
            f"{folder} belongs to user {owner}: start as that user, or remove the folder."
        )
    if not may_reach(folder, account):
        raise EmbeddedServerError(f"User {owner} may not reach its data in {folder}.")
    return folder.resolve()


def _make_for(folder: Path, account: Account | None) -> None:
    if may_reach(folder.parent, account):
        folder.mkdir(mode=0o700)
        made = folder
    else:
        if not ROOT_DATA.exists():
            ROOT_DATA.mkdir(parents=True)
            ROOT_DATA.chmod(0o755)
        made = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=ROOT_DATA))
        folder.unlink(missing_ok=True)  # a link to data that are gone
        folder.symlink_to(made)
    if account:
        os.chown(made, account.uid, account.gid)


def make_log(folder: Path, name: str) -> Path:
    """Return an empty log that only its owner may read."""
    log = folder / name
    log.unlink(missing_ok=True)
    log.touch(mode=0o600, exist_ok=False)
    return log
