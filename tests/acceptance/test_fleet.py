"""``runner worker``: workers under a supervisor, however they end."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import pytest

import runner
from tests.fleet import environment_of, fleet, is_alive, runs_of, write_settings
from tests.support import wait_until

pytestmark = [pytest.mark.timeout(180), pytest.mark.lasting_keys("runner:*")]

SUBREAPER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans come to us, as they come to process 1
os.execv(sys.executable, [sys.executable, "-m", "runner.cli", "worker", *sys.argv[1:]])
"""


async def test_each_worker_has_a_process_and_all_end_on_sigterm(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2", more="max_jobs = 2") as running,
    ):
        await running.ready()
        members = running.members()
        assert len(members) == 2
        jobs = [await client.enqueue("quick", 0.3) for _ in range(8)]
        assert {await job.result(timeout=20) for job in jobs} == set(members)
        assert await running.end() == 0
        assert not any(map(is_alive, members))
        assert running.text.count("has left") == 2


async def test_worker_that_is_killed_is_replaced_and_its_end_explained(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "1") as running,
    ):
        await running.ready()
        (member,) = running.members()
        job = await client.enqueue("quick", 1.5)
        await wait_until(lambda: runs_of(client, job.job_id), description="the job runs")
        os.kill(member, signal.SIGKILL)
        await running.ready(2)
        assert running.says(f"(pid {member}) was killed by SIGKILL")
        assert await job.result(timeout=30) in running.members()
        assert await running.end() == 0


async def test_job_that_crashes_its_process_becomes_a_dead_letter(
    redis_url: str, tmp_path: Path
) -> None:
    more = "max_crashes = 2\nlease = 1"
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "1", more=more) as running,
    ):
        await running.ready()
        job = await client.enqueue("crash")
        with pytest.raises(runner.errors.TooManyCrashes):
            await job.result(timeout=60)
        assert running.says("was killed by SIGSEGV (a crash in native code)", 2)
        assert len(await runs_of(client, job.job_id)) == 2


@pytest.mark.parametrize("blocked", [False, True], ids=["free", "blocked"])
async def test_no_worker_outlives_a_supervisor_that_is_killed(
    redis_url: str, tmp_path: Path, *, blocked: bool
) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2") as running,
    ):
        await running.ready()
        members = running.members()
        job = await client.enqueue("block" if blocked else "quick", 600)
        await wait_until(lambda: runs_of(client, job.job_id), description="the job runs")
        running.process.kill()
        await running.process.wait()
        await wait_until(
            lambda: not any(map(is_alive, members)),
            description="the workers end with their supervisor",
            timeout_s=30,
        )
        if not blocked:  # it was handed back: nobody has to wait for a lease
            assert await client.exists(f"arq:in-progress:{job.job_id}") == 0


async def test_job_that_blocks_its_worker_is_named_and_harms_no_other(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2", more="lease = 1") as running,
    ):
        await running.ready()
        blocking = await client.enqueue("block", 6)
        await wait_until(lambda: runs_of(client, blocking.job_id), description="the job runs")
        (blocked,) = await runs_of(client, blocking.job_id)
        jobs = [await client.enqueue("quick") for _ in range(20)]
        assert blocked not in {await job.result(timeout=20) for job in jobs}
        await wait_until(
            lambda: running.says(f"job {blocking.job_id}:block blocks the event loop"),
            description="it is named",
        )
        assert await blocking.result(timeout=30) is None
        assert running.says("in block\n    time.sleep(seconds)")
        assert await runs_of(client, blocking.job_id) == [blocked]
        assert (await client.queue_stats()).crashed == 0
        assert await running.end() == 0


async def test_second_sigterm_does_not_wait_for_jobs(redis_url: str, tmp_path: Path) -> None:
    more = "job_completion_wait = 600"
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2", more=more) as running,
    ):
        await running.ready()
        job = await client.enqueue("quick", 600)
        await wait_until(lambda: runs_of(client, job.job_id), description="the job runs")
        running.process.send_signal(signal.SIGTERM)
        await wait_until(
            lambda: running.says("Setting allow_pick_jobs", 2), description="both were told"
        )
        assert running.process.returncode is None
        assert await running.end() == 0
        assert await client.zcard("arq:queue") == 1


async def test_third_sigterm_kills_a_worker_that_cannot_hear(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "1") as running,
    ):
        await running.ready()
        job = await client.enqueue("block", 600)
        await wait_until(lambda: runs_of(client, job.job_id), description="the job runs")
        for text in ("are to end", "at once", "are killed"):
            running.process.send_signal(signal.SIGTERM)
            await wait_until(partial(running.says, text), description=f"the workers {text}")
        assert await asyncio.wait_for(running.process.wait(), 60) == 0
        assert running.says("had to be killed")


async def test_rolling_restart_under_load_runs_each_job_once(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2") as running,
    ):
        await running.ready()
        first = running.members()
        jobs = [await client.enqueue("quick", 3)]
        for round_ in range(2, 4):
            running.process.send_signal(signal.SIGHUP)
            while not running.says("the fleet is ready", round_):
                jobs.append(await client.enqueue("quick", 0.02))
                await asyncio.sleep(0.005)
        pids = [await job.result(timeout=60) for job in jobs]
        runs = [await runs_of(client, job.job_id) for job in jobs]
        assert runs == [[pid] for pid in pids]
        assert len(set(pids)) > 4
        stats = await client.queue_stats()
        assert (stats.retried, stats.crashed, stats.failed) == (0, 0, 0)
        assert stats.succeeded == len(jobs)
        await wait_until(
            lambda: not any(map(is_alive, first)), description="the first workers have left"
        )
        assert await running.end() == 0


async def test_rolling_restart_keeps_the_old_workers_when_the_new_code_is_broken(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2") as running,
    ):
        await running.ready()
        members = running.members()
        (tmp_path / "shop.py").write_text("import nothing_of_this_name\n")
        running.process.send_signal(signal.SIGHUP)
        await wait_until(
            lambda: running.says("was not ready in time", 2),
            description="both replacements failed",
            timeout_s=30,
        )
        assert running.says("nothing_of_this_name")
        assert running.members() == members
        job = await client.enqueue("quick")
        assert await job.result(timeout=10) in members
        assert await running.end() == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("shop.WorkerSetting",), "did you mean 'WorkerSettings'"),
        (("shops.WorkerSettings",), "there is no module 'shops'"),
    ],
)
async def test_wrong_settings_end_the_fleet_with_one_line(
    redis_url: str, tmp_path: Path, words: tuple[str, ...], text: str
) -> None:
    write_settings(tmp_path)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "runner.cli", "worker", *words, "--processes", "3"),
        cwd=tmp_path,
        env=environment_of(tmp_path, redis_url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert out.decode().count(text) == 1
    assert "Traceback" not in out.decode()


async def test_long_reason_is_told_as_well(redis_url: str, tmp_path: Path) -> None:
    long = "raise ValueError('much ' * 300_000 + 'in the end')"
    async with fleet(tmp_path, redis_url, "--processes", "1", more=long) as running:
        assert await asyncio.wait_for(running.process.wait(), 60) == 1
        await wait_until(lambda: running.says("ValueError: much"), description="why")
        assert running.says("in the end")


async def test_workers_that_end_when_nothing_is_left_are_refused(
    redis_url: str, tmp_path: Path
) -> None:
    async with fleet(tmp_path, redis_url, "--processes", "1", more="burst = True") as running:
        assert await asyncio.wait_for(running.process.wait(), 60) == 1
        await wait_until(lambda: running.says("leave it out, or run arq"), description="why")


async def test_status_of_wrong_settings_without_a_word_is_told(
    redis_url: str, tmp_path: Path
) -> None:
    silent = "import sys; sys.exit(78)"
    async with fleet(tmp_path, redis_url, "--processes", "1", more=silent) as running:
        assert await asyncio.wait_for(running.process.wait(), 60) == 1
        await wait_until(lambda: running.says("ended with status 78"), description="why")


async def test_wrong_setting_that_shows_at_the_end_is_told(redis_url: str, tmp_path: Path) -> None:
    more = (
        "async def on_shutdown(ctx):\n"
        "    raise runner.errors.SettingsError('no room for the report')"
    )
    async with fleet(tmp_path, redis_url, "--processes", "1", more=more) as running:
        await running.ready()
        assert await running.end() == 0
        await wait_until(
            lambda: running.says("ended with status 78: no room for the report"),
            description="why",
        )


async def test_reload_kills_a_worker_that_does_not_end(redis_url: str, tmp_path: Path) -> None:
    more = "job_completion_wait = 0\ncancel_grace = 0"
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "1", "--reload", more=more) as running,
    ):
        await running.ready()
        (old,) = running.members()
        job = await client.enqueue("block", 600)
        await wait_until(lambda: runs_of(client, job.job_id), description="it blocks its worker")
        write_settings(tmp_path, more + "\n# changed")
        await wait_until(
            lambda: running.says("had to be killed"), description="it is killed", timeout_s=60
        )
        assert not is_alive(old)


async def test_reload_takes_up_changed_code(redis_url: str, tmp_path: Path) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "1", "--reload") as running,
    ):
        await running.ready()
        module = tmp_path / "shop.py"
        text = module.read_text()
        module.write_text(text.replace("return os.getpid()", 'return "changed"'))
        await running.ready(2)
        job = await client.enqueue("quick")
        assert await job.result(timeout=20) == "changed"
        assert running.says("shop.py changed: all workers are replaced")
        assert await running.end() == 0


async def test_reload_does_not_wait_for_code_that_hangs(redis_url: str, tmp_path: Path) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "1", "--reload") as running,
    ):
        await running.ready()
        module = tmp_path / "shop.py"
        text = module.read_text()
        hangs = tmp_path / "hangs"
        module.write_text(
            f"{text}\nimport pathlib, threading\npathlib.Path({str(hangs)!r}).touch()\n"
            "threading.Event().wait()\n"
        )
        await wait_until(hangs.exists, description="a new worker hangs", timeout_s=30)
        module.write_text(text.replace("return os.getpid()", 'return "changed"'))
        await running.ready(2)
        job = await client.enqueue("quick")
        assert await job.result(timeout=20) == "changed"
        assert await running.end() == 0


async def test_sighup_replaces_a_first_worker_that_hangs(redis_url: str, tmp_path: Path) -> None:
    hung = "import threading; threading.Event().wait()"
    async with fleet(tmp_path, redis_url, "--processes", "1", more=hung) as running:
        await wait_until(running.members, description="a worker was started", timeout_s=30)
        (first,) = running.members()
        write_settings(tmp_path)
        running.process.send_signal(signal.SIGHUP)
        await running.ready()
        assert not is_alive(first)
        assert await running.end() == 0


async def test_broken_code_ends_no_worker_that_serves_while_another_starts(
    redis_url: str, tmp_path: Path
) -> None:
    """The first to be imported serves, the second hangs, and the third cannot be loaded."""
    more = (
        "import pathlib, threading\n"
        "try:\n"
        f"    pathlib.Path({str(tmp_path / 'door')!r}).touch(exist_ok=False)\n"
        "except FileExistsError:\n"
        "    threading.Event().wait()"
    )
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2", more=more) as running,
    ):
        serves = await (await client.enqueue("quick")).result(timeout=30)
        (tmp_path / "shop.py").write_text("import nothing_of_this_name\n")
        running.process.send_signal(signal.SIGHUP)
        await wait_until(
            lambda: running.says("nothing_of_this_name", 2),
            description="both replacements failed",
            timeout_s=30,
        )
        assert await (await client.enqueue("quick")).result(timeout=10) == serves
        assert await running.end() == 0


async def test_worker_that_hangs_at_its_import_ends_with_its_supervisor(
    redis_url: str, tmp_path: Path
) -> None:
    hung = "import threading; threading.Event().wait()"
    async with fleet(tmp_path, redis_url, "--processes", "1", more=hung) as running:
        await wait_until(running.members, description="a worker was started", timeout_s=30)
        (hanging,) = running.members()
        await wait_until(
            lambda: "shop" in Path(f"/proc/{hanging}/cmdline").read_text(),
            description="it is a worker",
        )
        running.process.kill()
        await running.process.wait()
        await wait_until(lambda: not is_alive(hanging), description="it ends", timeout_s=30)


async def test_fleet_outlives_a_system_without_room_for_a_process(
    redis_url: str, tmp_path: Path
) -> None:
    async with fleet(tmp_path, redis_url, "--processes", "2") as running:
        await running.ready()
        killed, _ = running.members()
        most = resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (3, most[1]))
        os.kill(killed, signal.SIGKILL)
        await wait_until(
            lambda: running.says("no process can be started (", 2),
            description="it tried again",
            timeout_s=30,
        )
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, most)
        await running.ready(2)
        assert await running.end() == 0


async def test_systemd_hears_how_the_service_is(redis_url: str, tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(address))
        door.setblocking(False)
        heard: list[str] = []

        def hears(state: str) -> bool:
            try:
                while True:
                    heard.append(door.recv(4096).decode())
            except BlockingIOError:
                return any(state in one.splitlines() for one in heard)

        async with fleet(
            tmp_path,
            redis_url,
            *("--processes", "1"),
            NOTIFY_SOCKET=str(address),
            WATCHDOG_USEC="200000",
        ) as running:
            await wait_until(
                lambda: hears("READY=1"), description="the service is ready", timeout_s=60
            )
            heard.clear()
            await wait_until(lambda: hears("WATCHDOG=1"), description="a sign of life")
            running.process.send_signal(signal.SIGHUP)
            await wait_until(lambda: hears("RELOADING=1"), description="it reloads")
            await wait_until(lambda: hears("READY=1"), description="it has reloaded", timeout_s=60)
            assert await running.end() == 0
            assert hears("STOPPING=1")


async def test_orphans_of_process_1_are_reaped(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text(SUBREAPER)
    async with (
        runner.connect(redis_url) as client,
        fleet(
            tmp_path,
            redis_url,
            *("--processes", "1"),
            command=(sys.executable, "first.py"),
        ) as running,
    ):
        await running.ready()
        job = await client.enqueue("leave_an_orphan")
        orphan = await job.result(timeout=20)
        await wait_until(
            lambda: not Path(f"/proc/{orphan}").exists(), description="the orphan was reaped"
        )
        assert await running.end() == 0
