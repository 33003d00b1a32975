"""Turn what a caller wants into a plan that the supervisor can carry out."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from runner.embedded import folders, programs
from runner.embedded.errors import EmbeddedServerError
from runner.embedded.supervisor.messages import Plan, PostgresPlan, RedisPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from runner.embedded.programs import PostgresPrograms, RedisPrograms
    from runner.embedded.supervisor.messages import Account

__all__ = ["START_TIMEOUT_S", "Setting", "Wish", "prepared"]

Setting: TypeAlias = str | float | bool

START_TIMEOUT_S: Final = 60.0
TAKEN_OF_REDIS: Final = frozenset(
    {"bind", "daemonize", "dir", "logfile", "pidfile", "port", "requirepass", "tls-port"}
)
TAKEN_OF_POSTGRES: Final = frozenset(
    {"data_directory", "listen_addresses", "logging_collector", "port", "unix_socket_directories"}
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be started, and how; `data_dir` None is for data that go with the servers."""

    data_dir: Path | None
    redis: bool
    postgres: bool
    fsync: bool
    redis_settings: Mapping[str, Setting]
    postgres_settings: Mapping[str, Setting]


@contextlib.contextmanager
def prepared(wish: Wish) -> Iterator[tuple[Plan, list[int]]]:
    """Make the folders that the wish needs; lend a plan, and the locks to leave to a supervisor.

    Temporary folders are removed again if the block raises; later that is the supervisor's duty.
    """
    _refuse(TAKEN_OF_REDIS, wish.redis_settings)
    _refuse(TAKEN_OF_POSTGRES, wish.postgres_settings)
    redis = programs.find_redis() if wish.redis else None
    postgres = programs.find_postgres() if wish.postgres else None
    if (wish.redis and not redis) or (wish.postgres and not postgres):
        raise programs.missing(
            redis=wish.redis and not redis, postgres=wish.postgres and not postgres
        )
    account = folders.choose_account(wish.data_dir)
    copied = _to_copy(redis, account) or _to_copy(postgres, account)
    temporary, held = folders.make_temporary(account, for_programs=copied)
    locks = [held]
    try:
        home = temporary
        if wish.data_dir:
            home = wish.data_dir
            locks.append(folders.make_data_dir(home))
        plan = Plan(
            redis=_redis_plan(wish, redis, home, temporary, account) if redis else None,
            postgres=_postgres_plan(wish, postgres, home, temporary, account) if postgres else None,
            account=account,
            temporary=str(temporary),
            start_timeout_s=START_TIMEOUT_S,
        )
        yield plan, locks
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise EmbeddedServerError(f"The folders of the servers cannot be made: {error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        for held in locks:
            os.close(held)


def _to_copy(found: RedisPrograms | PostgresPrograms | None, account: Account | None) -> bool:
    """Say whether the account can run the programs only from another place."""
    if found is None or all(
        folders.may_reach(path, account) and not programs.SHELL_SPECIAL.search(str(path))
        for path in found.paths
    ):
        return False
    if found.wheel is None:
        raise EmbeddedServerError(
            f"{found.paths[0]} lies where the servers' user may not go, or under a name that a "
            "shell misreads. Install it elsewhere, or start as another user."
        )
    return True


def _redis_plan(
    wish: Wish, found: RedisPrograms, home: Path, temporary: Path, account: Account | None
) -> RedisPlan:
    if _to_copy(found, account):
        found = found.copied_to(temporary / "programs")
    settings: dict[str, Setting] = {
        "save": '""',
        "appendonly": wish.data_dir is not None,
        # "no" leaves it to the system when bytes reach the disk; a server that is killed still
        # loses none of them.
        "appendfsync": "everysec" if wish.fsync else "no",
    }
    return RedisPlan(
        program=str(found.server),
        folder=str(folders.make_data_folder(home, "redis", account)),
        log=str(folders.make_log(home, "redis.log")),
        settings=_words({**settings, **wish.redis_settings}, yes="yes", no="no"),
    )


def _postgres_plan(
    wish: Wish, found: PostgresPrograms, home: Path, temporary: Path, account: Account | None
) -> PostgresPlan:
    if _to_copy(found, account):
        found = found.copied_to(temporary / "programs")
    settings: dict[str, Setting] = {"max_connections": 200}
    if not wish.fsync:
        settings |= {"fsync": False, "full_page_writes": False}
    return PostgresPlan(
        postgres=str(found.postgres),
        initdb=str(found.initdb),
        folder=str(folders.make_data_folder(home, "postgres", account)),
        log=str(folders.make_log(home, "postgres.log")),
        settings=_words({**settings, **wish.postgres_settings}, yes="on", no="off"),
    )


def _refuse(taken: frozenset[str], settings: Mapping[str, Setting]) -> None:
    if clash := taken & {name.lower() for name in settings}:
        raise EmbeddedServerError(
            f"{', '.join(sorted(clash))}: the embedded servers decide this themselves."
        )


def _words(settings: Mapping[str, Setting], *, yes: str, no: str) -> dict[str, str]:
    words = {True: yes, False: no}
    return {
        name: words[value] if isinstance(value, bool) else str(value)
        for name, value in settings.items()
    }
