"""Flows that do not fit; each line names the error that it must give."""

from __future__ import annotations

from runner import Context, Flow, chain, group, node, task


@task
async def load(_ctx: Context, day: int) -> list[str]:
    return [str(day)]


@task
async def show(_ctx: Context, number: int, title: str = "") -> str:
    return f"{title}{number}"


@task
async def shout(_ctx: Context, text: str) -> str:
    return text.upper()


flow = Flow()
chain(show.call(1), show.s())  # error: misc
show.s(3)  # error: call-overload
show.s(titel="x")  # error: call-overload
load.map(["x"])  # error: list-item
group(1, 2)  # error: call-overload
node(shout.call("x"), on_failure="ignore")  # error: arg-type
added = flow.add(shout.call("x"))
flow.add(load.call(added.result), after=[added])  # error: arg-type
