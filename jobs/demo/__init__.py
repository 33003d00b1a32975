"""The demo: a year of real departures from sixteen services, through one writer.

    python -m jobs.demo [--rows N] [--kill] [--direct] ...

In reading order: `options` (what is asked for), `work` (the lines of the file, and what they
add up to), `damage` (bad lines mixed in), `run` (the whole run), `queued` (the work through
queue and writer), `services` (the sixteen that enqueue), `fleet` (worker and writer
processes), `watch` (what Redis and Postgres say meanwhile), `screen` (what the person
sees), `direct` (the same work without a queue, for comparison), `check` (every total against
the file), `report` and `plots` (what is said at the end).
"""
