"""What a caller of enqueue is told when Redis is away, pauses, restarts, is full or read-only."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import pytest
from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

import runner
from runner import Client, Context, Job, keys, task
from runner.codec import MsgpackCodec
from runner.errors import EnqueueError, RedisOutOfMemory, RedisUnavailable
from tests.engine import drain, raw
from tests.support import wait_until

if TYPE_CHECKING:
    from tests.servers import ChaosServers

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys("runner:held:*")]

QUEUE = keys.DEFAULT_QUEUE


@task
async def count(_ctx: Context, number: int) -> int:
    return number


async def enqueued_for_sure(client: Client, number: int) -> Job[int]:
    """Enqueue as the documentation of `RedisUnavailable` says."""
    key = uuid4().hex
    while True:
        try:
            return await client.enqueue(count.options(key=key), number)
        except RedisUnavailable as error:
            key = error.job_id


async def test_redis_that_is_down_is_named_and_nothing_is_queued(
    chaos_servers: ChaosServers,
) -> None:
    async with runner.connect(chaos_servers.redis_url) as client:
        await client.enqueue(count, 1)
        await chaos_servers.stop_redis(kill=True)
        await wait_until(lambda: client._pipe._link is None, description="the client sees it")
        calls = [client.enqueue(count, n) for n in range(3)]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, RedisUnavailable)
            assert not error.may_have_run
            assert error.job_id
            assert "no connection" in str(error)
            assert isinstance(error.__cause__, RedisConnectionError)
        with pytest.raises(RedisUnavailable):
            await client.enqueue_many([count.call(1)])
        with pytest.raises(RedisConnectionError):
            await client.enqueue_job("count", 1)
        await chaos_servers.start_redis()
        assert (await client.enqueue(count, 3)).is_new
        assert await client.zcard(QUEUE) == 2


async def test_jobs_enqueued_again_under_their_key_are_queued_once(
    chaos_servers: ChaosServers,
) -> None:
    """While Redis is killed and restarted under many callers."""
    async with runner.connect(chaos_servers.redis_url) as client:
        sent = 0

        async def caller(first: int) -> None:
            nonlocal sent
            for number in range(first, first + 100):
                await enqueued_for_sure(client, number)
                sent += 1

        callers = asyncio.gather(*(caller(first) for first in range(0, 1_000, 100)))
        await wait_until(lambda: sent > 50, description="the callers are at work")
        for _ in range(2):
            await chaos_servers.restart_redis(kill=True)
        await callers
        assert await client.zcard(QUEUE) == 1_000


async def test_pause_of_redis_only_delays(chaos_servers: ChaosServers) -> None:
    async with runner.connect(chaos_servers.redis_url) as client, raw(client_url(client)) as other:
        await client.enqueue(count, 0)
        await other.client_pause(300)
        jobs = await asyncio.gather(*(client.enqueue(count, n) for n in range(10)))
        assert all(job.is_new for job in jobs)
        assert await client.zcard(QUEUE) == 11


def client_url(client: Client) -> str:
    settings = client.connection_pool.connection_kwargs
    return f"redis://{settings['host']}:{settings['port']}/{settings['db']}"


def impatient(url: str) -> Client:
    """Return a client that waits for a reply for no more than 0.2 s."""
    client = Client(connection_pool=ConnectionPool.from_url(url, socket_timeout=0.2))
    codec = MsgpackCodec()
    client.job_serializer, client.job_deserializer = codec.dumps, codec.loads
    client.auto_close_connection_pool = True
    return client


async def test_pause_longer_than_the_timeout_leaves_the_outcome_open(
    chaos_servers: ChaosServers,
) -> None:
    url = chaos_servers.redis_url
    client = impatient(url)
    async with client, raw(url) as other:
        await client.enqueue(count, 0)
        await other.client_pause(60_000, all=False)
        with pytest.raises(RedisUnavailable, match="enqueue it again with key=") as caught:
            await client.enqueue(count, 1)
        assert caught.value.may_have_run
        await other.client_unpause()
        job = await client.enqueue(count.options(key=caught.value.job_id), 1)
        assert job.job_id == caught.value.job_id
        assert await client.zcard(QUEUE) == 2
        await drain(url, [count])
        assert await job.result(timeout=5) == 1


async def test_full_memory_is_named_and_nothing_is_queued(chaos_servers: ChaosServers) -> None:
    async with runner.connect(chaos_servers.redis_url) as client:
        await client.enqueue(count, 0)
        await client.config_set("maxmemory", "1")
        with pytest.raises(RedisOutOfMemory, match="maxmemory"):
            await client.enqueue(count, 1)
        with pytest.raises(RedisOutOfMemory, match=r"0 of 2 jobs are queued.*maxmemory") as many:
            await client.enqueue_many([count.call(1), count.call(2)])
        assert (many.value.queued, many.value.refused) == ((), (0, 1))
        await client.config_set("maxmemory", "0")
        assert (await client.enqueue(count, 2)).is_new
        assert await client.zcard(QUEUE) == 2


async def test_read_only_replica_is_named_and_left(chaos_servers: ChaosServers) -> None:
    """After a failover the address may still lead to what is a replica now."""
    url = chaos_servers.redis_url
    async with runner.connect(url) as client, raw(url) as admin:
        await client.enqueue(count, 0)
        before = await client._pipe.execute_command("CLIENT", "ID")
        await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(RedisUnavailable, match="takes no writes") as caught:
            await client.enqueue(count, 1)
        assert not caught.value.may_have_run
        await admin.execute_command("REPLICAOF", "NO", "ONE")
        assert (await client.enqueue(count, 2)).is_new
        assert await client._pipe.execute_command("CLIENT", "ID") > before


async def test_refusal_of_the_whole_call_is_an_error_of_each_job(redis_url: str) -> None:
    user = f"u{uuid4().hex}"
    parts = urlsplit(redis_url)
    url = urlunsplit(parts._replace(netloc=f"{user}:secret@{parts.hostname}:{parts.port}"))
    async with raw(redis_url) as admin:
        rules = ("on", ">secret", "~*", "&*", "+@all", "-evalsha", "-eval")
        await admin.execute_command("ACL", "SETUSER", user, *rules)
        try:
            async with runner.connect(url) as client:
                with pytest.raises(EnqueueError, match=r"(?i)permission"):
                    await client.enqueue(count, 1)
                with pytest.raises(EnqueueError, match=r"(?i)permission") as many:
                    await client.enqueue_many([count.call(1)])
                assert many.value.refused == (0,)
                with pytest.raises(NoPermissionError):
                    await client.enqueue_job("count", 1)
        finally:
            await admin.execute_command("ACL", "DELUSER", user)


async def test_results_are_waited_for_across_a_restart(chaos_servers: ChaosServers) -> None:
    async with runner.connect(chaos_servers.redis_url) as client:
        job = await client.enqueue(count, 5)
        waiting = asyncio.create_task(job.result(timeout=30))
        await asyncio.sleep(0)
        await chaos_servers.restart_redis(kill=True)
        await drain(chaos_servers.redis_url, [count])
        assert await waiting == 5
