"""Watch a worker: history, lines of jobs, heartbeats, orders, metrics and probes.

`monitor` is the service that a worker starts and stops; `tally` counts ends of attempts as the
worker has them, `joblog` catches what jobs log, `beat` says what the worker does and takes orders,
`metrics` and `probes` answer over HTTP. What is written here is read by `runner.inspect`.
"""

from runner.monitor.monitor import Monitor, MonitorOptions, monitor_of

__all__ = ["Monitor", "MonitorOptions", "monitor_of"]
