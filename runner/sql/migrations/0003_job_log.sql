-- Jobs that ended, where workers are told to log them; rows come as units, like those of users.
CREATE TABLE runner.job_log (
    job_id      text NOT NULL,
    ended_at    timestamptz NOT NULL,
    task        text NOT NULL DEFAULT '',
    queue       text NOT NULL,
    outcome     text NOT NULL,
    attempt     integer NOT NULL,
    enqueued_at timestamptz,
    started_at  timestamptz,
    error_type  text NOT NULL DEFAULT '',
    error       text NOT NULL DEFAULT '',
    arguments   jsonb NOT NULL DEFAULT '{}',  -- by name, or by place
    worker      text NOT NULL DEFAULT '',
    PRIMARY KEY (job_id, ended_at)
);
CREATE INDEX job_log_ended_at ON runner.job_log (ended_at, job_id);
CREATE INDEX job_log_task ON runner.job_log (task, ended_at);
CREATE INDEX job_log_outcome ON runner.job_log (outcome, ended_at);
CREATE INDEX job_log_error ON runner.job_log (error_type, ended_at);
CREATE INDEX job_log_arguments ON runner.job_log USING gin (arguments jsonb_path_ops);
