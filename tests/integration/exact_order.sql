-- Tables on which operations depend on each other in every way that the planner has to know of.
-- btree_gist, for exclusion by plain values, and citext come with Postgres.

CREATE EXTENSION citext;
CREATE EXTENSION btree_gist;

CREATE TABLE parent (
    id int PRIMARY KEY, email text UNIQUE, n int DEFAULT 7, s varchar(3));
CREATE TABLE child (
    id int PRIMARY KEY, parent int REFERENCES parent DEFERRABLE, n int NOT NULL DEFAULT 0);
CREATE TABLE late_child (
    id int PRIMARY KEY, parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE by_email (
    id int PRIMARY KEY, email text REFERENCES parent (email) DEFERRABLE, tags int[]);
CREATE TABLE boss (id int PRIMARY KEY, n int);
CREATE TABLE owned (
    id int PRIMARY KEY,
    boss int REFERENCES boss ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE, n int);
CREATE TABLE linked (
    id int PRIMARY KEY, boss int REFERENCES boss ON DELETE SET NULL DEFERRABLE, n int);
CREATE TABLE chief (id int PRIMARY KEY, n int);
CREATE TABLE kept (id int PRIMARY KEY, chief int REFERENCES chief ON DELETE RESTRICT DEFERRABLE);
CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree DEFERRABLE, n int);

CREATE TABLE stock (
    sku text PRIMARY KEY, n int DEFAULT 2 CHECK (n >= 0), x numeric,
    twice int GENERATED ALWAYS AS (x * 2) STORED CHECK (twice <> 6));
CREATE TABLE share (
    id int PRIMARY KEY, n int, per int GENERATED ALWAYS AS (12 / n) STORED);
CREATE TABLE small (
    id int PRIMARY KEY, n int2, f float8, d numeric(4, 1), big bigint DEFAULT 9223372036854775805);
CREATE TABLE partial (id int PRIMARY KEY, n int, s text);
CREATE UNIQUE INDEX ON partial (s) WHERE n > 0;
CREATE INDEX ON partial ((6 / (n - 2)));

CREATE TABLE numbered (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s text UNIQUE, n int);
CREATE TABLE fixed (id int PRIMARY KEY DEFAULT 1, n int);
CREATE TABLE twins (
    a int, b text, n int, PRIMARY KEY (a, b));
CREATE TABLE from_a (a int UNIQUE, g int GENERATED ALWAYS AS (a % 2) STORED PRIMARY KEY, n int);
CREATE TABLE keyless (a int, n int);

CREATE TABLE by_word (word citext PRIMARY KEY, n int);
CREATE TABLE by_span (span interval PRIMARY KEY, n int);
CREATE TABLE by_char (c char(4) PRIMARY KEY, n int);
CREATE TABLE by_name (name varchar(2) PRIMARY KEY, n int);
CREATE TABLE by_float (f float8 PRIMARY KEY, n int);
DO $$ BEGIN
    EXECUTE 'CREATE COLLATION loose (provider = icu, locale = ''und-u-ks-level2'', '
            'deterministic = false)';
    EXECUTE 'CREATE TABLE by_sound (s text COLLATE loose PRIMARY KEY, n int)';
EXCEPTION WHEN feature_not_supported THEN  -- a Postgres built without ICU
    EXECUTE 'CREATE TABLE by_sound (s citext PRIMARY KEY, n int)';
END $$;

CREATE TABLE room (
    id int PRIMARY KEY, place int, during int4range,
    EXCLUDE USING gist (place WITH =, during WITH &&));
CREATE TABLE seat (
    id int PRIMARY KEY, place int, UNIQUE (place) DEFERRABLE INITIALLY DEFERRED, n int);
CREATE TABLE bench (
    id int PRIMARY KEY DEFERRABLE, place int, n int, UNIQUE (place) DEFERRABLE);

CREATE TABLE log (at int GENERATED ALWAYS AS IDENTITY, what text);
CREATE TABLE audited (id int PRIMARY KEY, n int);
CREATE TABLE counted (id int PRIMARY KEY, n int);
CREATE TABLE balanced (id int PRIMARY KEY, n int);
CREATE TABLE limited (id int PRIMARY KEY, n int);
CREATE TABLE total (id int PRIMARY KEY, n int);
CREATE VIEW positive AS SELECT id, n FROM total WHERE n >= 0 WITH CHECK OPTION;

CREATE FUNCTION before_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.n = 3 THEN RAISE EXCEPTION 'not three'; END IF;
    IF NEW.n = 2 THEN RETURN NULL; END IF;
    UPDATE total SET n = n + 1 WHERE id = NEW.id;
    RETURN NEW;
END $$;
CREATE TRIGGER before_row BEFORE INSERT OR UPDATE ON audited
    FOR EACH ROW EXECUTE FUNCTION before_row();
CREATE FUNCTION after_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO log (what) SELECT TG_OP || ' ' || count(*) FROM audited;
    RETURN NULL;
END $$;
CREATE TRIGGER after_row AFTER INSERT OR UPDATE OR DELETE ON audited
    FOR EACH ROW EXECUTE FUNCTION after_row();
CREATE FUNCTION after_statement() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO log (what) SELECT 'statement ' || coalesce(sum(n), 0) FROM counted;
    RETURN NULL;
END $$;
CREATE TRIGGER after_statement AFTER INSERT OR UPDATE OR DELETE ON counted
    FOR EACH STATEMENT EXECUTE FUNCTION after_statement();
CREATE FUNCTION check_balance() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF (SELECT abs(sum(n)) > 3 FROM balanced) THEN RAISE EXCEPTION 'out of balance'; END IF;
    INSERT INTO log (what) SELECT 'balance ' || coalesce(sum(n), 0) FROM balanced;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER check_balance AFTER INSERT OR UPDATE OR DELETE ON balanced
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_balance();
-- A CHECK that looks at other rows is no good idea, but people have them.
CREATE FUNCTION is_room(int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    RETURN (SELECT count(*) < 3 FROM limited WHERE n <> $1);
END $$;
ALTER TABLE limited ADD CHECK (is_room(n));
