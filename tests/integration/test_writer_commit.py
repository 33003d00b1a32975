"""Commits in the middle of a job, what becomes of them when it runs again, and refused jobs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import msgspec
import pytest

import runner
from runner import Client, Context, RetryPolicy, keys, task
from runner.broker import Claimed
from runner.errors import (
    CommitTimeout,
    LeaseLost,
    RemoteError,
    ResultTooLarge,
    UnitChanged,
    WriteRejected,
)
from runner.types import Committed, DeadLetter
from runner.writer import Commits, adopt_database
from runner.writer.entries import decode_rejection, read_entry
from tests.commit_worker import commit_and_wait
from tests.engine import Gate, Rig, raw, serving
from tests.integration.test_writer_support import CODEC, LASTING, bench, engine, unit_of, writing
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg import Connection, Record

    from tests.servers import ChaosServers

pytestmark = [
    pytest.mark.lasting_keys(*LASTING, "runner:held:*", "runner:writer:leader"),
    pytest.mark.timeout(60),
]

ROOT = Path(__file__).parents[2]
KEY = "2026-11:" + "0f" * 32
AT_ONCE = RetryPolicy(base=0)

SCHEMA = """
CREATE TABLE t (id int PRIMARY KEY);
CREATE TABLE serials (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);
CREATE TABLE total (name text PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
INSERT INTO total VALUES ('x', 0);
"""


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Connection[Record]]:
    connection = await asyncpg.connect(database_url)
    await connection.execute(SCHEMA)
    yield connection
    await connection.close()


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


async def ids(database: Connection[Record]) -> list[int]:
    return [row["id"] for row in await database.fetch("SELECT id FROM t ORDER BY id")]


async def letter_of(client: Client, job_id: str) -> DeadLetter:
    data = await client.get(keys.dead_letter(job_id))
    return msgspec.msgpack.decode(data or b"", type=DeadLetter)


@task(keep_result=60)
async def two_units(ctx: Context, name: str) -> list[Any]:
    ctx.db.insert("serials", name=name, returning=["id"])
    ctx.db.insert_many("t", [{"id": 1}, {"id": 2}])
    first = await ctx.db.commit()
    ctx.db.update("total", key={"name": "nobody"}, n=5)
    second = await ctx.db.commit()
    third = await ctx.db.commit()
    ctx.db.insert("t", id=3)
    return [first.counts, first.rows, second.counts, third == Committed()]


@pytest.mark.parametrize(
    "settings",
    [
        {"codec": "msgpack"},
        {"codec": None, "job_serializer": pickle.dumps, "job_deserializer": pickle.loads},
        {"codec": "msgpack", "signing_keys": KEY},
    ],
    ids=["msgpack", "pickle", "signed"],
)
async def test_a_commit_tells_what_it_did(
    redis_url: str, database_url: str, database: Connection[Record], settings: dict[str, Any]
) -> None:
    given = {"codec": "pickle"} if settings["codec"] is None else settings
    async with (
        runner.connect(redis_url, **given) as client,
        serving(redis_url, [two_units], database_url=database_url, **settings),
    ):
        job = await client.enqueue(two_units, "a")
        counts, rows, second, is_nothing = await job.result(timeout=20)
        assert list(counts) == [1, 2]
        assert [row and [dict(r) for r in row] for row in rows] == [[{"id": 1}], None]
        assert list(second) == [0]
        assert is_nothing
        assert await ids(database) == [1, 2, 3]
        assert await client.exists(keys.commits(job.job_id)) == 0
        account = await cast("Any", client.hmget(keys.WRITER, ["backlog", "backlog_bytes"]))
        assert list(map(int, account)) == [0, 0]


@task(retries=2, backoff=AT_ONCE)
async def fails_behind_a_commit(ctx: Context) -> list[Any]:
    ctx.db.insert("serials", name="once", returning=["id"])
    committed = await ctx.db.commit()
    ctx.db.add("total", key={"name": "x"}, n=1)
    if ctx.attempt == 1:
        ctx["kept"][ctx.job_id] = committed
        raise RuntimeError("on the way")
    return [committed == ctx["kept"][ctx.job_id], ctx.attempt]


async def test_an_attempt_that_fails_discards_only_what_is_not_committed(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    settings = {"database_url": database_url, "ctx": {"kept": {}}}
    async with serving(redis_url, [fails_behind_a_commit], **settings):
        job = await client.enqueue(fails_behind_a_commit)
        assert await job.result(timeout=20) == [True, 2]
    assert await database.fetchval("SELECT count(*) FROM serials") == 1
    assert await database.fetchval("SELECT n FROM total") == 1
    assert await client.exists(keys.commits(job.job_id)) == 0


@task(retries=3, backoff=AT_ONCE)
async def differs(ctx: Context) -> None:
    ctx.db.insert("t", id=ctx.attempt)
    await ctx.db.commit()
    raise RuntimeError("again")


async def test_a_commit_that_differs_from_the_last_attempts_fails_loudly(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    async with serving(redis_url, [differs], database_url=database_url):
        job = await client.enqueue(differs)
        with pytest.raises(RemoteError, match="commit number 1 differs") as caught:
            await job.result(timeout=20)
        assert caught.value.type_name == "runner.errors.UnitChanged"
    assert await ids(database) == [1]
    assert (await letter_of(client, job.job_id)).attempt == 2


@task
async def goes_on(ctx: Context) -> list[Any]:
    ctx.db.insert("t", id=1)
    ctx.db.insert("t", id=1)
    facts: list[Any] = []
    try:
        await ctx.db.commit()
    except WriteRejected as exc:
        facts = [exc.sqlstate, exc.constraint, list(exc.parameters)]
    ctx.db.insert("t", id=2)
    return [*facts, (await ctx.db.commit()).counts]


async def test_a_job_may_catch_a_refusal_and_go_on(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    async with serving(redis_url, [goes_on], database_url=database_url):
        job = await client.enqueue(goes_on)
        assert await job.result(timeout=20) == ["23505", "t_pkey", ["int"], [1]]
    assert await ids(database) == [2]


ENDED = (keys.job, keys.in_progress, keys.retry, keys.waiters)


async def takes_one(ctx: Context, *, commits: bool) -> int:
    ctx["runs"].append(ctx.attempt)
    ctx.db.insert("t", id=1)
    if commits:
        await ctx.db.commit()
    return ctx.attempt


@task(retries=3, backoff=AT_ONCE)
async def takes_one_or_fails(ctx: Context, *, commits: bool) -> int:
    return await takes_one(ctx, commits=commits)


@task(retries=3, backoff=AT_ONCE, on_write_error="retry")
async def takes_one_in_the_end(ctx: Context, *, commits: bool) -> int:
    return await takes_one(ctx, commits=commits)


@pytest.mark.parametrize("commits", [True, False])
async def test_a_refused_job_fails_at_once(
    redis_url: str, database_url: str, database: Connection[Record], client: Client, commits: bool
) -> None:
    await database.execute("INSERT INTO t VALUES (1)")
    settings = {"database_url": database_url, "ctx": {"runs": []}}
    async with serving(redis_url, [takes_one_or_fails], **settings) as worker:
        job = await client.enqueue(takes_one_or_fails, commits=commits)
        with pytest.raises(WriteRejected) as caught:
            await job.result(timeout=20)
        assert worker.ctx["runs"] == [1]
    assert caught.value.parameters == ("int",)
    assert (await letter_of(client, job.job_id)).outcome == "failed"
    assert await client.exists(keys.commits(job.job_id)) == 0


@pytest.mark.parametrize("commits", [True, False])
async def test_a_refused_job_runs_again_until_its_writes_pass(
    redis_url: str, database_url: str, database: Connection[Record], client: Client, commits: bool
) -> None:
    await database.execute(
        """
        CREATE SEQUENCE looks;  -- each refusal takes two: in the batch, and alone
        CREATE FUNCTION third_time() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('looks') < 5 THEN RAISE EXCEPTION 'not yet'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER third BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION third_time();
        """
    )
    settings = {"database_url": database_url, "ctx": {"runs": []}}
    async with serving(redis_url, [takes_one_in_the_end], **settings) as worker:
        job = await client.enqueue(takes_one_in_the_end, commits=commits)
        assert await job.result(timeout=20) == 3
        assert worker.ctx["runs"] == [1, 2, 3]
    assert await ids(database) == [1]
    assert await client.exists(keys.dead_letter(job.job_id), keys.commits(job.job_id)) == 0
    counters = await cast("Any", client.hgetall(keys.counters(keys.DEFAULT_QUEUE)))
    assert counters == {b"succeeded": b"1", b"retried": b"2"}
    assert await client.exists(*(name(job.job_id) for name in ENDED)) == 0


@pytest.mark.parametrize("commits", [True, False])
async def test_a_job_refused_for_the_last_time_fails(
    redis_url: str, database_url: str, database: Connection[Record], client: Client, commits: bool
) -> None:
    await database.execute("INSERT INTO t VALUES (1)")
    settings = {"database_url": database_url, "ctx": {"runs": []}}
    async with serving(redis_url, [takes_one_in_the_end], **settings) as worker:
        job = await client.enqueue(takes_one_in_the_end, commits=commits)
        with pytest.raises(WriteRejected, match="duplicate key"):
            await job.result(timeout=20)
        assert worker.ctx["runs"] == [1, 2, 3, 4]
    letter = await letter_of(client, job.job_id)
    assert (letter.attempt, letter.outcome) == (4, "failed")
    assert await client.zcard(keys.DEFAULT_QUEUE) == 0


@task
async def ends_without_its_rows(ctx: Context) -> None:
    ctx.db.insert("t", id=1, returning=["id"])


async def test_rows_that_nobody_would_get_fail_the_job(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    async with serving(redis_url, [ends_without_its_rows], database_url=database_url):
        job = await client.enqueue(ends_without_its_rows)
        with pytest.raises(RemoteError, match=r"they come back by `await ctx\.db\.commit\(\)`"):
            await job.result(timeout=20)
    assert await ids(database) == []


@task
async def reads_nothing(ctx: Context) -> int:
    return ctx.attempt


async def test_a_worker_may_leave_the_writing_to_others(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    settings = {"database_url": database_url, "writer": False}
    async with serving(redis_url, [reads_nothing], **settings) as worker:
        job = await client.enqueue(reads_nothing)
        assert await job.result(timeout=20) == 1
        assert worker.candidate is None
        assert await client.exists(keys.LEADER) == 0
    assert await database.fetchval("SELECT to_regclass('runner.writer')") is None


@task
async def writes_too_much(ctx: Context, commits: bool) -> None:
    ctx.db.insert("t", id=1)
    ctx.db.execute("SELECT length($1)", "x" * 2_000)
    if commits:
        await ctx.db.commit()


@pytest.mark.parametrize("commits", [True, False])
async def test_a_unit_that_cannot_travel_fails_its_job(
    redis_url: str,
    database_url: str,
    database: Connection[Record],
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    *,
    commits: bool,
) -> None:
    monkeypatch.setattr("runner.writer.database.UNIT_BYTES", 1_000)
    async with serving(redis_url, [writes_too_much], database_url=database_url):
        job = await client.enqueue(writes_too_much, commits)
        with pytest.raises(RemoteError, match="more than the 1,000 that one unit may have"):
            await job.result(timeout=20)
    assert await ids(database) == []


@task
async def reads_too_much(ctx: Context) -> str:
    ctx.db.execute("INSERT INTO t SELECT generate_series(1, 11) RETURNING id", returning=True)
    try:
        await ctx.db.commit(max_rows=10)
    except ResultTooLarge as exc:
        return f"{exc.row_count} {exc.counts}"
    return ""


async def test_too_many_rows_leave_the_commit_as_it_is(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    async with serving(redis_url, [reads_too_much], database_url=database_url):
        job = await client.enqueue(reads_too_much)
        assert await job.result(timeout=20) == "11 (11,)"
    assert len(await ids(database)) == 11


@task
async def is_impatient(ctx: Context) -> str:
    ctx.db.insert("t", id=1)
    try:
        await ctx.db.commit(timeout=0.05)
    except CommitTimeout as exc:
        ctx.db.insert("t", id=2)
        return str(exc)
    return ""


async def test_without_a_writer_a_unit_is_on_its_way(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    async with serving(redis_url, [is_impatient]):
        job = await client.enqueue(is_impatient)
        await wait_until(
            lambda: client.get(keys.in_progress(job.job_id)), description="the job is committing"
        )
        await wait_until(lambda: _length(client, 2), description="both units wait")
    async with engine(redis_url, database_url) as e, writing(e.candidate()):
        assert "it is on its way, as the entry" in await job.result(timeout=20)
    assert await ids(database) == [1, 2]


async def _length(client: Client, count: int) -> bool:
    return bool(await client.xlen(keys.UNITS) == count)


@task(keep_result=0)
async def leaves_nothing(ctx: Context) -> None:
    ctx.db.insert("t", id=1)
    await ctx.db.commit()


async def test_nothing_is_left_where_no_result_is_kept(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    async with serving(redis_url, [leaves_nothing], database_url=database_url):
        job = await client.enqueue(leaves_nothing)
        await wait_until(
            lambda: _ended(client, job.job_id), description="the job has ended", timeout_s=20
        )
    assert await ids(database) == [1]
    assert await client.exists(keys.commits(job.job_id), keys.result(job.job_id)) == 0


async def _ended(client: Client, job_id: str) -> bool:
    return not await client.exists(keys.job(job_id))


@task(timeout=60)
async def is_handed_back(ctx: Context) -> str:
    gate: Gate = ctx["gate"]
    ctx.db.insert("serials", name="back", returning=True)
    await gate()
    entry = (await ctx.db.commit()).entry
    ctx["entries"].append(entry)
    return entry


async def test_a_worker_that_stops_in_a_commit_hands_the_job_back(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    """The unit is on its way: the next worker's attempt finds it, and waits for the same."""
    gate = Gate()
    gate.opens.set()
    settings = {"ctx": {"gate": gate, "entries": []}}
    async with serving(redis_url, [is_handed_back], **settings):
        job = await client.enqueue(is_handed_back)
        await wait_until(lambda: _length(client, 1), description="the unit waits for a writer")
    assert await client.ttl(keys.commits(job.job_id)) > 0
    async with serving(redis_url, [is_handed_back], database_url=database_url, **settings):
        entry = await job.result(timeout=20)
    stream = await client.xrange(keys.UNITS)
    assert [name.decode() for name, _ in stream] == [entry]
    assert await database.fetchval("SELECT count(*) FROM serials") == 1


@contextlib.asynccontextmanager
async def far_worker(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a worker in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.commit_worker", url), cwd=ROOT
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_commit_of_a_killed_worker_is_found_by_the_next(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    async def told(count: int) -> list[Any]:
        found = await cast("Any", client.lrange(f"told:{job.job_id}", 0, -1))
        return [json.loads(text) for text in found] if len(found) == count else []

    async with (
        engine(redis_url, database_url) as e,
        writing(e.candidate()),
        far_worker(redis_url) as first,
    ):
        job = await client.enqueue(commit_and_wait, "a")
        await wait_until(lambda: told(1), description="the job has committed", timeout_s=20)
        first.kill()
        await first.wait()
        async with far_worker(redis_url):
            assert await job.result(timeout=30) == 1
        before, behind = await told(2)
        assert before == behind
        assert before[1:] == [[1, 1], [[{"id": 1}], None]]
    assert await database.fetchval("SELECT count(*) FROM serials") == 1
    assert await database.fetchval("SELECT n FROM total") == 11


@task
async def writes_and_reads_back(ctx: Context) -> list[Any]:
    ctx.db.insert("serials", name="x", returning=["id", "name"])
    try:
        committed = await ctx.db.commit()
    except WriteRejected as exc:
        return [str(exc)]
    return [committed.counts, committed.rows]


async def test_a_job_hears_from_the_leader_behind_one_that_died(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    async with engine(redis_url, database_url) as e, serving(redis_url, [writes_and_reads_back]):
        async with writing(e.candidate()):
            pass  # it took office, and has answered nothing
        job = await client.enqueue(writes_and_reads_back)
        await wait_until(lambda: _length(client, 1), description="the unit waits for a writer")
        async with bench(database_url) as b:
            # The leader commits, and dies before it tells.
            for entry, fields in await client.xrange(keys.UNITS):
                await b.apply(read_entry(entry.decode(), fields))
        async with writing(e.candidate()):
            assert await job.result(timeout=20) == [[1], [[{"id": 1, "name": "x"}]]]
    assert await database.fetchval("SELECT count(*) FROM serials") == 1


async def test_adoption_refuses_the_commit_that_a_job_waits_for(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    async with engine(redis_url, database_url) as e, serving(redis_url, [writes_and_reads_back]):
        async with writing(e.candidate()):
            before = await client.enqueue(writes_and_reads_back)
            assert await before.result(timeout=20) == [[1], [[{"id": 1, "name": "x"}]]]
        job = await client.enqueue(writes_and_reads_back)
        await wait_until(lambda: _length(client, 2), description="the unit waits for a writer")
        await adopt_database(client, database_url, CODEC)
        (reason,) = await job.result(timeout=20)
        assert "adopted" in reason
    assert await database.fetchval("SELECT count(*) FROM serials") == 1


@task(timeout=60)
async def waits_in_a_commit(ctx: Context) -> None:
    ctx.db.insert("t", id=1)
    await ctx.db.commit()


async def test_an_abort_in_a_commit_comes_too_late_for_the_unit(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    async with serving(redis_url, [waits_in_a_commit], allow_abort_jobs=True):
        job = await client.enqueue(waits_in_a_commit)
        await wait_until(lambda: _length(client, 1), description="the unit waits for a writer")
        assert await job.abort(timeout=20)
    assert await client.exists(keys.commits(job.job_id)) == 0
    async with engine(redis_url, database_url) as e, writing(e.candidate()):
        await wait_until(lambda: ids(database), description="the unit is applied")
    assert await client.exists(keys.commits(job.job_id)) == 0


async def test_a_commit_whose_entry_was_moved_is_answered(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    """Redis lost data, and gave the unit an id below the writer's position."""
    async with engine(redis_url, database_url) as e, serving(redis_url, [writes_and_reads_back]):
        async with writing(e.candidate()):
            await e.answered(await e.submit("j0", unit_of(lambda u: u.insert("t", id=9))))
        job = await client.enqueue(writes_and_reads_back)
        await wait_until(lambda: _length(client, 2), description="the unit waits for a writer")
        await database.execute("UPDATE runner.writer SET position = '9000000000000-5'")
        async with writing(e.candidate()):
            assert await job.result(timeout=20) == [[1], [[{"id": 1, "name": "x"}]]]
    assert await database.fetchval("SELECT count(*) FROM serials") == 1


@task(timeout=60)
async def commits_often(ctx: Context) -> int:
    total = 0
    for _ in range(30):
        ctx.db.add("total", key={"name": "x"}, n=1, returning=["n"])
        committed = await ctx.db.commit()
        assert committed.rows[0] is not None
        total = committed.rows[0][0]["n"]
        ctx["done"].append(total)
    return total


async def test_commits_outlive_restarts_of_both_servers(chaos_servers: ChaosServers) -> None:
    servers = chaos_servers
    setup = await asyncpg.connect(servers.database_url)
    await setup.execute(SCHEMA)
    await setup.close()
    done: list[int] = []
    settings = {"database_url": servers.database_url, "ctx": {"done": done}}
    async with (
        runner.connect(servers.redis_url) as client,
        serving(servers.redis_url, [commits_often], **settings),
    ):
        job = await client.enqueue(commits_often)
        await wait_until(lambda: len(done) >= 3, description="three commits", timeout_s=20)
        await servers.restart_postgres(kill=True)
        await wait_until(lambda: len(done) >= 6, description="six commits", timeout_s=20)
        await servers.restart_redis()
        assert await job.result(timeout=40) == 30
    assert done == list(range(1, 31))


# The submitting script.


def claim_of(claimed: Claimed, token: str) -> Claimed:
    return Claimed(
        job_id=claimed.job_id,
        queue=claimed.queue,
        token=token,
        run_at_ms=0,
        payload=None,
        attempt=claimed.attempt,
        crashes=0,
    )


LIMITS = {"max_rows": 10, "max_bytes": 1000}
ONE = unit_of(lambda u: u.insert("t", id=1)).encode()
TWO = unit_of(lambda u: u.insert("t", id=2)).encode()


async def test_a_lost_lease_submits_nothing(redis_url: str) -> None:
    async with raw(redis_url) as redis:
        rig = Rig(redis)
        claimed = await rig.claim_one()
        commits = Commits(lambda: redis)
        with pytest.raises(LeaseLost):
            await commits.of_job(claim_of(claimed, "r:other:1"), 5).submit(1, ONE, **LIMITS)
        assert await redis.exists(keys.UNITS, keys.commits("j")) == 0
        # The key has run out, but nobody has claimed since: the lease still holds.
        await redis.delete(keys.in_progress("j"))
        submitted = await commits.of_job(claimed, 5).submit(1, ONE, **LIMITS)
        assert [entry.decode() for entry, _ in await redis.xrange(keys.UNITS)] == [submitted.entry]


async def test_a_submission_sent_again_is_the_same(redis_url: str) -> None:
    async with raw(redis_url) as redis:
        claimed = await Rig(redis).claim_one()
        job = Commits(lambda: redis).of_job(claimed, 5)
        first = await job.submit(1, ONE, **LIMITS)
        assert await job.submit(1, ONE, **LIMITS) == first
        assert (await job.submit(2, ONE, **LIMITS)).entry != first.entry
        assert await redis.xlen(keys.UNITS) == 2
        account = await redis.hmget(keys.WRITER, "backlog", "backlog_bytes")
        assert list(map(int, account)) == [2, 2 * len(ONE)]
        with pytest.raises(UnitChanged) as caught:
            await job.submit(1, TWO, **LIMITS)
        assert (caught.value.sequence, caught.value.entry) == (1, first.entry)


async def test_a_new_job_of_the_same_id_begins_anew(redis_url: str) -> None:
    async with raw(redis_url) as redis:
        claimed = await Rig(redis).claim_one()
        commits = Commits(lambda: redis)
        await commits.of_job(claimed, 5).submit(1, ONE, **LIMITS)
        submitted = await commits.of_job(claimed, 6).submit(1, TWO, **LIMITS)
        entries = await redis.xrange(keys.UNITS)
        assert entries[1][0].decode() == submitted.entry
        assert [fields[b"u"] for _, fields in entries] == [b"j:5:1", b"j:6:1"]


REFUSED = b"-" + msgspec.msgpack.encode({"message": "no", "sqlstate": "23505"})


async def test_a_refused_commit_is_sent_again_by_a_later_attempt_only(redis_url: str) -> None:
    async with raw(redis_url) as redis:
        rig = Rig(redis)
        commits = Commits(lambda: redis)
        claimed = await rig.claim_one(token="r:a:1")
        first = await commits.of_job(claimed, 5).submit(1, ONE, **LIMITS)
        await redis.hset(keys.commits("j"), "answer 1", REFUSED)
        same = await commits.of_job(claimed, 5).submit(1, ONE, **LIMITS)
        assert (same.entry, same.answer) == (first.entry, REFUSED)
        later = claim_of(claimed, "r:b:2")
        await redis.set(keys.in_progress("j"), later.token)
        # What was refused changed nothing, so that it may differ, too.
        again = await commits.of_job(later, 5).submit(1, TWO, **LIMITS)
        assert again.entry != first.entry
        assert again.answer is None


async def test_a_refusal_that_something_came_after_stands(redis_url: str) -> None:
    async with raw(redis_url) as redis:
        rig = Rig(redis)
        commits = Commits(lambda: redis)
        claimed = await rig.claim_one(token="r:a:1")
        job = commits.of_job(claimed, 5)
        first = await job.submit(1, ONE, **LIMITS)
        await redis.hset(keys.commits("j"), "answer 1", REFUSED)
        await job.submit(2, TWO, **LIMITS)
        later = claim_of(claimed, "r:b:2")
        await redis.set(keys.in_progress("j"), later.token)
        known = await commits.of_job(later, 5).submit(1, ONE, **LIMITS)
        assert known.entry == first.entry
        with pytest.raises(WriteRejected) as caught:
            await commits.of_job(later, 5).answer(known)
        assert caught.value.sqlstate == decode_rejection(REFUSED[1:]).sqlstate
