"""Load the Lua scripts, and hold every call to the contract at the script's head.

A script opens with comment lines that this loader reads::

    -- What it does, in one sentence.
    -- KEYS: queue held results...
    -- ARGV: now_ms:int token entries...
    -- Uses: wake
    -- Returns: what comes back

``KEYS`` and ``ARGV`` name the fixed places in order; a last name with dots takes any
number more. ``:int`` asks for whole numbers. ``Uses`` puts another file, a set of local
functions, in front. The names become locals of the script, so that its body never
counts places: ``queue`` is ``KEYS[1]``, and a list ``entries`` begins at ``entries_at``.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import NoScriptError

from runner.errors import ScriptError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

_LINE = re.compile(r"^-- (KEYS|ARGV|Uses|Returns): *(.*)$")


class Executes(Protocol):
    """What runs commands: a client of redis-py, or a `Pipe`."""

    def execute_command(self, *command: Any) -> Awaitable[Any]:
        """Run a command and return its reply, or raise the error that came in its place."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """One named place of a script's KEYS or ARGV."""

    name: str
    is_int: bool
    is_list: bool


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script, its contract, and its SHA1, which is its version."""

    name: str
    text: str
    sha: str
    keys: tuple[Place, ...]
    args: tuple[Place, ...]

    async def call(self, redis: Executes, *, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run by EVALSHA, or by EVAL where the server does not know the script yet.

        NOSCRIPT means that nothing ran, so the whole call is sent again. Any other
        error, a lost connection among them, goes up: whether the script ran is unknown.

        Raises:
            ScriptError: the call does not fit the contract.
        """
        self.check(keys, args)
        execute = redis.execute_command
        try:
            return await execute("EVALSHA", self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await execute("EVAL", self.text, len(keys), *keys, *args)

    def check(self, keys: Sequence[Any], args: Sequence[Any]) -> None:
        """Raise `ScriptError` unless the call fits the contract."""
        self._check_count("KEYS", self.keys, len(keys))
        self._check_count("ARGV", self.args, len(args))
        for place, value in zip(self.args, args, strict=False):
            if place.is_int and not place.is_list and type(value) is not int:
                raise ScriptError(
                    f"script {self.name}: {place.name} takes an int, not {value!r}",
                )

    def _check_count(self, kind: str, places: tuple[Place, ...], given: int) -> None:
        has_list = bool(places) and places[-1].is_list
        fixed = len(places) - has_list
        if given < fixed or (given > fixed and not has_list):
            names = " ".join(p.name + ("..." if p.is_list else "") for p in places)
            raise ScriptError(f"script {self.name}: {kind} is ({names}), but {given} were given")


@functools.cache
def load(name: str) -> Script:
    """Return the script of that name; raise `ScriptError` when its head is wrong."""
    text = _source(name)
    heads = _heads(text)
    keys, args = _places(heads.get("KEYS", "")), _places(heads.get("ARGV", ""))
    for kind in ("KEYS", "ARGV", "Returns"):
        if kind not in heads:
            raise ScriptError(f"script {name}: the line '-- {kind}:' is missing")
    used = [_source(other) for other in heads.get("Uses", "").split()]
    whole = "\n".join([_locals(keys, "KEYS"), _locals(args, "ARGV"), *used, text])
    # SHA1 is the name that Redis gives a script; nothing rests on its strength.
    sha = hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest()
    return Script(name=name, text=whole, sha=sha, keys=keys, args=args)


def _source(name: str) -> str:
    return resources.files("runner").joinpath("lua", f"{name}.lua").read_text("utf-8")


def _heads(text: str) -> dict[str, str]:
    heads: dict[str, str] = {}
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        if match := _LINE.match(line):
            heads[match[1]] = match[2]
    return heads


def _places(names: str) -> tuple[Place, ...]:
    places = []
    for word in names.split():
        is_list = word.endswith("...")
        name, _, kind = word.removesuffix("...").partition(":")
        if kind not in ("", "int") or not name.isidentifier():
            raise ScriptError(f"cannot read {word!r} in a script's contract")
        places.append(Place(name=name, is_int=kind == "int", is_list=is_list))
    return tuple(places)


def _locals(places: tuple[Place, ...], table: str) -> str:
    lines = []
    for index, place in enumerate(places, start=1):
        if place.is_list:
            lines.append(f"local {place.name}_at = {index}")
        elif place.is_int:
            lines.append(f"local {place.name} = tonumber({table}[{index}])")
        else:
            lines.append(f"local {place.name} = {table}[{index}]")
    return "\n".join(lines)
