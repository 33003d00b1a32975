"""Models of pydantic travel like every other value, where pydantic is installed."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import pathlib
import uuid
from decimal import Decimal
from typing import Annotated, Any, Generic, TypeVar

import pytest

from runner import Context, task
from runner.codec import MsgpackCodec, PickleCodec
from runner.errors import ArgumentsError, DecodeError, EncodeError
from runner.shapes import ANYTHING, shape_of

pytest.importorskip("pydantic", minversion="2.11")
from pydantic import (
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    SecretStr,
    computed_field,
    field_validator,
)

T = TypeVar("T")
UTC = dt.UTC


class Colour(enum.Enum):
    RED = "red"


class Price(BaseModel):
    amount: Decimal
    taxes: set[Decimal] = set()


class Everything(BaseModel):
    number: int
    price: Price
    when: dt.datetime
    naive: dt.datetime
    day: dt.date
    took: dt.timedelta
    key: uuid.UUID
    colour: Colour
    raw: bytes
    pair: tuple[int, str]
    tags: frozenset[str]
    url: AnyUrl
    host: ipaddress.IPv4Address
    path: pathlib.PurePosixPath
    by_day: dict[dt.date, Price]
    maybe: Price | None = None


class Aliased(BaseModel):
    number: int = Field(alias="orderNumber")
    other: int = Field(validation_alias="readsAs", serialization_alias="writesAs")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    key: uuid.UUID
    tags: set[int]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        return len(self.tags)


class Numbers(RootModel[list[int]]):
    pass


class Page(BaseModel, Generic[T]):
    items: list[T]


class Sealed(BaseModel):
    secret: SecretStr


PRICE = Price(amount=Decimal("1.50"), taxes={Decimal("0.1")})
EVERYTHING = Everything(
    number=2**63,
    price=PRICE,
    when=dt.datetime(2026, 11, 2, tzinfo=UTC),
    naive=dt.datetime(2026, 11, 2),  # noqa: DTZ001
    day=dt.date(2026, 11, 2),
    took=dt.timedelta(seconds=-1, microseconds=1),
    key=uuid.UUID(int=1),
    colour=Colour.RED,
    raw=b"\xff\x00",
    pair=(1, "a"),
    tags=frozenset({"x"}),
    url=AnyUrl("https://example.com/a?b=1"),
    host=ipaddress.IPv4Address("10.0.0.1"),
    path=pathlib.PurePosixPath("/a"),
    by_day={dt.date(2026, 1, 1): PRICE},
)

VALUES: list[tuple[Any, Any]] = [
    (PRICE, Price),
    (EVERYTHING, Everything),
    ([PRICE, PRICE], list[Price]),
    ({"a": {"b": EVERYTHING}}, dict[str, dict[str, Everything]]),
    (PRICE, Price | None),
    (None, Price | None),
    (Aliased.model_validate({"orderNumber": 1, "readsAs": 2}), Aliased),
    (Strict(key=uuid.UUID(int=1), tags={1, 2}), Strict),
    (Numbers([1, 2]), Numbers),
    (Page[Price](items=[PRICE]), Page[Price]),
    (PRICE, Annotated[Price, "a note"]),
]


def travelled(value: Any, codec: Any) -> Any:
    return codec.loads(codec.dumps({"v": value}))["v"]


@pytest.mark.parametrize("codec", [MsgpackCodec(), PickleCodec()], ids=lambda codec: codec.name)
@pytest.mark.parametrize(("value", "annotation"), VALUES)
def test_model_arrives_as_it_was(codec: Any, value: Any, annotation: Any) -> None:
    shape = shape_of(annotation)
    assert shape is not ANYTHING
    assert shape.refusal(value) is None
    arrived = shape.convert(travelled(value, codec))
    assert arrived == value
    assert type(arrived) is type(value)


def test_model_without_an_annotation_arrives_as_plain_data() -> None:
    arrived = travelled(PRICE, MsgpackCodec())
    assert arrived == {"amount": "1.50", "taxes": ["0.1"]}


def test_plain_data_of_other_services_is_taken_by_alias_or_by_name() -> None:
    shape = shape_of(Aliased)
    for data in ({"orderNumber": 1, "readsAs": 2}, {"number": 1, "other": 2}):
        assert shape.refusal(data) is None
        assert shape.convert(data).other == 2


def test_secret_does_not_travel_rather_than_as_asterisks() -> None:
    with pytest.raises(EncodeError, match="SecretStr cannot travel"):
        MsgpackCodec().dumps({"v": Sealed(secret=SecretStr("x"))})


def test_data_that_the_model_refuses_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="amount"):
        shape_of(Price).convert({"amount": "much"})


class Fussy(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def _check(cls, number: int) -> int:
        return {1: 1}[number]


@task
async def sell(_ctx: Context, price: Price, *, fussy: Fussy | None = None) -> Price:
    assert fussy is None
    return price


def test_wrong_model_is_refused_at_the_caller() -> None:
    assert sell.call(PRICE).args == (PRICE,)
    assert sell.call({"amount": 1}).args  # type: ignore[arg-type]
    with pytest.raises(ArgumentsError, match=r"'price' takes .*Price, not Sealed"):
        sell.call(Sealed(secret=SecretStr("x")))  # type: ignore[arg-type]
    with pytest.raises(ArgumentsError, match=r"(?s)'price' takes .*Price, not dict: .*amount"):
        sell.call({"amount": "much"})  # type: ignore[arg-type]


def test_validator_that_raises_anything_is_an_arguments_error_at_the_caller() -> None:
    with pytest.raises(ArgumentsError, match="'fussy'"):
        sell.call(PRICE, fussy={"number": 2})  # type: ignore[arg-type]


def test_returned_model_is_converted() -> None:
    assert sell.signature.returns.convert(travelled(PRICE, MsgpackCodec())) == PRICE
