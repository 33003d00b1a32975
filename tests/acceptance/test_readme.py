"""The README's lines run as they stand there."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.support import start_python

if TYPE_CHECKING:
    from collections.abc import Iterator

README = Path(__file__).resolve().parents[2] / "README.md"
ENOUGH_S = 60


def blocks() -> Iterator[str]:
    yield from re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


def as_program(lines: str) -> str:
    """Put top-level ``async with`` into a coroutine, as a service would have it."""
    imports = [line for line in lines.splitlines() if line.startswith(("import", "from"))]
    rest = [line for line in lines.splitlines() if line not in imports]
    body = "\n".join(f"    {line}" for line in rest)
    return "\n".join(["import asyncio", *imports, "async def main():", body, "asyncio.run(main())"])


@pytest.mark.lasting_keys("runner:units", "runner:writer")
async def test_orders_are_placed_by_the_fifteen_lines_and_by_a_service_alone(
    redis_url: str,
    database_url: str,
    tmp_path: Path,
) -> None:
    tasks, service, *others = blocks()
    (tmp_path / "tasks.py").write_text(tasks, "utf-8")
    (tmp_path / "service.py").write_text(as_program(service), "utf-8")
    writes = next(lines for lines in others if "runner.database(" in lines)
    writes = as_program(f"import os\nimport runner\n{writes}")
    (tmp_path / "writes.py").write_text(writes, "utf-8")
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "CREATE TABLE orders (id bigint PRIMARY KEY, sku text, quantity int);"
            "CREATE TABLE stock (sku text PRIMARY KEY, quantity int);"
            "INSERT INTO stock VALUES ('hammer', 10)",
        )
        environment = {
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
        }
        worker = await start_python(tmp_path, environment, "-m", "arq", "tasks.WorkerSettings")
        try:
            service_run = await start_python(tmp_path, environment, "service.py")
            said, _ = await asyncio.wait_for(service_run.communicate(), ENOUGH_S)
            direct_run = await start_python(tmp_path, environment, "writes.py")
            await asyncio.wait_for(direct_run.communicate(), ENOUGH_S)
        finally:
            worker.terminate()
            await asyncio.wait_for(worker.wait(), ENOUGH_S)
        assert said.decode() == "placed\n"
        assert direct_run.returncode == 0
        assert await connection.fetchval("SELECT quantity FROM stock") == 7
        assert await connection.fetchval("SELECT quantity FROM orders WHERE id = 7") == 2
        assert await connection.fetchval("SELECT count(*) FROM orders WHERE id = 42") == 1
    finally:
        await connection.close()
