-- The tables of the main job. Safe to run again: nothing that exists is touched.

CREATE TABLE IF NOT EXISTS departures (
    id             bigint PRIMARY KEY,       -- the number of the line in the file
    scheduled_at   timestamptz NOT NULL,
    day            date NOT NULL,            -- of the scheduled departure, New York time
    carrier        text NOT NULL,
    flight         integer NOT NULL,
    tail           text,                     -- null: the aeroplane is not known
    origin         text NOT NULL,
    dest           text NOT NULL,
    miles          integer NOT NULL,
    departure_delay integer,                 -- minutes; null: cancelled
    arrival_delay  integer,                  -- minutes; null: cancelled, or landed elsewhere
    air_minutes    integer
);

-- Sixteen rows that every departure touches: the hottest rows of the job.
CREATE TABLE IF NOT EXISTS airlines (
    carrier        text PRIMARY KEY,
    name           text NOT NULL,
    flights        bigint NOT NULL DEFAULT 0,
    cancelled      bigint NOT NULL DEFAULT 0,
    late           bigint NOT NULL DEFAULT 0,    -- left more than 15 minutes late
    delay_minutes  bigint NOT NULL DEFAULT 0,    -- the sum of delays; early ones count below zero
    miles          bigint NOT NULL DEFAULT 0     -- of the flights that left
);

-- One row for each airport and hour, made by the first departure of that hour.
CREATE TABLE IF NOT EXISTS airport_hours (
    origin         text NOT NULL,
    hour           timestamptz NOT NULL,
    flights        bigint NOT NULL DEFAULT 0,
    cancelled      bigint NOT NULL DEFAULT 0,
    late           bigint NOT NULL DEFAULT 0,
    delay_minutes  bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (origin, hour)
);

-- One row for each aeroplane, made by its first flight.
CREATE TABLE IF NOT EXISTS aeroplanes (
    tail           text PRIMARY KEY,
    flights        bigint NOT NULL DEFAULT 0,
    cancelled      bigint NOT NULL DEFAULT 0,
    miles          bigint NOT NULL DEFAULT 0,
    air_minutes    bigint NOT NULL DEFAULT 0
);

-- The daily delay report, one row for each day, New York time.
CREATE TABLE IF NOT EXISTS delay_report (
    day            date PRIMARY KEY,
    flights        bigint NOT NULL,
    cancelled      bigint NOT NULL,
    late           bigint NOT NULL,
    delay_minutes  bigint NOT NULL,
    refreshed_at   timestamptz NOT NULL DEFAULT now()
);

INSERT INTO airlines (carrier, name) VALUES
    ('9E', 'Endeavor Air Inc.'),
    ('AA', 'American Airlines Inc.'),
    ('AS', 'Alaska Airlines Inc.'),
    ('B6', 'JetBlue Airways'),
    ('DL', 'Delta Air Lines Inc.'),
    ('EV', 'ExpressJet Airlines Inc.'),
    ('F9', 'Frontier Airlines Inc.'),
    ('FL', 'AirTran Airways Corporation'),
    ('HA', 'Hawaiian Airlines Inc.'),
    ('MQ', 'Envoy Air'),
    ('OO', 'SkyWest Airlines Inc.'),
    ('UA', 'United Air Lines Inc.'),
    ('US', 'US Airways Inc.'),
    ('VX', 'Virgin America'),
    ('WN', 'Southwest Airlines Co.'),
    ('YV', 'Mesa Airlines Inc.')
ON CONFLICT (carrier) DO NOTHING;
