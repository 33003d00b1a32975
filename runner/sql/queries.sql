-- Queries whose text does not depend on the user's tables.

-- name: migrations_table
CREATE SCHEMA IF NOT EXISTS runner;
CREATE TABLE IF NOT EXISTS runner.migrations (
    number     integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: has_migrations
SELECT to_regclass('runner.migrations') IS NOT NULL;

-- name: migrations_lock
SELECT pg_advisory_xact_lock(hashtextextended('arq-runner migrations', 0));

-- name: session
SELECT pg_backend_pid() AS pid, current_setting('server_version_num')::int AS version,
       pg_is_in_recovery() AS is_standby;

-- name: takes_writes
SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off';

-- name: try_lock
SELECT pg_try_advisory_lock($1);

-- name: locked_table
-- Who holds, or waits for, a lock on one of these tables that keeps writers out; also on one that
-- their foreign keys look at, or that raw SQL names.
SELECT c.oid::regclass::text AS name, l.pid
  FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
 WHERE l.locktype = 'relation' AND l.pid <> pg_backend_pid() AND c.relkind IN ('r', 'p')
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
   AND (c.oid = ANY($1::oid[]) OR strpos(lower($2), lower(c.relname)) > 0
        OR c.oid IN (SELECT confrelid FROM pg_constraint WHERE conrelid = ANY($1::oid[])))
 LIMIT 1;

-- name: hurry
SELECT set_config('lock_timeout', $1, false) WHERE current_setting('lock_timeout') = '0';

-- name: advisory_locks
-- Whether the session holds the writer's lock, and how many others, which raw SQL has left.
SELECT count(*) FILTER (WHERE is_ours) > 0 AS is_held, count(*) FILTER (WHERE NOT is_ours) AS left_over
  FROM (SELECT objsubid = 1 AND ((classid::bigint << 32) | objid::bigint) = $1 AS is_ours
          FROM pg_locks
         WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS locks;

-- name: give_locks_back
-- Once each: a lock that was taken several times is given back as often.
SELECT CASE
       WHEN objsubid = 1 AND mode = 'ExclusiveLock'
       THEN pg_advisory_unlock((classid::bigint << 32) | objid::bigint)
       WHEN objsubid = 1 THEN pg_advisory_unlock_shared((classid::bigint << 32) | objid::bigint)
       WHEN mode = 'ExclusiveLock' THEN pg_advisory_unlock(classid::bigint::bit(32)::int, objid::bigint::bit(32)::int)
       ELSE pg_advisory_unlock_shared(classid::bigint::bit(32)::int, objid::bigint::bit(32)::int) END
  FROM pg_locks
 WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND NOT (objsubid = 1 AND ((classid::bigint << 32) | objid::bigint) = $1);

-- name: end_holder
-- Ends exactly the session that was elected here and does not answer any more.
SELECT a.pid, pg_terminate_backend(a.pid) AS ended
  FROM pg_locks l JOIN pg_stat_activity a USING (pid) JOIN runner.writer w ON w.pid = a.pid
 WHERE l.locktype = 'advisory' AND l.granted
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND ((l.classid::bigint << 32) | l.objid::bigint) = $1 AND l.objsubid = 1
   AND a.datname = current_database() AND a.application_name = 'arq-runner writer'
   AND a.pid <> pg_backend_pid();

-- name: has_tables
SELECT to_regclass('runner.writer') IS NOT NULL;

-- name: pair
SELECT position, identity FROM runner.writer;

-- name: take_office
UPDATE runner.writer
   SET epoch = epoch + 1, leader = $1, pid = pg_backend_pid(), elected_at = now()
RETURNING position, epoch, identity, ledger, now() - swapped_at AS ledger_age;

-- name: set_identity
UPDATE runner.writer SET identity = $1 WHERE epoch = $2 RETURNING identity;

-- name: epoch
SELECT epoch FROM runner.writer;

-- name: applied
SELECT unit FROM runner.ledger_1 WHERE unit = ANY($1::bytea[])
 UNION ALL
SELECT unit FROM runner.ledger_2 WHERE unit = ANY($1::bytea[]);

-- name: swap_ledger
UPDATE runner.writer SET ledger = $2, swapped_at = now() WHERE epoch = $1 RETURNING ledger;

-- name: flush
-- A commit that reaches the disk, and so does what was committed before it.
UPDATE runner.writer SET position = position WHERE epoch = $1 RETURNING true;

-- name: rejected
SELECT entry, facts FROM runner.rejected WHERE entry = ANY($1::text[]);

-- name: answer
INSERT INTO runner.answers (entry, answer) VALUES ($1, $2);

-- name: answers
SELECT entry, answer FROM runner.answers WHERE entry = ANY($1::text[]);

-- name: forget_told
WITH rejected AS (DELETE FROM runner.rejected WHERE at < now() - interval '2 minutes')
DELETE FROM runner.answers WHERE at < now() - interval '2 minutes';

-- name: forget_job_log
DELETE FROM runner.job_log
 WHERE ctid = ANY(ARRAY(
           SELECT ctid FROM runner.job_log
            WHERE ended_at < now() - make_interval(secs => $1::float8)
            ORDER BY ended_at LIMIT $2));

-- name: table
SELECT c.oid::bigint AS oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
       c.relkind IN ('v', 'm', 'f') OR c.relrowsecurity
       OR EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid)
       OR (c.relkind <> 'p' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid))
       OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid AND rulename <> '_RETURN')
       OR EXISTS (
           SELECT FROM pg_trigger
            WHERE NOT tgisinternal AND tgenabled <> 'D'
              AND (tgrelid = c.oid OR tgrelid IN (SELECT relid FROM pg_partition_tree(c.oid))))
       OR EXISTS (
           SELECT FROM pg_partition_tree(c.oid) t JOIN pg_class p ON p.oid = t.relid
            WHERE p.relkind = 'f')
       -- A CHECK by a function of the user's may look at other rows.
       OR EXISTS (
           SELECT FROM pg_constraint k
             JOIN pg_depend d ON d.classid = 'pg_constraint'::regclass AND d.objid = k.oid
              AND d.refclassid = 'pg_proc'::regclass
             JOIN pg_proc f ON f.oid = d.refobjid JOIN pg_language l ON l.oid = f.prolang
            WHERE k.conrelid = c.oid AND k.contype = 'c' AND l.lanname NOT IN ('internal', 'c')
       ) AS is_alone,
       -- RESTRICT looks at once, and not at the end of the statement as NO ACTION does.
       EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = c.oid
                  AND confdeltype <> 'a') AS acts_on_delete,
       EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = c.oid
                  AND confupdtype <> 'a') AS acts_on_update,
       EXISTS (SELECT FROM pg_constraint WHERE conrelid = c.oid AND condeferred
                  AND contype <> 'f') AS is_deferred,
       ARRAY(SELECT DISTINCT conrelid::bigint FROM pg_constraint
              WHERE contype = 'f' AND confrelid = c.oid) AS referenced_by,
       ARRAY(SELECT relid::oid::bigint FROM pg_partition_tree(c.oid)
              WHERE relid <> c.oid) AS partitions
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
   AND CASE WHEN $1::text IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = $1 END;

-- name: columns
WITH RECURSIVE unrolled AS (
    SELECT a.attnum, a.attname, a.attcollation, a.attgenerated <> '' AS is_generated,
           a.attidentity <> ''
           OR coalesce(pg_get_expr(d.adbin, d.adrelid) LIKE '%nextval(%', false) AS is_numbered,
           a.atttypid AS type, a.atttypmod AS typmod, false AS is_domain
      FROM pg_attribute a
      LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped
     UNION ALL
    SELECT u.attnum, u.attname, u.attcollation, u.is_generated, u.is_numbered, t.typbasetype,
           t.typtypmod, true
      FROM unrolled u JOIN pg_type t ON t.oid = u.type AND t.typtype = 'd'
)
SELECT u.attname AS name, u.is_generated, u.is_numbered, u.typmod, u.is_domain, t.typname AS base,
       t.typtype::text AS kind, t.typcategory = 'A' AS is_array,
       coalesce(c.collisdeterministic, true) AS deterministic
  FROM unrolled u
  JOIN pg_type t ON t.oid = u.type AND t.typtype <> 'd'
  LEFT JOIN pg_collation c ON c.oid = u.attcollation
 ORDER BY u.attnum;

-- name: indexes
-- Those of partitions that their table does not have, too.
SELECT i.indisprimary AND i.indrelid = $1::bigint::oid AS is_primary, i.indexprs IS NOT NULL OR i.indpred IS NOT NULL AS is_complex,
       ARRAY(
           SELECT a.attname::text
             FROM unnest(i.indkey::smallint[]) WITH ORDINALITY k(attnum, place)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
            WHERE k.place <= i.indnkeyatts
            ORDER BY k.place) AS columns
  FROM pg_index i
 WHERE (i.indrelid = $1::bigint::oid
        OR i.indrelid IN (SELECT relid FROM pg_partition_tree($1::bigint::oid)))
   AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = i.indexrelid)
   AND (i.indisunique OR i.indisexclusion);

-- name: checked
-- Columns that an expression looks at, which may refuse a value: of a CHECK, of a generated column
-- (which may have a CHECK again), of an index.
SELECT DISTINCT a.attname::text
  FROM (SELECT $1::bigint::oid AS oid UNION SELECT relid FROM pg_partition_tree($1::bigint::oid)) t
  JOIN pg_attribute a ON a.attrelid = t.oid
 WHERE a.attnum > 0 AND (
       EXISTS (
           SELECT FROM pg_constraint c
            WHERE c.conrelid = t.oid AND c.contype = 'c' AND a.attnum = ANY(c.conkey))
       OR EXISTS (
           SELECT FROM pg_attrdef g
             JOIN pg_attribute of_g ON of_g.attrelid = g.adrelid AND of_g.attnum = g.adnum
             JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = g.oid
              AND d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
            WHERE g.adrelid = t.oid AND of_g.attgenerated <> '' AND d.refobjsubid = a.attnum)
       OR EXISTS (
           SELECT FROM pg_index i
             JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
              AND d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
            WHERE i.indrelid = t.oid AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)
              AND d.refobjsubid = a.attnum));

-- name: references
SELECT c.confrelid::bigint AS parent, ARRAY(
           SELECT a.attname::text FROM pg_attribute a
            WHERE a.attrelid = c.conrelid AND a.attnum = ANY(c.conkey)) AS columns
  FROM pg_constraint c
 WHERE c.conrelid = $1::bigint::oid AND c.contype = 'f';

-- name: deferred
-- Constraints that are looked at when the transaction ends, if some are more than foreign keys.
SELECT DISTINCT n.nspname AS schema, c.conname AS name
  FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace
 WHERE c.condeferred
   AND EXISTS (SELECT FROM pg_constraint WHERE condeferred AND contype <> 'f');

-- name: table_names
SELECT CASE WHEN pg_table_is_visible(c.oid) THEN c.relname ELSE n.nspname || '.' || c.relname END
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'f')
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'runner')
 LIMIT 5000;

-- name: needs_room
-- 256 kB in rows that are not compressed: more than the free space of a page or two.
INSERT INTO runner.rejected (entry, facts)
SELECT 'room ' || n,
       decode((SELECT string_agg(md5(random()::text || n || m), '')
                 FROM generate_series(1, 110) AS m), 'hex')
  FROM generate_series(1, 150) AS n;
