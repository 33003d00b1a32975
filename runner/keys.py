"""Every key in Redis: its name, type and lifetime, each in one place.

arq's keys keep arq's names, types and meaning; ours begin with ``runner:``.

==============================  =======  =====================================================
key                             type     lifetime
==============================  =======  =====================================================
arq:queue (or the queue's name) ZSET     while it has jobs: id → run-at ms; of a running job
                                         the end of its lease
arq:job:<id>                    STRING   until the job ends; 30 days at most
arq:in-progress:<id>            STRING   the lease; without expiry while ``committing:<entry>``
arq:retry:<id>                  STRING   until the job ends; 88,400 s as in arq
arq:result:<id>                 STRING   ``keep_result``
arq:abort                       ZSET     arq's
<queue>:health-check            STRING   arq's
runner:held:<queue>             HASH     while it has claims: id → "token crashes score"; token "-"
                                         while a job that has crashed before waits for its next try
runner:clock:<queue>            STRING   time of the last claim in ms; 1 h, gone with the last claim
runner:idle:<queue>             ZSET     idle workers → expiry in ms; seconds
runner:wake:<queue>             LIST     wake tokens; seconds
runner:waiters:<id>             SET      reply channels that wait for the result; a minute, renewed
runner:counters:<queue>         HASH     counts by outcome; 30 days after the last
runner:dead:<queue>             ZSET     job id → time of death in ms; 30 days after the last
runner:dead-letter:<id>         STRING   the letter; 30 days
runner:units                    STREAM   units not yet committed, and a tail; lasting
runner:writer                   HASH     the writer's position and counts; lasting
runner:writer:leader            STRING   the elected candidate; the election's term
runner:failed:<entry>           STRING   why a unit was refused; 1 h
==============================  =======  =====================================================
"""

from __future__ import annotations

from arq.constants import (
    abort_jobs_ss,
    default_queue_name,
    health_check_key_suffix,
    in_progress_key_prefix,
    job_key_prefix,
    result_key_prefix,
    retry_key_prefix,
)

ABORT = abort_jobs_ss
DEFAULT_QUEUE = default_queue_name
JOB = job_key_prefix
IN_PROGRESS = in_progress_key_prefix
RETRY = retry_key_prefix
RESULT = result_key_prefix
WAITERS = "runner:waiters:"
DEAD_LETTER = "runner:dead-letter:"
FAILED_UNIT = "runner:failed:"

UNITS = "runner:units"
WRITER = "runner:writer"
LEADER = "runner:writer:leader"
COMMITS_CHANNEL = "runner:commits"

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
    """STRING: how many attempts have begun."""
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


def counters(queue: str) -> str:
    """HASH: counts by outcome."""
    return f"runner:counters:{queue}"


def dead(queue: str) -> str:
    """ZSET: the ids of this queue's dead letters."""
    return f"runner:dead:{queue}"


def health(queue: str) -> str:
    """STRING: the health of a worker of this queue, as arq writes it."""
    return queue + health_check_key_suffix


def reply_channel(client_id: str) -> str:
    """Pub/sub channel on which one client process hears of its results."""
    return f"runner:reply:{client_id}"
