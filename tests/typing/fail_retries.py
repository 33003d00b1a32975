"""Retries and filters that do not fit; each line names the error that it must give."""

from __future__ import annotations

from runner import Client, JobFilter, LetterFilter, RetryPolicy, give_up, on

on("ConnectionError")  # error: arg-type
on(ConnectionError, "give_up")  # error: arg-type
on(ConnectionError, give_up, times=3)  # error: call-arg
on(ConnectionError, delay="soon")  # error: arg-type
RetryPolicy(rules=(ConnectionError,))  # error: arg-type
RetryPolicy(retry_on=3)  # error: arg-type


async def letters(client: Client) -> None:
    await client.dead.list(JobFilter())  # error: arg-type
    await client.dead.requeue(3)  # error: arg-type
    await client.dead.requeue("id", arguments=[1])  # error: call-arg
    await client.jobs.cancel(LetterFilter())  # error: arg-type
    LetterFilter(since="yesterday")  # error: arg-type
