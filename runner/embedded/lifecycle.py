"""Start the servers through a supervisor of their own, talk to it, and stop them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Final, Self

from runner.embedded.errors import EmbeddedServerError
from runner.embedded.plan import START_TIMEOUT_S, Wish, prepared
from runner.embedded.supervisor.messages import HOST, Answer, Command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

    from runner.embedded.plan import Setting
    from runner.embedded.supervisor.messages import Plan

__all__ = ["Servers", "servers", "start"]

STOP_TIMEOUT_S: Final = 45.0  # three signals of ten seconds each, and some air
ANSWER_TIMEOUT_S: Final = START_TIMEOUT_S + STOP_TIMEOUT_S
ISOLATED: tuple[str, ...] = (
    "-I",
    "-S",
)  # quick to start, and blind to what the user's environment holds
SUPERVISOR: Final = Path(__file__).with_name("supervisor")
NOTHING: Final[Mapping[str, Setting]] = MappingProxyType({})


class Servers:
    """Valkey and Postgres while they run; made by `start`.

    All methods block until the servers have obeyed; asynchronous callers put them in a thread::

        async with embedded.servers() as servers:
            await asyncio.to_thread(servers.restart_redis, kill=True)

    Every method raises `EmbeddedServerError` for a server that is the user's own or was not asked
    for.
    """

    def __init__(
        self, *, redis_url: str | None, database_url: str | None, supervisor: _Supervisor | None
    ) -> None:
        if supervisor and (redis := supervisor.state.redis):
            redis_url = f"redis://{HOST}:{redis.port}/0"
        if supervisor and (postgres := supervisor.state.postgres):
            database_url = f"postgresql://postgres@{HOST}:{postgres.port}/postgres"
        self._redis_url = redis_url
        self._database_url = database_url
        self._supervisor = supervisor

    @property
    def redis_url(self) -> str:
        """Where Valkey listens, as ``redis://127.0.0.1:PORT/0``, or the user's REDIS_URL."""
        if self._redis_url is None:
            raise EmbeddedServerError("Valkey was not asked for: start with redis=True.")
        return self._redis_url

    @property
    def database_url(self) -> str:
        """Where Postgres listens, as ``postgresql://…``, or the user's DATABASE_URL."""
        if self._database_url is None:
            raise EmbeddedServerError("Postgres was not asked for: start with postgres=True.")
        return self._database_url

    @property
    def redis_pid(self) -> int | None:
        """The process of Valkey; None while it is stopped, and for a server of the user's own."""
        state = self._supervisor and self._supervisor.state.redis
        return state.pid if state else None

    @property
    def postgres_pid(self) -> int | None:
        """The process of Postgres; None while it is stopped, and for a server of the user's own."""
        state = self._supervisor and self._supervisor.state.postgres
        return state.pid if state else None

    @property
    def supervisor_pid(self) -> int | None:
        """The process that holds both servers; None if both are the user's own."""
        return self._supervisor.pid if self._supervisor else None

    def stop(self) -> None:
        """End what was started, and remove temporary data; nothing if that is done already."""
        if self._supervisor:
            self._supervisor.end()

    def start_redis(self) -> None:
        """Start Valkey again, on the same port and data."""
        self._ask("start", "redis")

    def stop_redis(self, *, kill: bool = False) -> None:
        """Stop Valkey; with `kill`, as a crash would."""
        self._ask("stop", "redis", kill=kill)

    def restart_redis(self, *, kill: bool = False) -> None:
        """Stop Valkey, with `kill` as a crash would, and start it on the same port and data."""
        self._ask("restart", "redis", kill=kill)

    def start_postgres(self) -> None:
        """Start Postgres again, on the same port and data."""
        self._ask("start", "postgres")

    def stop_postgres(self, *, kill: bool = False) -> None:
        """Stop Postgres; with `kill`, as a crash would."""
        self._ask("stop", "postgres", kill=kill)

    def restart_postgres(self, *, kill: bool = False) -> None:
        """Stop Postgres, with `kill` as a crash would, and start it on the same port and data."""
        self._ask("restart", "postgres", kill=kill)

    def _ask(self, do: str, server: str, *, kill: bool = False) -> None:
        if self._supervisor is None or getattr(self._supervisor.state, server) is None:
            raise EmbeddedServerError(f"There is no embedded {server} to {do}.")
        self._supervisor.ask(Command(do, server, kill))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _Supervisor:
    """The parent's end of the supervisor's pipes; one command at a time."""

    def __init__(self, plan: Plan, locks: list[int]) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by `end`
        self._asking = threading.Lock()
        self._unread = b""
        self.state = Answer()
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter on our own file
            [sys.executable, *ISOLATED, str(SUPERVISOR), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            cwd="/",
            pass_fds=locks,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._plan = plan

    def start(self) -> None:
        """Send the plan and wait until both servers serve."""
        self._exchange(self._plan.to_line())

    def ask(self, command: Command) -> None:
        """Send one command and wait until it is carried out."""
        self._exchange(command.to_line())

    def _exchange(self, line: bytes) -> None:
        assert self._process.stdin
        with self._asking:
            try:
                self._process.stdin.write(line)
            except (BrokenPipeError, ValueError):  # it has ended, or `end` has closed the pipe
                raise self._lost() from None
            answer = Answer.from_line(self._read_line())
        self.state = answer
        if answer.error:
            raise EmbeddedServerError(answer.error)

    def _read_line(self) -> bytes:
        assert self._process.stdout
        until = time.monotonic() + ANSWER_TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise EmbeddedServerError(
                        f"The servers' supervisor said nothing for {ANSWER_TIMEOUT_S:g} s."
                    )
                if not (more := self._process.stdout.read(1 << 16)):
                    raise self._lost()
                self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _lost(self) -> EmbeddedServerError:
        return EmbeddedServerError(f"The servers' supervisor has ended.{self._said()}")

    def _said(self) -> str:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        return f"\n{said}" if said else ""

    def end(self) -> None:
        """End the servers and the supervisor; a command that is under way is broken off."""
        assert self._process.stdin
        assert self._process.stdout
        if self._process.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(Command("end").to_line())  # a fork of ours may hold the pipe open
        try:
            code = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the servers get their death signal
            self._process.wait()
            raise EmbeddedServerError("The servers' supervisor had to be killed.") from None
        finally:
            self.state = Answer()
        with self._asking, self._errors, self._process.stdout:
            if code:
                raise self._lost()


def start(
    *,
    data_dir: str | Path | None = None,
    redis: bool = True,
    postgres: bool = True,
    fsync: bool = True,
    redis_settings: Mapping[str, Setting] = NOTHING,
    postgres_settings: Mapping[str, Setting] = NOTHING,
) -> Servers:
    """Start Valkey and Postgres on free loopback ports and wait until both serve.

    A server that REDIS_URL or DATABASE_URL names is taken as it is and never started or stopped.
    The user `postgres` needs no password, so whoever can log in to this machine can connect.

    Use it as a context manager, or call `Servers.stop`::

        with embedded.start(data_dir=".runner") as servers:
            print(servers.redis_url, servers.database_url)

    Args:
        data_dir: Where data last from run to run; None for data that go with the servers. Run as
            root, the servers' data belong to `nobody`; if that user may not reach the folder, they
            lie under `/var/lib/arq-runner` and the folder holds links.
        redis: Whether Valkey is wanted.
        postgres: Whether Postgres is wanted.
        fsync: False loses data when the machine (not the server) goes down; for tests.
        redis_settings: More of valkey.conf. With `data_dir`, `appendonly` is on unless set here.
        postgres_settings: More of postgresql.conf.

    Raises:
        EmbeddedServerError: No program was found, or a server did not start; nothing is left.
    """
    wish = Wish(
        data_dir=Path(data_dir).absolute() if data_dir is not None else None,
        redis=redis and not os.environ.get("REDIS_URL"),
        postgres=postgres and not os.environ.get("DATABASE_URL"),
        fsync=fsync,
        redis_settings=redis_settings,
        postgres_settings=postgres_settings,
    )
    supervisor = _supervise(wish) if wish.redis or wish.postgres else None
    return Servers(
        redis_url=os.environ.get("REDIS_URL") if redis else None,
        database_url=os.environ.get("DATABASE_URL") if postgres else None,
        supervisor=supervisor,
    )


def _supervise(wish: Wish) -> _Supervisor:
    with prepared(wish) as (plan, locks):
        supervisor = _Supervisor(plan, locks)
    try:
        supervisor.start()
    except BaseException:
        supervisor.end()
        raise
    return supervisor


@contextlib.asynccontextmanager
async def servers(
    *,
    data_dir: str | Path | None = None,
    redis: bool = True,
    postgres: bool = True,
    fsync: bool = True,
    redis_settings: Mapping[str, Setting] = NOTHING,
    postgres_settings: Mapping[str, Setting] = NOTHING,
) -> AsyncIterator[Servers]:
    """Start Valkey and Postgres as `start` does, in a thread, and stop them after the block.

    When cancelled while the servers start, it first waits for the start and then stops them.
    """
    starting = asyncio.create_task(
        asyncio.to_thread(
            start,
            data_dir=data_dir,
            redis=redis,
            postgres=postgres,
            fsync=fsync,
            redis_settings=redis_settings,
            postgres_settings=postgres_settings,
        ),
        name="start embedded servers",
    )
    try:
        await asyncio.shield(starting)  # a thread cannot be cancelled, and its servers need a stop
    except asyncio.CancelledError:
        await asyncio.to_thread((await starting).stop)
        raise
    try:
        yield starting.result()
    finally:
        await asyncio.to_thread(starting.result().stop)
