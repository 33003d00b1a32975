"""Sum what additions to one row add, where the sum is what they would have made one by one."""

from __future__ import annotations

from decimal import Context as DecimalContext
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.writer.profiles import Profile, Row

__all__ = ["difference", "is_one_way", "summed"]

_EXACT = DecimalContext(prec=2_000, traps=[])
DIGITS_AT_MOST = 900
"""Before and behind the point: whatever is summed of such numbers, `_EXACT` holds."""


def summed(left: Row, right: Row, profile: Profile, first: int) -> Row | None:
    """Return the sums of deltas; None when they cannot be summed exactly."""
    sums: Row = []
    for slot, (one, other) in enumerate(zip(left, right, strict=True), start=first):
        if slot not in profile.decimals:
            if type(one) is not int or type(other) is not int:
                return None
            sums.append(one + other)
            continue
        scale = profile.decimals[slot]
        if not (_is_exact(one, scale) and _is_exact(other, scale)):
            return None
        sums.append(_EXACT.add(Decimal(one), Decimal(other)))
    return sums


def is_one_way(sums: Row, deltas: Row) -> bool:
    """Say whether all columns go on in the direction in which they went."""
    return all(
        one >= 0 <= other or one <= 0 >= other for one, other in zip(sums, deltas, strict=True)
    )


def difference(one: Any, other: Any) -> Any:
    """Return what is missing from the second sum to the first: exactly, as `summed` made them."""
    if isinstance(one, int):
        return one - other
    return _EXACT.subtract(one, other)


def _is_exact(value: Any, scale: int | None) -> bool:
    """Say whether a numeric column keeps this value as it is, each time it is added."""
    if type(value) is int:
        return scale is None or scale >= 0
    if not isinstance(value, Decimal):
        return False  # a float: asyncpg writes out all its binary digits
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or max(value.adjusted(), -exponent) > DIGITS_AT_MOST:
        return False  # NaN and infinity among them
    return scale is None or exponent >= -scale
