"""Which raw SQL may leave something in the session."""

from __future__ import annotations

import pytest

from runner.writer.statements import may_linger


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE shops SET seen = now() WHERE id = $1",
        "INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET b = excluded.b",
        'INSERT INTO "Odd" (a) SELECT max(a) + 1 FROM "Odd" WHERE (a > 1) AND (a < 5)',
        "DELETE FROM t WHERE id IN ($1, $2) AND note = 'set_config(1)' -- set_config(2)",
        "INSERT INTO public.t(a) VALUES (coalesce($1, 0)) /* set_config(3) */",
        "TRUNCATE t",
        "INSERT INTO temperature SELECT 1",
        "WITH gone AS (DELETE FROM t RETURNING id) SELECT count(*) FROM gone",
    ],
)
def test_plain_statements_leave_nothing(sql: str) -> None:
    assert not may_linger(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT set_config('search_path', 'x', false)",
        "SELECT pg_catalog.set_config('search_path', 'x', true)",
        'SELECT "set_config"($1, $2, true)',
        "SELECT Set_Config ($1, $2, true)",
        "SELECT mine.now()",
        "CALL anything()",
        "SELECT 1 AS id INTO TEMP t",
        "SELECT * INTO LOCAL TEMPORARY orders FROM orders",
        "SELECT 1 AS id INTO pg_temp.t",
        "INSERT INTO t (a) VALUES (its_own($1))",
        "SELECT 'a' || set_config('b', 'c', true) || 'd'",
        r"SELECT E'\'', set_config('b', 'c', true), E'\''",
        "SELECT $$'$$, set_config('b', 'c', true), $$'$$",
        "SELECT $a$'$a$, set_config('b', 'c', true), $a$'$a$",
        "SELECT 'it''s', set_config('b', 'c', true)",
        "SELECT 1 -- '\n, set_config('b', 'c', true) -- '",
    ],
)
def test_whatever_calls_a_function_may(sql: str) -> None:
    assert may_linger(sql)
