"""Who may look, and who may act.

A password is asked for once: whoever knows it gets a cookie that is signed, says until when it
holds, and cannot be read by scripts. A callable of the application decides by the request instead.
With neither, only this machine is let in, under a name of its own: a page elsewhere that gets its
name resolved to 127.0.0.1 is not.

What changes something is a POST that must come from a page of ours: its ``Origin`` is compared with
the host that it was sent to, and it holds a token that is bound to two cookies.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import inspect
import ipaddress
import secrets
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit

from runner.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

Says: TypeAlias = bool | Literal["read"]
Auth: TypeAlias = "str | Callable[[Request], Says | Awaitable[Says]] | None"
"""A password; or what says of a request whether it may act (True), look ("read"), or neither."""

SESSION, TOKEN = "runner_session", "runner_csrf"
SESSION_S = 12 * 3600
TRIES, TRIES_S = 10, 60.0
"""So many wrong passwords from one address, or from all in turn ten times as many, and no more."""
MOST_ADDRESSES = 1_000
SALT = b"arq-runner dashboard"
PROXIED = (
    *("forwarded", "via", "x-real-ip", "cf-connecting-ip"),
    *("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"),
)
"""By these a proxy on this machine is known: who asks it may be anybody."""


class Access(enum.Enum):
    """What whoever asks may do."""

    NONE = "none"
    LOOK = "look"
    ACT = "act"


class Refused(Exception):  # noqa: N818  no failure of ours
    """Raised when a request is not to be done; `status` is HTTP's."""

    def __init__(self, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """Let requests in.

    Args:
        auth: a password, a callable, or None for this machine alone.
        read_only: nobody may act.
        secret: what cookies are signed with, where several processes serve one dashboard and a
            callable decides; a password serves for it itself.

    Raises:
        SettingsError: the password is empty.
    """

    def __init__(self, auth: Auth, *, read_only: bool = False, secret: str | None = None) -> None:
        if isinstance(auth, str) and not auth:
            raise SettingsError("the password is empty; None lets this machine alone in")
        self._auth = auth
        self._read_only = read_only
        self._tries = _Tries()
        given = secret or (auth if isinstance(auth, str) else None)
        # Slow, so that a cookie that was stolen does not tell the password.
        self._key = (
            secrets.token_bytes(32)
            if given is None
            else hashlib.scrypt(given.encode(), salt=SALT, n=2**14, r=8, p=1, dklen=32)
        )
        self._password = self._digest(auth) if isinstance(auth, str) else b""

    @property
    def is_open_here(self) -> bool:
        """Whether it lets this machine in, and nobody else."""
        return self._auth is None

    @property
    def asks_password(self) -> bool:
        """Whether there is a page to sign in."""
        return isinstance(self._auth, str)

    async def access(self, request: Request) -> Access:
        """Return what a request may do."""
        says: Any
        if self._auth is None:
            says = is_of_this_machine(request)
        elif isinstance(self._auth, str):
            says = self._holds(request.cookies.get(SESSION, ""))
        else:
            says = self._auth(request)
            if inspect.isawaitable(says):
                says = await says
        if says == "read":
            return Access.LOOK
        if says is not True:
            return Access.NONE
        return Access.LOOK if self._read_only else Access.ACT

    def sign_in(self, request: Request, password: str) -> str | None:
        """Return the value of a session's cookie for the right password, None for a wrong one.

        Raises:
            Refused: too many wrong ones came from there.
        """
        peer = request.client.host if request.client else ""
        if not self._tries.may_try(peer):
            raise Refused("Too many wrong passwords. Wait a minute.", 429)
        if not hmac.compare_digest(self._digest(password), self._password):
            self._tries.note(peer)
            return None
        body = f"{int(time.time()) + SESSION_S}.{secrets.token_hex(8)}"
        return f"{body}.{self._sign('session', body)}"

    def token_of(self, cookies: Mapping[str, str], csrf: str) -> str:
        """Return the token that forms of a page hold, given the value of its cookie."""
        return self._sign("csrf", f"{csrf} {cookies.get(SESSION, '')}")

    def check_post(self, request: Request, token: str) -> None:
        """Raise `Refused` when a POST does not come from a page of ours."""
        came_from = request.headers.get("origin") or request.headers.get("referer", "")
        came_host = split(came_from).netloc
        if not came_host or came_host != request.headers.get("host", ""):
            raise Refused(
                "This form was sent from another site, or by way of a proxy that does not pass on "
                "the Host header. Nothing was done."
            )
        csrf = request.cookies.get(TOKEN, "")
        if not csrf or not hmac.compare_digest(
            token.encode(errors="replace"), self.token_of(request.cookies, csrf).encode()
        ):
            raise Refused(
                "This form is out of date: go back and load the page again. Nothing was done."
            )

    def _holds(self, cookie: str) -> bool:
        body, _, signature = cookie.rpartition(".")
        until, _, _ = body.partition(".")
        wanted = self._sign("session", body)
        if not hmac.compare_digest(signature.encode(errors="replace"), wanted.encode()):
            return False
        return until.isdigit() and int(until) > time.time()

    def _sign(self, kind: str, text: str) -> str:
        told = f"{kind} {text}".encode(errors="surrogateescape")
        return hmac.new(self._key, told, hashlib.sha256).hexdigest()

    def _digest(self, password: str) -> bytes:
        """Return a digest of one length for passwords of any."""
        told = password.encode(errors="surrogateescape")
        return hmac.new(self._key, told, hashlib.sha256).digest()


class _Tries:
    """Counts wrong passwords by address."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()

    def may_try(self, peer: str) -> bool:
        """Tell whether one more may be tried."""
        since = time.monotonic() - TRIES_S
        for known in list(self._wrong):
            kept = [at for at in self._wrong[known] if at > since]
            if kept:
                self._wrong[known] = kept
            else:
                del self._wrong[known]
        return (
            len(self._wrong.get(peer, ())) < TRIES
            and sum(map(len, self._wrong.values())) < 10 * TRIES
        )

    def note(self, peer: str) -> None:
        """Note a wrong one."""
        self._wrong.setdefault(peer, []).append(time.monotonic())
        if len(self._wrong) > MOST_ADDRESSES:
            self._wrong.popitem(last=False)


def is_of_this_machine(request: Request) -> bool:
    """Tell whether a request comes from this machine, by a name of its own, and by no proxy."""
    if any(name in request.headers for name in PROXIED):
        return False
    peer = request.client.host if request.client else ""
    name = split(f"//{request.headers.get('host', '')}").hostname or ""
    return is_loopback(peer) and is_loopback(name)


def split(address: str) -> SplitResult:
    """Take an address apart; one that is none has no parts."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def is_loopback(host: str) -> bool:
    """Tell whether an address, or the name of a host, is that of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def put_cookie(response: Response, request: Request, name: str, value: str, *, age_s: int) -> None:
    """Set a cookie that scripts cannot read, and that other sites' forms do not bring.

    Links of other sites do: whoever follows one would else be asked for the password again.
    """
    response.set_cookie(
        name,
        value,
        max_age=age_s,
        path=request.scope.get("root_path", "") or "/",
        secure=request.scope.get("scheme") == "https",
        httponly=True,
        samesite="lax",
    )


__all__ = [
    "SESSION",
    "TOKEN",
    "Access",
    "Auth",
    "Guard",
    "Refused",
    "is_loopback",
    "put_cookie",
    "split",
]
