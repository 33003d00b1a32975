"""Arguments and results on their whole way: from a caller through a worker and back."""

from __future__ import annotations

import enum
from collections.abc import Callable  # noqa: TC003  looked up when the task is first used
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import UUID

import msgspec
import pytest
from arq.jobs import DeserializationError, SerializationError

import runner
from runner import Context, codec, keys, task
from runner.codec import JobRecord
from runner.errors import ArgumentsError, DecodeError, EncodeError, PayloadTooLarge
from tests.engine import drain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client

pytestmark = [pytest.mark.timeout(30), pytest.mark.lasting_keys("runner:held:*")]

T = TypeVar("T")


class State(enum.Enum):
    NEW = "new"


class Money(msgspec.Struct):
    amount: Decimal


@dataclass
class Order:
    number: UUID
    total: Money
    placed: datetime
    state: State = State.NEW
    tags: frozenset[str] = frozenset()


class Shows(Protocol):
    def show(self) -> str: ...


@task
async def later(_ctx: Context, orders: list[Order], by: timedelta, *, raw: bytes) -> list[Order]:
    assert raw == b"\xff"
    return [Order(o.number, o.total, o.placed + by, o.state, o.tags) for o in orders]


@task
async def loose(  # a task whose annotations nothing converts to
    _ctx: Context, a: Shows, b: Callable[[], int], c: T, *, d: type[int] | None = None
) -> T:
    assert [a, b, d] == ["a", ["b"], None]
    return c


@task
async def echo(_ctx: Context, value: Any) -> Any:
    return value


@task
async def count(_ctx: Context, number: int, *, factor: float = 1) -> int:
    return "many" if number < 0 else int(number * factor)  # type: ignore[return-value]


@pytest.fixture(params=["msgpack", "pickle"])
async def client(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url, codec=request.param) as connected:
        yield connected


@pytest.fixture
async def plain(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url, max_payload_bytes=1_000_000) as connected:
        yield connected


async def test_typed_values_go_there_and_back(redis_url: str, client: Client) -> None:
    placed = datetime(2026, 11, 2, tzinfo=UTC)
    orders = [Order(UUID(int=1), Money(Decimal("1.50")), placed, tags=frozenset({"a"}))]
    day = timedelta(days=1)
    job = await client.enqueue(later, orders, day, raw=b"\xff")
    await drain(redis_url, [later], codec=client.codec)
    assert await job.result(timeout=5) == [
        Order(orders[0].number, orders[0].total, placed + day, State.NEW, frozenset({"a"}))
    ]


async def test_annotations_that_nothing_converts_to_cost_no_job(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(loose, "a", ["b"], {"c": 1})  # type: ignore[call-overload]
    await drain(redis_url, [loose], codec=client.codec)
    assert await job.result(timeout=5) == {"c": 1}


async def test_bool_does_for_an_int_and_an_int_for_a_float(redis_url: str, client: Client) -> None:
    jobs = [await client.enqueue(count, True, factor=2), await client.enqueue(count, 3)]
    await drain(redis_url, [count], codec=client.codec)
    assert [await job.result(timeout=5) for job in jobs] == [2, 3]


async def test_result_that_does_not_fit_its_annotation_says_so(
    redis_url: str, plain: Client
) -> None:
    job = await plain.enqueue(count, -1)
    await drain(redis_url, [count])
    with pytest.raises(DecodeError, match="the result of count does not fit int"):
        await job.result(timeout=5)
    assert await plain.job(job.job_id).result(timeout=5) == "many"


async def test_wrong_argument_is_refused_before_anything_is_sent(plain: Client) -> None:
    with pytest.raises(ArgumentsError, match="count: parameter 'number' takes int, not str"):
        await plain.enqueue(count, "3")  # type: ignore[call-overload]
    with pytest.raises(ArgumentsError, match="'factor' takes float, not NoneType"):
        await plain.enqueue(count.options(delay=5), 3, factor=None)  # type: ignore[arg-type]
    assert await plain.dbsize() == 0


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, object(), 1j, "\ud800", {"a": [2**70]}])
async def test_value_that_cannot_travel_names_its_parameter(plain: Client, value: Any) -> None:
    with pytest.raises(EncodeError, match="parameter 'value'"):
        await plain.enqueue(echo, value)
    with pytest.raises(SerializationError, match="argument 0"):
        await plain.enqueue_job("echo", value)
    assert await plain.dbsize() == 0


async def test_large_int_names_the_parameter_that_takes_one(plain: Client) -> None:
    with pytest.raises(EncodeError, match="parameter 'number'"):
        await plain.enqueue(count, 2**64)


async def test_job_that_is_too_large_is_refused(plain: Client) -> None:
    with pytest.raises(PayloadTooLarge, match="more than the 1,000,000 allowed"):
        await plain.enqueue(echo, b"x" * 1_000_000)


async def test_deep_nesting_is_refused_or_runs_and_never_kills_a_worker(
    redis_url: str, plain: Client
) -> None:
    value: Any = []
    outcomes, depth = [], 0
    depths = [*range(40, 1_240, 40), *(2**power for power in range(11, 18))]
    for deeper in depths:  # how deep Python goes differs by its version
        while depth < deeper:
            value, depth = [value], depth + 1
        try:
            outcomes.append(await plain.enqueue(echo, value))
        except EncodeError as exc:
            assert "parameter 'value'" in str(exc)  # noqa: PT017  some pass, some do not
    assert 0 < len(outcomes) < len(depths)
    worker = await drain(redis_url, [echo])
    assert worker.jobs_complete + worker.jobs_failed == len(outcomes)
    assert worker.jobs_complete > 0
    for letter in await plain.dead_letters():
        assert letter.outcome == "undecodable"


async def test_bytes_that_nest_without_end_are_a_dead_letter(redis_url: str, plain: Client) -> None:
    await plain.set(keys.job("deep"), b"\x81\xa1a" + b"\x91" * 200_000 + b"\x90", px=60_000)
    await plain.zadd(keys.DEFAULT_QUEUE, {"deep": 1})
    await drain(redis_url, [echo])
    (letter,) = await plain.dead_letters()
    assert letter.outcome == "undecodable"
    with pytest.raises(DeserializationError):
        await plain.job("deep").result(timeout=5)


async def test_job_of_another_service_that_does_not_fit_fails_by_name(
    redis_url: str, plain: Client
) -> None:
    record = JobRecord(
        task="count", args=("x",), kwargs={}, attempt=None, enqueued_ms=1, options={}
    )
    await plain.set(keys.job("odd"), codec.encode_job(plain.codec, record), px=60_000)
    await plain.zadd(keys.DEFAULT_QUEUE, {"odd": 1})
    short = await plain.enqueue("count")
    await drain(redis_url, [count])
    with pytest.raises(DecodeError, match="parameter 'number'"):
        await plain.job("odd").result(timeout=5)
    with pytest.raises(ArgumentsError, match="missing a required argument: 'number'"):
        await short.result(timeout=5)
