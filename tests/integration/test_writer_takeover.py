"""A leader dies, stops or is cut off: another takes over, and the old one finds itself fenced."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import asyncpg
import pytest

from runner.writer import Candidate, writer_status
from runner.writer.session import LOCK
from tests.integration.test_writer_support import CODEC, LASTING, engine, unit_of, writing
from tests.network import Network
from tests.silence import wire_to
from tests.support import wait_until
from tests.takeovers import SCHEMA, SESSIONS, WAYS, Stage, Way, stage

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.lasting_keys(*LASTING)

WAITING = f"SELECT pid FROM pg_locks JOIN ({SESSIONS}) s USING (pid) WHERE NOT granted"
HOLDERS = f"""
SELECT count(*) FROM pg_locks
 WHERE locktype = 'advisory' AND ((classid::bigint << 32) | objid::bigint) = {LOCK}
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


async def fill(database_url: str) -> None:
    database = await asyncpg.connect(database_url)
    await database.execute(SCHEMA)
    await database.close()


async def sessions(s: Stage) -> list[asyncpg.Record]:
    return list(await s.database.fetch(SESSIONS))


@pytest.mark.parametrize("way", WAYS)
async def test_another_takes_over(
    redis_url: str,
    database_url: str,
    way: Way,
    record_property: Callable[[str, object], None],
) -> None:
    await fill(database_url)
    async with stage(redis_url, database_url) as s:
        took_s = await s.take_over(way)
        record_property(f"takeover after {way}, s", round(took_s, 2))
        sys.stdout.write(f"takeover after {way}: {took_s:.2f} s\n")
        if way != "backend":  # then whoever is first may lead, the old one too
            assert s.standby.leading
            assert (await writer_status(s.redis)).leader == "near"
        s.mend()
        for _ in range(30):
            await s.answered(await s.submit())
        assert await s.total() == s.submitted
        if way != "backend":
            assert (await writer_status(s.redis)).leader == "near"

            async def is_alone() -> bool:
                return len(await sessions(s)) == 1

            await wait_until(is_alone, description="the old leader's session is gone")


@pytest.mark.skipif(not Network.is_permitted(), reason="no network namespaces can be made here")
@pytest.mark.parametrize("way", ["cut from redis", "cut from postgres"])
async def test_another_takes_over_when_the_kernel_drops_the_leaders_packets(
    redis_url: str,
    database_url: str,
    way: Way,
    record_property: Callable[[str, object], None],
) -> None:
    await fill(database_url)
    with Network() as network:
        async with stage(redis_url, database_url, network) as s:
            took_s = await s.take_over(way)
            record_property(f"takeover in a network that was {way}, s", round(took_s, 2))
            sys.stdout.write(f"takeover in a network that was {way}: {took_s:.2f} s\n")
            assert s.standby.leading
            s.mend()
            for _ in range(30):
                await s.answered(await s.submit())
            await s.standby.stop()  # the old one may lead again, once it has seen all that
            await s.answered(await s.submit())
            assert (await writer_status(s.redis)).leader == "far"
            assert await s.total() == s.submitted


async def test_the_old_leader_becomes_a_standby_that_can_lead_again(
    redis_url: str, database_url: str
) -> None:
    await fill(database_url)
    async with stage(redis_url, database_url) as s:
        await s.take_over("cut from postgres")
        s.mend()
        await s.answered(await s.submit())
        await s.standby.stop()
        await s.answered(await s.submit())
        assert (await writer_status(s.redis)).leader == "far"
        assert await s.total() == s.submitted


async def test_standbys_hold_no_connection_and_wait_for_no_lock(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        standbys = [e.candidate(f"standby {number}") for number in range(5)]
        async with writing(e.candidate("leader")):
            for standby in standbys:
                await standby.start()
            for number in range(20):
                await e.answered(
                    await e.submit(
                        f"j{number}", unit_of(lambda u: u.add("total", key={"name": "x"}, n=1))
                    )
                )
                rows = await e.rows(SESSIONS)
                assert len(rows) == 1
                waiting = await e.rows(WAITING)
                assert waiting == []
                assert await e.rows(HOLDERS) == [(1,)]
        for standby in standbys:
            await standby.stop()


async def test_a_lone_leader_that_is_cut_off_goes_on_when_the_network_is_back(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else can write: it lets others stand, and then begins anew by itself."""
    monkeypatch.setattr("runner.writer.pulse.GIVE_UP_S", 1.0)
    monkeypatch.setattr("runner.writer.session.CONNECT_TIMEOUT_S", 1.0)
    async with engine(redis_url, database_url, SCHEMA) as e, wire_to(database_url) as wire:
        candidate = Candidate(redis=e.redis, database_url=wire.url, codec=CODEC, name="lone")
        async with writing(candidate):
            adding = unit_of(lambda u: u.add("total", key={"name": "x"}, n=1))
            await e.answered(await e.submit("a", adding))
            wire.cut()
            entry = await e.submit("b", adding)
            await wait_until(lambda: not candidate.leading, description="it gives up")
            wire.mend()
            await e.answered(entry, timeout_s=20)
        assert await e.rows("SELECT n FROM total") == [(2,)]


async def test_a_long_statement_is_not_taken_for_a_cut(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long times for all but the statement's: a busy machine is no cut either.
    monkeypatch.setattr("runner.writer.pulse.PROBE_S", 30.0)
    async with engine(redis_url, database_url, SCHEMA) as e:
        first, second = (
            Candidate(redis=e.redis, database_url=database_url, codec=CODEC, name=name, term_s=20.0)
            for name in ("first", "second")
        )
        async with writing(first):
            await second.start()
            slow = await e.submit("slow", unit_of(lambda u: u.execute("SELECT pg_sleep(1.5)")))
            await e.answered(slow)
            assert first.leading
            assert not second.leading
            await second.stop()
        assert await e.rows("SELECT epoch FROM runner.writer") == [(1,)]
