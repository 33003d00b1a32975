"""Dead letters of refused units, whatever their jobs were called with."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from runner import keys
from runner.codec import JobRecord, codec_named, encode_job
from runner.errors import WriteRejected
from runner.types import DeadLetter
from runner.writer import Candidate
from tests.integration.test_writer_support import LASTING, engine, unit_of, writing

pytestmark = pytest.mark.lasting_keys(*LASTING)


class Odd:
    def __repr__(self) -> str:
        raise WriteRejected("not even shown")


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        ((Odd(),), ["<Odd: repr raised WriteRejected>"]),
        ((10**30,), [repr(str(10**30)).strip("'")]),
        (("\udc80",), ["'\\udc80'"]),
        (({1: {Odd}},), None),
    ],
)
async def test_a_refused_unit_of_a_job_with_odd_arguments_leaves_a_letter(
    redis_url: str, database_url: str, args: tuple[Any, ...], shown: list[Any] | None
) -> None:
    pickle = codec_named("pickle")
    record = JobRecord(
        task="odd", args=args, kwargs={}, attempt=None, enqueued_ms=1_700_000_000_000, options={}
    )
    async with engine(redis_url, database_url, "CREATE TABLE t (id int PRIMARY KEY)") as e:
        twice = unit_of(*[lambda u: u.insert("t", id=1)] * 2)
        refused = await e.submit("odd", twice)
        await e.redis.set(keys.job("odd"), encode_job(pickle, record), px=60_000)
        after = await e.submit("fine", unit_of(lambda u: u.insert("t", id=2)))
        candidate = Candidate(redis=e.redis, database_url=database_url, codec=pickle)
        async with writing(candidate):
            await e.answered(after)
        letter = msgspec.msgpack.decode(
            await e.redis.get(keys.dead_letter("odd")) or b"", type=DeadLetter
        )
        assert (letter.task, letter.error_type.rpartition(".")[2]) == ("odd", "WriteRejected")
        assert len(letter.args) == 1
        assert shown is None or letter.args == shown
        assert await e.redis.get(keys.in_progress("odd")) is None
        assert await e.rows("SELECT id FROM t") == [(2,)]
        assert refused < after
