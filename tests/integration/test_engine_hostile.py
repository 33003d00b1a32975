"""Bytes that nobody should trust, before a real worker and real clients: no crash, no code run."""

from __future__ import annotations

import asyncio
import pickle
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest
from arq.jobs import DeserializationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runner
from runner import Context, keys, task
from runner.codec import JobRecord, MsgpackCodec, ResultRecord, encode_job, encode_result
from runner.signing import KeyRing, SignedCodec
from tests.engine import drain, raw, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from runner.codec import Codec

pytestmark = [pytest.mark.timeout(90), pytest.mark.lasting_keys("runner:held:*")]

SIGNING_KEYS = {"a": bytes(range(32))}
QUEUE = keys.DEFAULT_QUEUE
LARGE = 64 * 1024 * 1024

on_a_server = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Bomb:
    """A pickle that leaves a file where it is believed."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


@task
async def known(_ctx: Context, /, *_args: object, **_kwargs: object) -> None:
    """Take whatever is left of a job that was altered."""


def job_bytes(codec: Codec) -> bytes:
    record = JobRecord(
        task="known",
        args=(1, "two", [3.0], {"four": b"5"}, datetime(2026, 1, 1, tzinfo=UTC)),
        kwargs={"six": None},
        attempt=None,
        enqueued_ms=1_700_000_000_000,
        options={},
    )
    return encode_job(codec, record)


def result_bytes(codec: Codec) -> bytes:
    return encode_result(
        codec,
        ResultRecord(
            job_id="j",
            queue=QUEUE,
            task="known",
            args=(1,),
            kwargs={},
            attempt=1,
            enqueued_ms=1,
            started_ms=2,
            finished_ms=3,
            success=True,
            result={"a": [1, 2, 3]},
        ),
    )


@st.composite
def altered(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return the bytes cut short, with bits flipped, with something behind them; or others."""
    kind = draw(st.sampled_from(["cut", "flipped", "longer", "other"]))
    if kind == "cut":
        return whole[: draw(st.integers(0, len(whole) - 1))]
    if kind == "longer":
        return whole + draw(st.binary(min_size=1, max_size=20))
    if kind == "other":
        return draw(st.binary(max_size=200))
    changed = bytearray(whole)
    for at in draw(st.sets(st.integers(0, len(whole) * 8 - 1), min_size=1, max_size=5)):
        changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


async def put(url: str, blobs: list[bytes]) -> list[str]:
    """Leave these bytes as the payloads of jobs, in an empty database."""
    async with raw(url) as redis:
        await redis.flushdb()
        ids = [f"j{number}" for number in range(len(blobs))]
        for job_id, blob in zip(ids, blobs, strict=True):
            await redis.set(keys.job(job_id), blob, px=60_000)
            await redis.zadd(QUEUE, {job_id: 1})
    return ids


async def end_of(client: runner.Client, job_id: str) -> str:
    """Return what a client reads: "done", or the kind of error; anything else goes up."""
    try:
        await client.job(job_id).result(timeout=5)
    except (runner.RunnerError, DeserializationError) as exc:
        return type(exc).__name__
    return "done"


UNSIGNED, SIGNED = MsgpackCodec(), SignedCodec(MsgpackCodec(), KeyRing.of(SIGNING_KEYS))


@on_a_server
@given(blobs=st.lists(altered(job_bytes(UNSIGNED)), min_size=1, max_size=30))
async def test_altered_jobs_end_whatever_they_say(redis_url: str, blobs: list[bytes]) -> None:
    ids = await put(redis_url, blobs)
    worker = await drain(redis_url, [known])
    assert worker.jobs_complete + worker.jobs_failed == len(ids)
    async with runner.connect(redis_url) as client:
        ends = [await end_of(client, job_id) for job_id in ids]
        letters = await client.dead_letters(limit=1000)
        assert await client.zcard(QUEUE) == 0
    # An altered argument may still be a job; what is none, or fails, is a dead letter.
    assert len(letters) == worker.jobs_failed == sum(end != "done" for end in ends)


@on_a_server
@given(blobs=st.lists(altered(job_bytes(SIGNED)), min_size=1, max_size=30))
async def test_altered_signed_jobs_are_all_dead_letters(redis_url: str, blobs: list[bytes]) -> None:
    ids = await put(redis_url, blobs)
    worker = await drain(redis_url, [known], signing_keys=SIGNING_KEYS)
    assert (worker.jobs_complete, worker.jobs_failed) == (0, len(ids))
    async with runner.connect(redis_url, signing_keys=SIGNING_KEYS) as client:
        ends = {await end_of(client, job_id) for job_id in ids}
        letters = await client.dead_letters(limit=1000)
    assert ends == {"DeserializationError"}
    assert {letter.outcome for letter in letters} == {"undecodable"}
    assert sorted(letter.payload for letter in letters) == sorted(blobs)


@pytest.mark.parametrize("signing_keys", [None, SIGNING_KEYS], ids=["unsigned", "signed"])
@on_a_server
@given(data=st.data())
async def test_altered_results_raise_at_the_client_and_nothing_else(
    redis_url: str, signing_keys: Any, data: st.DataObject
) -> None:
    codec = SIGNED if signing_keys else UNSIGNED
    blob = data.draw(altered(result_bytes(codec)))
    async with runner.connect(redis_url, signing_keys=signing_keys) as client:
        await client.set(keys.result("j"), blob, px=60_000)
        end = await end_of(client, "j")
    if signing_keys:
        assert end != "done"


async def test_failure_that_is_no_exception_is_an_error_of_ours(redis_url: str) -> None:
    said_ok, said_failed = b"\xa1s\xc3", b"\xa1s\xc2"
    blob = result_bytes(UNSIGNED)
    assert blob.count(said_ok) == 1
    async with runner.connect(redis_url) as client:
        await client.set(keys.result("j"), blob.replace(said_ok, said_failed), px=60_000)
        with pytest.raises(runner.errors.EncodeError, match=r"known failed .* no exception: \{'a'"):
            await client.job("j").result(timeout=5)


def hostile(path: Path) -> dict[str, bytes]:
    bomb = pickle.dumps(Bomb(str(path)))
    fields = {"t": 1, "f": "known", "a": (), "k": {}, "et": 1}
    return {
        "a pickle": bomb,
        "a job with a bomb in it": pickle.dumps({**fields, "a": (Bomb(str(path)),)}),
        "an old protocol": pickle.dumps(Bomb(str(path)), protocol=0),
        "bytes in bytes": UNSIGNED.dumps({**fields, "t": bomb}),
        "deep lists": b"\x91" * 200_000 + b"\x00",
        "deep maps": b"\x81\xa1a" * 200_000 + b"\x00",
        "a list of four thousand million": b"\xdd\xff\xff\xff\xff",
        "text of four thousand million": b"\xdb\xff\xff\xff\xff" + b"x" * 100,
        "an extension nobody knows": UNSIGNED.dumps(fields)[:-1] + b"\xc7\x01\x63\x00",
        "nothing": b"",
    }


@pytest.mark.parametrize("signing_keys", [None, SIGNING_KEYS], ids=["unsigned", "signed"])
async def test_hostile_bytes_run_no_code_and_end_as_dead_letters(
    redis_url: str, tmp_path: Path, signing_keys: Any
) -> None:
    trap = tmp_path / "trap"
    blobs = list(hostile(trap).values())
    ids = await put(redis_url, blobs)
    worker = await drain(redis_url, [known], signing_keys=signing_keys)
    assert (worker.jobs_complete, worker.jobs_failed) == (0, len(ids))
    async with runner.connect(redis_url, signing_keys=signing_keys) as client:
        assert "done" not in {await end_of(client, job_id) for job_id in ids}
        assert len(await client.dead_letters(limit=1000)) == len(ids)
        for blob in blobs:  # the same bytes in the place of results
            await client.set(keys.result("j"), blob, px=60_000)
            assert await end_of(client, "j") != "done"
    assert not trap.exists()


async def test_enormous_payload_is_a_dead_letter_and_the_worker_goes_on(redis_url: str) -> None:
    (enormous,) = await put(redis_url, [b"\x93" + b"\x00" * LARGE])
    async with runner.connect(redis_url) as client:
        good = await client.enqueue(known, 1)
        async with asyncio.timeout(60):
            worker = await drain(redis_url, [known])
        assert (worker.jobs_complete, worker.jobs_failed) == (1, 1)
        assert await end_of(client, enormous) == "DeserializationError"
        assert await end_of(client, good.job_id) == "done"


@task
async def echo(_ctx: Context, text: str) -> str:
    return text


@task
async def forever(_ctx: Context) -> None:
    await asyncio.Event().wait()


async def test_abort_of_an_id_that_is_no_text_ends_no_worker(redis_url: str) -> None:
    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, [echo, forever], allow_abort_jobs=True, poll_delay=0.05) as worker,
    ):
        await client.zadd(keys.ABORT, {b"\xff\xfe": time.time_ns() // 1_000_000})
        job = await client.enqueue(forever)
        await wait_until(lambda: job.job_id in worker.job_tasks, description="the job runs")
        assert await job.abort(timeout=10)
        after = await client.enqueue(echo, "still here")
        assert await after.result(timeout=10) == "still here"


async def test_message_that_is_no_text_costs_no_subscription(redis_url: str) -> None:
    async with runner.connect(redis_url) as client:
        job = await client.enqueue(echo, "heard")
        waiting = asyncio.create_task(job.result(timeout=10))

        async def channels() -> set[bytes]:
            members: Any = client.smembers(keys.waiters(job.job_id))
            return cast("set[bytes]", await members)

        await wait_until(channels, description="it is registered")
        (channel,) = await channels()
        assert await client.publish(channel.decode(), b"\xff\xfe\0junk") == 1
        await drain(redis_url, [echo])
        assert await waiting == "heard"
        # The listener still listens: nobody else hears of that channel.
        assert await client.publish(channel.decode(), b"nobody\0") == 1
