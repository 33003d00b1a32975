"""Calls that do not fit; each line names the error that it must give."""

from __future__ import annotations

from runner import Client, Context, Debounce, Throttle, Unique, task


@task
async def place(_ctx: Context, order: int, *, note: str = "") -> str:
    return f"{order} {note}"


async def calls(client: Client) -> None:
    await client.enqueue(place, "one")  # error: call-overload
    await client.enqueue(place)  # error: call-overload
    await client.enqueue(place, 1, 2)  # error: call-overload
    await client.enqueue(place, 1, nota="x")  # error: call-arg
    await client.enqueue(place.options(delay=5), "one")  # error: call-overload
    place.call("one")  # error: arg-type
    place.call(1, note=2)  # error: arg-type
    place.options(delai=5)  # error: call-arg
    place.options(unique="k")  # error: arg-type
    place.options(debounce="5")  # error: arg-type
    Unique(second="drop")  # error: arg-type
    Unique(until="later")  # error: arg-type
    Debounce(wait="5")  # error: arg-type
    Throttle(5, second="replace")  # error: arg-type
    task(throttle="5")  # error: call-overload
