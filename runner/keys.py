"""Every key in Redis: its name, type and lifetime, each in one place.

arq's keys keep arq's names, types and meaning; ours begin with ``runner:``.

==============================  =======  =====================================================
key                             type     lifetime
==============================  =======  =====================================================
arq:queue (or the queue's name) ZSET     while it has jobs: id → run-at ms; of a running job
                                         the end of its lease
arq:job:<id>                    STRING   until the job ends; 30 days at most
arq:in-progress:<id>            STRING   the lease; without expiry while ``committing:<entry>``
arq:retry:<id>                  STRING   tries that have ended; 88,400 s as in arq
arq:result:<id>                 STRING   ``keep_result``
arq:abort                       ZSET     arq's
<queue>:health-check            STRING   arq's
runner:held:<queue>             HASH     while it has claims: id → "token crashes score"; token "-"
                                         while a job that has crashed before waits for its next try
runner:clock:<queue>            STRING   time of the last claim in ms; 1 h, gone with the last claim
runner:idle:<queue>             ZSET     idle workers → expiry in ms; seconds
runner:wake:<queue>             LIST     wake tokens; seconds
runner:settled:<lane>           STRING   the last batch that a lane of a worker settled; 1 h
runner:waiters:<id>             SET      reply channels that wait for the result; a minute, renewed
runner:replaced:<id>            STRING   the job that took its place while it waited; a minute
runner:counters:<queue>         HASH     counts by outcome; 30 days after the last
runner:dead:<queue>             ZSET     job id → time of death in ms; 30 days after the last
runner:dead-letter:<id>         STRING   the letter; 30 days
runner:unique:<queue>           HASH     places of unique jobs: digest → "since over id"; an hour
                                         more than the longest place since may be needed
runner:units                    STREAM   units not yet committed, and a tail; lasting
runner:writer                   HASH     the writer's position and counts; lasting
runner:writer:leader            STRING   the elected candidate; the election's term
runner:schedules:<queue>        ZSET     schedule → when to look at it, in ms; lasting
runner:schedule:<queue>:<name>  HASH     one schedule: definition, next due time, counts; lasting
runner:schedule-turn:<queue>    STRING   the worker that sees to due schedules; half a second
runner:fleet:<queue>            ZSET     live workers, by a digest of what they know → expiry; 2 min
runner:fleet:<queue>:<digest>   STRING   their tasks and the schedules of their settings; 2 min
runner:failed:<entry>           STRING   why a unit was refused; 1 h
runner:answer:<entry>           STRING   what a unit did, for one who asked; 1 h
runner:commits:<id>             HASH     commits of a job that goes on: number → entry, digest,
                                         and their answers; until the job ends, 30 days at most
runner:moved:<entry>            STRING   the entry that took its place, after Redis lost data; 1 h
runner:unit:<id>                STRING   of a unit whose id its caller chose: its entry and a digest
                                         of its contents; 10 min
runner:sent:<client>            STRING   a client's last submission, so that it can be repeated;
                                         a minute
==============================  =======  =====================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from arq.constants import (
    abort_jobs_ss,
    default_queue_name,
    health_check_key_suffix,
    in_progress_key_prefix,
    job_key_prefix,
    result_key_prefix,
    retry_key_prefix,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

ABORT = abort_jobs_ss
DEFAULT_QUEUE = default_queue_name
JOB = job_key_prefix
IN_PROGRESS = in_progress_key_prefix
RETRY = retry_key_prefix
RESULT = result_key_prefix
WAITERS = "runner:waiters:"
DEAD_LETTER = "runner:dead-letter:"
FAILED_UNIT = "runner:failed:"
ANSWER = "runner:answer:"
MOVED_UNIT = "runner:moved:"
UNIT = "runner:unit:"
COMMITS = "runner:commits:"
REPLACED = "runner:replaced:"

UNITS = "runner:units"
WRITER = "runner:writer"
LEADER = "runner:writer:leader"

COMMITTING = "committing:"
"""What the in-progress key of a job says between its end and the commit of its unit."""

FAR_OFF_MS = 4_102_444_800_000
"""The score of an id that nobody may claim: the year 2100."""

KEEP_MS = 30 * 24 * 3600 * 1000
"""How long payloads, dead letters and counters are kept at most: 30 days."""

RETRY_TTL_S = 88_400
"""The lifetime of the count of tries, as in arq."""


def job(job_id: str) -> str:
    """STRING: the encoded job."""
    return JOB + job_id


def in_progress(job_id: str) -> str:
    """STRING: the token of the claim that runs the job."""
    return IN_PROGRESS + job_id


def retry(job_id: str) -> str:
    """STRING: how many tries have ended; a stock worker counts the one that goes on too."""
    return RETRY + job_id


def result(job_id: str) -> str:
    """STRING: the encoded result."""
    return RESULT + job_id


def waiters(job_id: str) -> str:
    """SET: the reply channels of those who wait for the result."""
    return WAITERS + job_id


def dead_letter(job_id: str) -> str:
    """STRING: one dead letter."""
    return DEAD_LETTER + job_id


def commits(job_id: str) -> str:
    """HASH: what a job has committed before its end."""
    return COMMITS + job_id


def replaced(job_id: str) -> str:
    """STRING: the job that took the place of this one."""
    return REPLACED + job_id


def places(queue: str) -> str:
    """HASH: the places of this queue's unique jobs."""
    return f"runner:unique:{queue}"


def held(queue: str) -> str:
    """HASH: who holds which job of this queue."""
    return f"runner:held:{queue}"


def clock(queue: str) -> str:
    """STRING: when this queue was last claimed from."""
    return f"runner:clock:{queue}"


def idle(queue: str) -> str:
    """ZSET: workers with free slots and nothing to do."""
    return f"runner:idle:{queue}"


def wake(queue: str) -> str:
    """LIST: tokens that wake idle workers."""
    return f"runner:wake:{queue}"


def settled(lane: str) -> str:
    """STRING: the last batch of settlements of one lane, and what became of each."""
    return f"runner:settled:{lane}"


def counters(queue: str) -> str:
    """HASH: counts by outcome."""
    return f"runner:counters:{queue}"


def dead(queue: str) -> str:
    """ZSET: the ids of this queue's dead letters."""
    return f"runner:dead:{queue}"


def schedules(queue: str) -> str:
    """ZSET: the schedules of this queue's book, by when to look at them."""
    return f"runner:schedules:{queue}"


def schedule_book(queue: str) -> str:
    """Prefix of a HASH for each schedule of this queue's book."""
    return f"runner:schedule:{queue}:"


def schedule_turn(queue: str) -> str:
    """STRING: the worker that sees to due schedules."""
    return f"runner:schedule-turn:{queue}"


def fleet(queue: str) -> str:
    """ZSET: the live workers of this queue, by a digest of what they know."""
    return f"runner:fleet:{queue}"


def fleet_member(queue: str, digest: str) -> str:
    """STRING: the tasks and schedules behind one digest."""
    return f"runner:fleet:{queue}:{digest}"


def health(queue: str) -> str:
    """STRING: the health of a worker of this queue, as arq writes it."""
    return queue + health_check_key_suffix


def sent(client_id: str) -> str:
    """STRING: the last submission of one client of the writer."""
    return f"runner:sent:{client_id}"


def commits_channel(database: int) -> str:
    """Pub/sub channel on which the writer announces commits.

    Channels know no database numbers, and the writer of another one must not be heard.
    """
    return f"runner:commits:{database}"


def database_number(redis: Redis) -> int:
    """Return the number of the database that a client speaks to."""
    return int(redis.connection_pool.connection_kwargs.get("db") or 0)


def reply_channel(client_id: str) -> str:
    """Pub/sub channel on which one client process hears of its results."""
    return f"runner:reply:{client_id}"
