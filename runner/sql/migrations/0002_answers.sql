-- What units that asked did: counts and rows, until those who asked have been told.
CREATE TABLE runner.answers (
    entry  text PRIMARY KEY,
    answer bytea NOT NULL,
    at     timestamptz NOT NULL DEFAULT now()
);
