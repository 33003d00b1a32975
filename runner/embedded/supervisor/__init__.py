"""The process between a program and its embedded servers: when one goes, so does the other.

It starts Valkey and PostgreSQL, obeys its parent's pipe, and ends both servers when the parent is
gone, for whatever reason.

Run by path, as ``python -I -S supervisor PARENT_PID``: with the standard library only, it is ready
in a tenth of a second and needs nothing that the user has installed. Modules here import each other
by relative names, because in that process this package is called `supervisor`. It runs in a session
of its own, where no Ctrl-C reaches it.

The pipes carry one JSON object a line. Standard input brings a `Plan`, then each `Command`.
Standard output brings one `Answer` for the plan and one for each command but "end". At the end of
standard input, at "end", at SIGTERM, or when the parent has died, both servers are ended and the
folder that the plan calls temporary is removed. Should this process be killed outright, Linux sends
the servers their death signal; on macOS they then stay.
"""
