"""The demo: a year of real departures from sixteen services, through one writer.

    python -m jobs.demo [--rows N] [--kill] [--direct] ...

In reading order: `options` (what is asked for), `run` (the whole run as a line of steps),
`services` (the sixteen that enqueue), `fleet` and `child` (worker and writer processes),
`watch` (what Redis and Postgres say meanwhile), `screen` (what the person sees), `damage`
(bad lines mixed in), `check` (every total against the file), `report` and `plots` (what is
said at the end), `direct` (the same work without a queue, for comparison).
"""
