"""The whole writer: stream → commit → settle, elections, fencing, and what survives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import msgspec
import pytest

from runner import keys
from runner.codec import decode_result
from runner.errors import WriteRejected
from runner.types import DeadLetter
from runner.writer import UnitBuilder, adopt, adopt_database, writer_status
from runner.writer.entries import Unit, read_entry
from runner.writer.session import APPLICATION_NAME, LOCK
from runner.writer.settle import Settler
from runner.writer.status import split_id
from runner.writer.stream import Tail
from tests.integration.test_writer_support import (
    CODEC,
    LASTING,
    Engine,
    bench,
    engine,
    unit_of,
    writing,
)
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from tests.servers import ChaosServers

pytestmark = pytest.mark.lasting_keys(*LASTING)

SCHEMA = """
CREATE TABLE t (id int PRIMARY KEY);
CREATE TABLE total (name text PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
"""

WRITERS = f"""
FROM pg_stat_activity
WHERE application_name = '{APPLICATION_NAME}' AND datname = current_database()
"""
"""Sessions of writers of this test's own database: other tests share the server."""


def inserting(number: int) -> UnitBuilder:
    return unit_of(lambda u: u.insert("t", id=number))


def counting(name: str = "x") -> UnitBuilder:
    return unit_of(lambda u: u.add("total", key={"name": name}, missing="insert", n=1))


async def result_of(e: Engine, job_id: str) -> Any:
    data = await e.redis.get(keys.result(job_id))
    assert data is not None
    return decode_result(CODEC, data)


async def own_keys(e: Engine) -> list[str]:
    found = [key.decode() async for key in e.redis.scan_iter("*")]
    return sorted(set(found) - {keys.UNITS, keys.WRITER, keys.LEADER})


async def test_a_job_is_settled_after_its_commit(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, writing(e.candidate("me")):
        await cast(Any, e.redis.sadd(keys.waiters("j1"), "reply-settled"))
        pubsub = e.redis.pubsub()
        await pubsub.subscribe("reply-settled")
        await pubsub.get_message(timeout=5)
        entry = await e.submit("j1", inserting(1))
        await e.answered(entry)
        assert (await result_of(e, "j1")).result == "done"
        message = await pubsub.get_message(timeout=5)
        assert message is not None
        assert message["data"].startswith(b"j1\0")
        await pubsub.aclose()  # type: ignore[no-untyped-call]
        assert await own_keys(e) == ["arq:result:j1", "runner:counters:arq:queue"]
        counters = await cast(Any, e.redis.hgetall(keys.counters(keys.DEFAULT_QUEUE)))
        assert counters == {b"succeeded": b"1"}
        assert await e.rows("SELECT id FROM t") == [(1,)]
        status = await writer_status(e.redis)
        assert (status.leader, status.position, status.backlog) == ("me", entry, 0)
        assert (status.units, status.operations, status.rejected) == (1, 1, 0)


async def test_a_refused_job_fails_with_the_reason(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, writing(e.candidate()):
        await e.submit("j1", inserting(1))
        await e.submit("j2", inserting(1))
        await e.answered(await e.submit("j3", inserting(3)))
        refused = await result_of(e, "j2")
        assert not refused.success
        assert isinstance(refused.result, WriteRejected)
        assert refused.result.sqlstate == "23505"
        assert refused.result.constraint == "t_pkey"
        letter = msgspec.msgpack.decode(
            await e.redis.get(keys.dead_letter("j2")) or b"", type=DeadLetter
        )
        assert (letter.task, letter.outcome, letter.args) == ("t", "failed", [1])
        assert await e.redis.zrange(keys.dead(keys.DEFAULT_QUEUE), 0, -1) == [b"j2"]
        assert (await writer_status(e.redis)).rejected == 1


async def test_no_result_is_kept_when_none_is_wanted(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, writing(e.candidate()):
        await e.submit("gone", inserting(1), keep_ms=0)
        await e.answered(await e.submit("kept", inserting(2), keep_ms=-1, queue="other"))
        assert await e.redis.exists(keys.result("gone")) == 0
        assert await e.redis.pttl(keys.result("kept")) == -1
        assert await e.redis.exists("other", keys.DEFAULT_QUEUE) == 0


async def test_a_marker_of_another_entry_is_left_alone(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        entry = await e.submit("j1", inserting(1))
        await e.redis.set(keys.in_progress("j1"), "committing:9-9")
        async with writing(e.candidate()):
            await e.answered(entry)
        assert await e.redis.get(keys.in_progress("j1")) == b"committing:9-9"
        assert await e.redis.zscore(keys.DEFAULT_QUEUE, "j1") is not None
        assert await e.redis.exists(keys.result("j1")) == 0


async def test_a_unit_without_a_job_is_answered_too(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, writing(e.candidate()):
        await e.answered(await e.submit_alone("one", inserting(1)))
        refused = await e.submit_alone("two", inserting(1))
        await e.answered(refused)
        facts = msgspec.msgpack.decode(await e.redis.get(keys.FAILED_UNIT + refused) or b"")
        assert facts["sqlstate"] == "23505"


async def test_a_submission_that_is_repeated_is_applied_once(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, writing(e.candidate()):
        await e.answered(await e.submit("j1", counting()))
        await e.answered(await e.submit("j1", counting()))
        assert (await result_of(e, "j1")).success
        await e.answered(await e.submit("j1", counting(), enqueued_ms=1_800_000_000_000))
        assert await e.rows("SELECT n FROM total") == [(2,)]


async def test_corrupt_entries_do_not_stop_the_writer(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, writing(e.candidate()):
        await e.redis.xadd(keys.UNITS, {"u": "x", "o": b"\xc1"})
        await e.redis.xadd(keys.UNITS, {"nothing": "known"})
        await e.redis.xadd(keys.UNITS, {"u": "y", "o": b"\x90", "j": b"\x01"})
        await e.answered(await e.submit("j1", inserting(1)))
        assert (await writer_status(e.redis)).rejected == 3


async def test_a_leader_that_stops_hands_over(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        first, second = e.candidate("first"), e.candidate("second")
        async with writing(first):
            await second.start()
            await e.answered(await e.submit("j1", counting()))
            assert not second.leading
            held = f"SELECT count(*) {WRITERS}"
            assert await e.database.fetchval(held) == 1
        await wait_until(lambda: second.leading, description="the second leads")
        await e.answered(await e.submit("j2", counting()))
        assert (await second.status()).leader == "second"
        await second.stop()
        await second.stop()
        assert await e.rows("SELECT n, (SELECT epoch FROM runner.writer) FROM total") == [(2, 2)]


async def test_nothing_is_lost_or_doubled_when_backends_are_ended(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        candidates = [e.candidate("a"), e.candidate("b")]
        for candidate in candidates:
            await candidate.start()
        entry = ""
        for round_number in range(6):
            for number in range(40):
                entry = await e.submit(f"j{round_number}-{number}", counting())
            await e.database.execute(f"SELECT pg_terminate_backend(pid) {WRITERS}")
        await e.answered(entry, timeout_s=30)
        for candidate in candidates:
            await candidate.stop()
        assert await e.rows("SELECT n FROM total") == [(240,)]
        assert await e.redis.zcard(keys.DEFAULT_QUEUE) == 0


async def test_a_holder_that_does_not_answer_is_ended(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, bench(database_url) as frozen:
        await e.submit("j1", counting())
        async with writing(e.candidate()):
            await e.answered(await e.submit("j2", counting()))
        assert frozen.connection.is_closed()
        assert await e.rows("SELECT n FROM total") == [(2,)]


async def test_a_lock_of_another_program_is_left_alone(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("j1", counting()))
        await e.database.fetchval("SELECT pg_advisory_lock($1)", LOCK)
        candidate = e.candidate()
        await candidate.start()

        async def waits() -> bool:
            rows = await e.rows(f"SELECT state_change - backend_start > interval '1 s' {WRITERS}")
            return any(row[0] for row in rows)

        _: bool = await wait_until(
            waits, description="the candidate has asked for the lock for a while"
        )
        assert not candidate.leading
        await e.database.fetchval("SELECT pg_advisory_unlock($1)", LOCK)
        await wait_until(lambda: candidate.leading, description="the candidate leads")
        await candidate.stop()


async def test_a_new_leader_answers_what_the_last_one_committed(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("j0", inserting(1)))
        await e.submit("j1", inserting(2))
        last = await e.submit("j2", inserting(1))
        entries = await e.redis.xrange(keys.UNITS)
        async with bench(database_url) as b:
            # The leader applies both, the second of which is refused, and dies before it tells.
            units = [read_entry(entry.decode(), fields) for entry, fields in entries[1:]]
            assert list(await b.apply(*units)) == [last]
        async with writing(e.candidate()):
            await e.answered(last)
            assert (await result_of(e, "j1")).success
            assert not (await result_of(e, "j2")).success
            assert (await writer_status(e.redis)).units == 2


async def test_a_new_leader_answers_the_very_first_batch_of_one_that_died(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            pass  # it took office, and has answered nothing
        first = await e.submit("j1", inserting(1))
        entries = await e.redis.xrange(keys.UNITS)
        async with bench(database_url) as b:
            await b.apply(*(read_entry(entry.decode(), fields) for entry, fields in entries))
        async with writing(e.candidate()):
            await e.answered(first)
            assert (await result_of(e, "j1")).success
            assert await e.redis.zcard(keys.DEFAULT_QUEUE) == 0


async def test_cron_job_that_writes_is_not_made_again_for_a_while(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("cron:1", inserting(1), afterlife_ms=60_000))
        assert await e.redis.get(keys.in_progress("cron:1")) == b"1"
        assert 0 < await e.redis.pttl(keys.in_progress("cron:1")) <= 60_000
        assert not await e.redis.exists(keys.job("cron:1"))


async def test_adoption_ends_the_jobs_whose_units_wait(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("j1", inserting(1)))
        await e.submit("j2", inserting(2))
        await adopt_database(e.redis, database_url, CODEC)
        assert (await result_of(e, "j1")).success
        refused = await result_of(e, "j2")
        assert not refused.success
        assert "adopted" in str(refused.result)
        assert await e.redis.zcard(keys.dead(keys.DEFAULT_QUEUE)) == 1
        assert await e.redis.zcard(keys.DEFAULT_QUEUE) == 0
        async with writing(e.candidate()):
            await e.answered(await e.submit("j3", inserting(3)))
        assert len(await e.rows("SELECT 1 FROM t")) == 2


LEADER = """
import asyncio, sys
from redis.asyncio import Redis
from runner.codec import MsgpackCodec
from runner.writer import Candidate

async def main():
    redis_url, database_url = sys.argv[1:]
    candidate = Candidate(
        redis=Redis.from_url(redis_url), database_url=database_url, codec=MsgpackCodec(), name="far"
    )
    await candidate.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def far_leader(redis_url: str, e: Engine) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a leader in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LEADER, redis_url, e.database_url, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await e.answered(await e.submit("far", counting()), timeout_s=20)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_another_takes_over_when_the_leader_is_killed(
    redis_url: str, database_url: str
) -> None:
    async with (
        engine(redis_url, database_url, SCHEMA) as e,
        far_leader(redis_url, e) as process,
    ):
        second = e.candidate()
        await second.start()
        for number in range(200):
            await e.submit(f"j{number}", counting())
            if number == 100:
                process.kill()
        await e.answered(await e.submit("last", counting()))
        await second.stop()
        assert await e.rows("SELECT n FROM total") == [(202,)]


async def test_a_leader_that_was_stopped_finds_itself_fenced(
    redis_url: str, database_url: str
) -> None:
    async with (
        engine(redis_url, database_url, SCHEMA) as e,
        far_leader(redis_url, e) as process,
    ):
        process.send_signal(signal.SIGSTOP)
        entry = await e.submit("j1", counting())
        async with writing(e.candidate("near")):
            await e.answered(entry)
            process.send_signal(signal.SIGCONT)
            for number in range(2, 50):
                entry = await e.submit(f"j{number}", counting())
            await e.answered(entry)
            assert (await writer_status(e.redis)).leader == "near"
        # Now the one that was stopped may lead again, by a term of its own.
        await e.answered(await e.submit("back", counting()))
        assert (await writer_status(e.redis)).leader == "far"
        assert await e.rows("SELECT n FROM total") == [(51,)]


async def test_what_a_former_leader_settles_late_moves_nothing_back(
    redis_url: str, database_url: str
) -> None:
    """A network that is mended delivers what was sent before the cut."""
    async with engine(redis_url, database_url, SCHEMA) as e:
        late = await e.submit("j1", counting())
        entries = [read_entry(i.decode(), fields) for i, fields in await e.redis.xrange(keys.UNITS)]
        async with writing(e.candidate("near")):
            last = await e.submit("j2", counting())
            await e.answered(last)
            await Settler(e.redis, CODEC, "far", "0-0").settle(entries, {})
            facts = await cast(Any, e.redis.hgetall(keys.WRITER))
        assert facts[b"answered"].decode() == last > late
        assert (facts[b"leader"], facts[b"units"]) == (b"near", b"2")


async def test_a_unit_that_takes_the_session_with_it_is_refused(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, writing(e.candidate()):
        await e.submit("j1", counting())
        await e.submit(
            "bad", unit_of(lambda u: u.execute("SELECT pg_terminate_backend(pg_backend_pid())"))
        )
        await e.answered(await e.submit("j2", counting()), timeout_s=30)
        assert "lost its session" in str((await result_of(e, "bad")).result)
        assert await e.rows("SELECT n FROM total") == [(2,)]


async def test_the_ledgers_change_places(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("j1", counting()))
        for expected in (2, 1):
            await e.database.execute(
                "UPDATE runner.writer SET swapped_at = now() - interval '1 hour'"
            )
            async with writing(e.candidate()):
                await e.answered(await e.submit(f"j{expected}x", counting()))
            assert await e.rows("SELECT ledger FROM runner.writer") == [(expected,)]
        assert await e.rows("SELECT count(*) FROM runner.ledger_1") == [(0,)]
        assert await e.rows("SELECT n FROM total") == [(3,)]


async def test_a_ledger_that_is_being_read_is_emptied_later(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pg_dump reads all tables, for as long as it runs: the writer does not wait for it."""
    monkeypatch.setattr("runner.writer.term.SWAP_AGAIN_S", 0.1)
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("j1", counting()))
        await e.database.execute("UPDATE runner.writer SET swapped_at = now() - interval '1 hour'")
        dump = await asyncpg.connect(database_url)
        try:
            async with writing(e.candidate()):
                async with dump.transaction():
                    await dump.execute("LOCK TABLE runner.ledger_2 IN ACCESS SHARE MODE")
                    for number in range(3):
                        await e.answered(await e.submit(f"k{number}", counting()))
                    assert await e.rows("SELECT ledger FROM runner.writer") == [(1,)]
                await wait_until(
                    lambda: _has_swapped(e), description="the ledgers have changed places"
                )
        finally:
            await dump.close()
        assert await e.rows("SELECT n FROM total") == [(4,)]


async def _has_swapped(e: Engine) -> bool:
    return await e.rows("SELECT ledger FROM runner.writer") == [(2,)]


async def test_the_tail_is_trimmed_and_the_position_stays(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            done = [await e.submit(f"j{number}", counting()) for number in range(10)]
            await e.answered(done[-1])
        waiting = [await e.submit(f"k{number}", counting()) for number in range(5)]

        async def left_by(tail: Tail) -> list[str]:
            await tail.trim(e.redis, done[-1])
            return [entry.decode() for entry, _ in await e.redis.xrange(keys.UNITS)]

        assert await left_by(Tail()) == done + waiting
        monkeypatch.setattr("runner.writer.stream.TAIL_ENTRIES", 3)
        tail = Tail()
        for entry in done:
            tail.note([Unit(entry, b"", [], 0, 0)])
        assert await left_by(tail) == done[-4:] + waiting
        monkeypatch.setattr("runner.writer.stream.TAIL_MS", -60_000)
        assert await left_by(tail) == [done[-1], *waiting]
        async with writing(e.candidate()):
            await e.answered(waiting[-1])
        assert await e.rows("SELECT n FROM total") == [(15,)]


async def refused_to_lead(e: Engine, caplog: pytest.LogCaptureFixture, text: str) -> None:
    caplog.set_level(logging.INFO, "runner.writer")
    caplog.clear()
    candidate = e.candidate()
    await candidate.start()
    await wait_until(lambda: text in caplog.text, description=f"the log says {text!r}")
    assert not candidate.leading
    await candidate.stop()


async def test_a_database_that_belongs_to_another_redis_is_refused(
    redis_url: str,
    database_url: str,
    empty_database_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("j1", counting()))
        async with engine(redis_url, empty_database_url, SCHEMA) as other:
            await refused_to_lead(other, caplog, "belong to another database")
            await adopt(other.redis, other.database)
            async with writing(other.candidate()):
                await other.answered(await other.submit("j2", counting()))
            assert await other.rows("SELECT n FROM total") == [(1,)]
        await refused_to_lead(e, caplog, "belong to another database")


async def test_a_redis_that_was_emptied_is_refused(
    redis_url: str, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("j1", counting()))
        await e.redis.delete(keys.WRITER, keys.UNITS)
        await refused_to_lead(e, caplog, "Redis does not know this database")


async def test_commits_that_postgres_forgot_are_applied_again(
    redis_url: str, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            first = await e.submit("j1", counting())
            last = await e.submit("j2", counting())
            await e.answered(last)
        await e.database.execute("UPDATE total SET n = 1")
        await e.database.execute("TRUNCATE runner.ledger_1, runner.ledger_2")
        await e.database.execute("UPDATE runner.writer SET position = $1", first)
        async with writing(e.candidate()):
            await e.answered(await e.submit("j3", counting()))
        assert await e.rows("SELECT n FROM total") == [(3,)]
        assert (await writer_status(e.redis)).units == 3
        await cast(Any, e.redis.hset(keys.WRITER, "trimmed", last))
        await e.database.execute("UPDATE runner.writer SET position = $1", first)
        await refused_to_lead(e, caplog, "those between are in neither")


async def stands_above(redis: Redis, position: str) -> bool:
    """Tell whether the next entry of the stream gets an id above the position."""
    info = cast("dict[str, bytes]", await redis.xinfo_stream(keys.UNITS))
    return split_id(info["last-generated-id"].decode()) > split_id(position)


async def test_units_that_redis_lost_do_not_hide_new_ones(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("j1", counting()))
        ahead = "9000000000000-0"
        await e.database.execute("UPDATE runner.writer SET position = $1", ahead)
        async with writing(e.candidate()):
            # It leads before it has looked at the stream; a unit of that moment is appended again.
            await wait_until(lambda: stands_above(e.redis, ahead), description="ids above")
            entry = await e.submit("j2", counting())
            assert entry > ahead
            await e.answered(entry)
        assert await e.rows("SELECT n FROM total") == [(2,)]


async def test_the_writer_survives_its_servers(
    chaos_servers: ChaosServers, caplog: pytest.LogCaptureFixture
) -> None:
    servers = chaos_servers
    async with engine(servers.redis_url, servers.database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("j1", counting()))
            await servers.restart_postgres(kill=True)
            await e.answered(await e.submit("j2", counting()), timeout_s=20)
            await servers.restart_redis(kill=True)
            await e.answered(await e.submit("j3", counting()), timeout_s=20)
        database = await asyncpg.connect(servers.database_url)
        assert await database.fetchval("SELECT n FROM total") == 3
        await database.close()
        await e.redis.config_set("maxmemory-policy", "allkeys-lru")
        await refused_to_lead(e, caplog, "Set it to noeviction")
