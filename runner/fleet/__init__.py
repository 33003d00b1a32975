"""Several worker processes under one supervisor: ``runner worker settings.WorkerSettings``.

::

    supervisor ── place 1 ── member (a worker in an interpreter of its own)
               ├─ place 2 ── member ── asks to be replaced
               │             └ replacement: ready first, then the old one drains
               └─ watches files, talks to systemd, reaps what ends

`supervisor` keeps every place filled, `process` starts and ends one member, `deaths` says what
ended it, `systemd` and `reload` are what their names say, `member` is the other end of the
socket: it runs in the worker's process. All but `member` need the standard library alone, so the
supervisor stays small and never imports what the workers run: a rolling restart loads new code.
"""
