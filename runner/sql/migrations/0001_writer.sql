-- The writer's own tables. All of them change only in the transactions that apply units.

-- One row: what has been applied, and by whom.
CREATE TABLE runner.writer (
    is_one     boolean PRIMARY KEY DEFAULT true CHECK (is_one),
    position   text NOT NULL DEFAULT '0-0',  -- the last stream entry that was applied
    epoch      bigint NOT NULL DEFAULT 0,    -- the term: who has an older one is fenced
    identity   text,                         -- the same random text stands in Redis
    ledger     smallint NOT NULL DEFAULT 1 CHECK (ledger IN (1, 2)),  -- the one in use
    swapped_at timestamptz NOT NULL DEFAULT now(),
    leader     text NOT NULL DEFAULT '',
    pid        integer NOT NULL DEFAULT 0,   -- the leader's backend
    elected_at timestamptz
) WITH (fillfactor = 10);                    -- it changes with every batch: keep it in one page
INSERT INTO runner.writer DEFAULT VALUES;

-- Units that were applied. Two tables, the older of which is emptied every ten minutes.
CREATE TABLE runner.ledger_1 (unit bytea PRIMARY KEY);
CREATE TABLE runner.ledger_2 (unit bytea PRIMARY KEY);

-- Units that were refused, until those who wait for them have been told.
CREATE TABLE runner.rejected (
    entry text PRIMARY KEY,
    facts bytea NOT NULL,
    at    timestamptz NOT NULL DEFAULT now()
);

-- Raise unless a count is what it must be; in a statement, before or after its other parts.
CREATE FUNCTION runner.expect(counted bigint, expected bigint, code text, message text)
RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF counted IS DISTINCT FROM expected THEN
        RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message;
    END IF;
    RETURN true;
END
$$;
