"""Every key in Redis: its name, type and lifetime, each in one place.

arq's keys keep arq's names, types and meaning; ours begin with ``runner:``.

==============================  =======  =====================================================
key                             type     lifetime
==============================  =======  =====================================================
arq:queue (or the queue's name) ZSET     while it has jobs: id → run-at ms; of a running job
                                         the end of its lease
arq:job:<id>                    STRING   until the job ends; 30 days, and a day beyond its next try
arq:in-progress:<id>            STRING   the lease; without expiry while ``committing:<entry>``
arq:retry:<id>                  STRING   tries that have ended; 88,400 s, as in arq, beyond the next
arq:result:<id>                 STRING   ``keep_result``
arq:abort                       ZSET     arq's
<queue>:health-check            STRING   arq's
runner:held:<queue>             HASH     while it has claims: id → "token crashes score"; token "-"
                                         while a job that has crashed before waits for its next try
runner:clock:<queue>            STRING   time of the last claim in ms; 1 h, gone with the last claim
runner:idle:<queue>             ZSET     idle workers → expiry in ms; seconds
runner:wake:<queue>             LIST     wake tokens; seconds
runner:unheard:<queue>          ZSET     claims whose answers were lost → expiry in ms; 1 h
runner:settled:<lane>           STRING   the last batch that a lane of a worker settled; 1 h
runner:waiters:<id>             SET      reply channels that wait for the result; a minute, renewed
runner:replaced:<id>            STRING   the job that took its place while it waited; a minute
runner:counters:<queue>         HASH     counts by outcome; 30 days after the last
runner:dead:<queue>             ZSET     job id → time of death in ms; as the last letter
runner:dead-letter:<id>         STRING   the letter; ``dead_letters_keep``, 30 days
runner:dead-errors:<id>         LIST     the errors of its earlier attempts; as the letter
runner:errors:<id>              LIST     errors of a job that will be tried again: the first and
                                         the last twenty; until it ends, 30 days at most
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
runner:minute:<queue>:<minute>  HASH     attempts by outcome, and times by bucket; a day
runner:minute-tasks:<queue>:<minute>  HASH  the same by task; three hours
runner:counted:<worker>:<queue>  STRING  the number of what a worker counted last; 1 h
runner:finished:<queue>         LIST     the jobs that ended last, the newest first; 7 days
runner:refused:<queue>          ZSET     ends of jobs that Postgres refused before their workers
                                         told of a success: end and id → when, in ms; 15 min
runner:log:<id>                 LIST     the last lines that a job logged; a day
runner:progress:<id>            STRING   how far a job is; an hour
runner:workers                  ZSET     live workers → when they count as gone, in ms; seconds
runner:worker:<name>            STRING   what a worker is and does; seconds
runner:control:<worker>         LIST     orders to a worker; 15 s
runner:answers:<reply>          LIST     what workers answered to an order; a minute
runner:sent:<client>            STRING   a client's last submission, so that it can be repeated;
                                         a minute
runner:flow:<flow>              HASH     a flow: name, state, counts, deadline, which flows its
                                         nodes wait for; 30 days from its last progress or the
                                         time of its next node, and `keep_result` once it ended
runner:flow:<flow>:plan         HASH     number of a node → flags, queue, delay, children; as the
                                         flow, and 10 min before it starts; so are the next five
runner:flow:<flow>:names        HASH     number → name and task, and the flows it is nested in
runner:flow:<flow>:jobs         HASH     number → payload
runner:flow:<flow>:waits        HASH     number → parents that have not ended
runner:flow:<flow>:states       HASH     number → what became of it
runner:flow:<flow>:results      HASH     number → encoded result, where others need it
runner:flows:<queue>            ZSET     flows that were started there → when, in ms; the last
                                         10,000, 30 days
runner:limits                   HASH     limit → what was set at run time, JSON; lasting
runner:limits:declared          HASH     limit → what the code declares, JSON; a day behind the last
                                         worker that had it, 30 days at most
runner:limits:turn              STRING   a worker has looked for stale slots; seconds
runner:limit-buckets:<limit>    ZSET     buckets in use (``limit``, or ``limit[value of its key]``)
                                         → last use in ms; 30 days
runner:window:<bucket>          LIST     times of the last admissions in us; the period
runner:bucket:<bucket>          STRING   when the tokens are full again, in us; until then
runner:reserved:<bucket>        ZSET     delayed jobs (weight, queue, id in lines) → their time in
                                         ms; a day behind the last
runner:late:<bucket>            STRING   the last time given to one that was late, in us; until then
runner:running:<bucket>         ZSET     jobs that have a slot → last look in ms; 30 days
runner:parked:<bucket>          ZSET     jobs that wait for a slot → their score before; 30 days
runner:paused:<queue>           STRING   there while the queue is paused; lasting
runner:paused-queues            SET      paused queues; lasting
runner:paused-tasks             SET      paused tasks; lasting
runner:parked-task:<task>       ZSET     jobs parked while the task is paused → their score before;
                                         30 days
runner:parked-tasks             SET      tasks with such jobs; 30 days
runner:gated                    STRING   paused tasks, and limits set on tasks, JSON; lasting
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
DEAD_ERRORS = "runner:dead-errors:"
ERRORS = "runner:errors:"
FAILED_UNIT = "runner:failed:"
ANSWER = "runner:answer:"
MOVED_UNIT = "runner:moved:"
UNIT = "runner:unit:"
COMMITS = "runner:commits:"
FLOW = "runner:flow:"
FLOWS = "runner:flows:"
HELD = "runner:held:"
UNHEARD = "runner:unheard:"
REPLACED = "runner:replaced:"
PROGRESS = "runner:progress:"
JOB_LOG = "runner:log:"
MINUTE = "runner:minute:"
MINUTE_TASKS = "runner:minute-tasks:"
WORKER = "runner:worker:"
IDLE = "runner:idle:"
WAKE = "runner:wake:"
LIMIT_BUCKETS = "runner:limit-buckets:"
WINDOW = "runner:window:"
BUCKET = "runner:bucket:"
RESERVED = "runner:reserved:"
LATE = "runner:late:"
RUNNING = "runner:running:"
PARKED = "runner:parked:"
PARKED_TASK = "runner:parked-task:"
COUNTERS = "runner:counters:"
PAUSED = "runner:paused:"

UNITS = "runner:units"
WRITER = "runner:writer"
LEADER = "runner:writer:leader"
WORKERS = "runner:workers"

LIMITS = "runner:limits"
LIMITS_DECLARED = "runner:limits:declared"
LIMIT_TURN = "runner:limits:turn"
PAUSED_QUEUES = "runner:paused-queues"
PAUSED_TASKS = "runner:paused-tasks"
PARKED_TASKS = "runner:parked-tasks"
GATED = "runner:gated"

NODE = "flow:"
"""How the ids of the jobs of flows begin; ``lua/flow.lua`` knows a node by it."""

COMMITTING = "committing:"
"""What the in-progress key of a job says between its end and the commit of its unit."""

FAR_OFF_MS = 4_102_444_800_000
"""The score of an id that nobody may claim: the year 2100."""

PAUSED_MS, PARKED_MS = FAR_OFF_MS + 1, FAR_OFF_MS + 2
"""The scores of ids that are parked: their task is paused, or no slot of a limit is free."""

KEEP_MS = 30 * 24 * 3600 * 1000
"""How long payloads, dead letters and counters are kept at most: 30 days."""

RETRY_TTL_S = 88_400
"""The lifetime of the count of tries, as in arq."""


def raw_id(job_id: str) -> bytes:
    """Return an id as it stands in Redis, where anybody may have put bytes that are no text."""
    return job_id.encode(errors="surrogateescape")


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


def dead_errors(job_id: str) -> str:
    """LIST: the errors of the earlier attempts of a job that is dead."""
    return DEAD_ERRORS + job_id


def errors(job_id: str) -> str:
    """LIST: the errors of the earlier attempts of a job that goes on."""
    return ERRORS + job_id


def commits(job_id: str) -> str:
    """HASH: what a job has committed before its end."""
    return COMMITS + job_id


def node_of(job_id: str) -> tuple[str, int] | None:
    """Return flow and number of a node's job; None for a job that is no node's."""
    if not job_id.startswith(NODE):
        return None
    flow_id, _, number = job_id[len(NODE) :].rpartition(":")
    return (flow_id, int(number)) if flow_id and number.isdigit() else None


def flow(flow_id: str) -> str:
    """HASH: one flow; with `:plan` and the like behind it, the parts of it."""
    return FLOW + flow_id


def flows(queue: str) -> str:
    """ZSET: the flows that were started in this queue, the last ones."""
    return FLOWS + queue


def replaced(job_id: str) -> str:
    """STRING: the job that took the place of this one."""
    return REPLACED + job_id


def places(queue: str) -> str:
    """HASH: the places of this queue's unique jobs."""
    return f"runner:unique:{queue}"


def held(queue: str) -> str:
    """HASH: who holds which job of this queue."""
    return HELD + queue


def clock(queue: str) -> str:
    """STRING: when this queue was last claimed from."""
    return f"runner:clock:{queue}"


def idle(queue: str) -> str:
    """ZSET: workers with free slots and nothing to do."""
    return IDLE + queue


def wake(queue: str) -> str:
    """LIST: tokens that wake idle workers."""
    return WAKE + queue


def unheard(queue: str) -> str:
    """ZSET: claims whose answers were lost, so that nobody runs what they hold."""
    return UNHEARD + queue


def settled(lane: str) -> str:
    """STRING: the last batch of settlements of one lane, and what became of each."""
    return f"runner:settled:{lane}"


def counters(queue: str) -> str:
    """HASH: counts by outcome."""
    return COUNTERS + queue


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


def limit_buckets(limit: str) -> str:
    """ZSET: the buckets of a limit that are in use."""
    return LIMIT_BUCKETS + limit


def paused(queue: str) -> str:
    """STRING: there while nothing is claimed from this queue."""
    return PAUSED + queue


def health(queue: str) -> str:
    """STRING: the health of a worker of this queue, as arq writes it."""
    return queue + health_check_key_suffix


def minute(queue: str, minute: int) -> str:
    """HASH: what happened in a queue in one minute, counted since 1970."""
    return f"{MINUTE}{queue}:{minute}"


def minute_tasks(queue: str, minute: int) -> str:
    """HASH: the same by task."""
    return f"{MINUTE_TASKS}{queue}:{minute}"


def counted(worker: str, queue: str) -> str:
    """STRING: the number of what a worker has counted last in a queue."""
    return f"runner:counted:{worker}:{queue}"


def finished(queue: str) -> str:
    """LIST: the jobs of this queue that ended last."""
    return f"runner:finished:{queue}"


def refused(queue: str) -> str:
    """ZSET: ends of jobs of this queue that were refused, and may yet be told as successes."""
    return f"runner:refused:{queue}"


def job_log(job_id: str) -> bytes:
    """LIST: the last lines that a job logged."""
    return (JOB_LOG + job_id).encode(errors="surrogateescape")


def progress(job_id: str) -> bytes:
    """STRING: how far a job is."""
    return (PROGRESS + job_id).encode(errors="surrogateescape")


def worker(name: str) -> str:
    """STRING: what a worker is and does."""
    return WORKER + name


def control(name: str) -> str:
    """LIST: orders to a worker."""
    return f"runner:control:{name}"


def answers(reply: str) -> str:
    """LIST: what workers answered to an order."""
    return f"runner:answers:{reply}"


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
