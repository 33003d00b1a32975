"""The ASGI app: routes, who is let in, headers, and what is said when something goes wrong."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from redis.exceptions import ResponseError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from runner import keys
from runner.codec import PickleCodec
from runner.connection import open_client, settings_of
from runner.connections import TROUBLE
from runner.dashboard import access as access_module
from runner.dashboard.access import SESSION, TOKEN, Access, Guard, Refused, put_cookie, split
from runner.dashboard.asked import Asked, address, fields_of
from runner.dashboard.desk import Desk
from runner.dashboard.live import Live
from runner.dashboard.pages import Action, NotThere, Page
from runner.dashboard.payloads import Unread
from runner.dashboard.render import Renderer
from runner.dashboard.texts import visible
from runner.dashboard.views import ACTIONS, MENU, PAGES
from runner.errors import (
    ArgumentsError,
    FlowNotFound,
    JobNotFound,
    LetterNotFound,
    LimitNotFound,
    RunnerError,
    ScheduleNotFound,
    SettingsError,
)
from runner.signing import SigningKeys, chosen_codec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from arq.connections import RedisSettings
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from runner.client import Client
    from runner.codec import Codec
    from runner.dashboard.access import Auth
    from runner.tasks import Task

logger = logging.getLogger("runner.dashboard")

MOST_BODY = 1_000_000
TYPED, MOST_TYPED = "arguments", 1_500
"""The field of a form that would be a pity to lose, where it fits into an address."""
FLASH, FLASH_S, MOST_FLASH = "runner_said", 30, 300
TOKEN_S = 30 * 24 * 3600
LOADS_S = 15.0
ACTS_S = 60.0
NO_TEXT = "That is no text, and nothing here has such a name."
MISSING = (*(NotThere, JobNotFound, LetterNotFound, FlowNotFound, ScheduleNotFound, LimitNotFound),)

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def dashboard(
    redis: str | RedisSettings = "redis://localhost:6379",
    *,
    auth: Auth = None,
    read_only: bool = False,
    queues: str | Sequence[str] = (keys.DEFAULT_QUEUE,),
    tasks: Sequence[Task[..., Any]] = (),
    codec: str | Codec = "msgpack",
    signing_keys: SigningKeys | None = None,
    secret: str | None = None,
    title: str = "arq-runner",
) -> Dashboard:
    """Return the dashboard as an ASGI app, to be served or mounted.

    It connects when it is first asked for something. Where its lifespan is not run, as in a
    mounted app, close it with ``await app.aclose()``.

    Args:
        redis: the address of Redis, or arq's settings.
        auth: a password; or a callable that gets the request and says True (may act), "read"
            (may look) or False; None lets in this machine alone.
        read_only: nobody may act.
        queues: the queues to show; others that live workers read are found.
        tasks: the tasks, so that their parameters are known to searches and forms.
        codec: that of the fleet. Nothing is unpickled: what is pickled is shown as that.
        signing_keys: the fleet's keys, where it signs.
        secret: signs cookies where `auth` is a callable and several processes serve the dashboard.
        title: what it is called.

    Example:
        >>> app = Starlette(routes=[Mount("/jobs", dashboard(url, auth=os.environ["PASSWORD"]))])

    Raises:
        SettingsError: no queue is named, or an argument makes no sense.
    """
    named = (queues,) if isinstance(queues, str) else tuple(queues)
    if not named:
        raise SettingsError("name at least one queue")
    given = settings_of(redis) if isinstance(redis, str) else redis
    settings = replace(given, conn_retries=0)  # a page that cannot be says so at once
    chosen = chosen_codec(codec, signing_keys)
    assert chosen is not None  # None is what a worker may have

    async def connect() -> Client:
        readable = Unread() if isinstance(chosen, PickleCodec) else chosen
        return await open_client(settings, codec=readable, queue=named[0])

    guard = Guard(auth, read_only=read_only, secret=secret)
    return Dashboard(Desk(connect, named, tasks), guard, title)


class Dashboard:
    """The app; made by `dashboard`."""

    def __init__(self, desk: Desk, guard: Guard, title: str) -> None:
        self._desk = desk
        self._guard = guard
        self._live = Live()
        self._renderer = Renderer(title)
        routes = [Route(page.path, partial(self._page, page)) for page in PAGES]
        routes += [Route(a.path, partial(self._act, a), methods=["POST"]) for a in ACTIONS]
        routes += [
            Route("/static/{name}", self._static),
            Route("/sign-in", self._sign_in, methods=["GET", "POST"]),
            Route("/sign-out", self._sign_out, methods=["POST"]),
        ]
        handlers: Any = {404: self._lost, 405: self._lost, 500: self._failed}
        self._app: ASGIApp = Starlette(
            routes=routes, exception_handlers=handlers, lifespan=self._lifespan
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # there are none here
            return
        await self._app(scope, receive, _with_headers(send))

    def close(self) -> None:
        """End what is sent without end, so that a server can stop. Idempotent."""
        self._live.close()

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        self._live.close()
        await self._desk.aclose()

    @asynccontextmanager
    async def _lifespan(self, _app: object) -> AsyncIterator[None]:
        yield
        await self.aclose()

    async def _page(self, page: Page, request: Request) -> Response:
        access = await self._guard.access(request)
        if access is Access.NONE:
            return self._turned_away(request)
        try:
            asked = _asked(request, may_act=access is Access.ACT)
            if _wants_events(request):
                return self._stream(page, asked)
            async with asyncio.timeout(LOADS_S):
                values = await page.load(self._desk, asked)
        except (*TROUBLE, RunnerError, UnicodeError, *MISSING) as exc:
            return self._wrong(request, exc, access)
        values |= self._common(request, asked, is_in=True) | {"page": page}
        return self._answer(request, page.template, values)

    def _stream(self, page: Page, asked: Asked) -> Response:
        if self._live.is_full:
            return Response("as many look as may", 503, {"retry-after": "30"})

        async def make() -> str:
            async with asyncio.timeout(LOADS_S):
                values = await page.load(self._desk, asked)
            given = {"asked": asked, "root": asked.root, "may_act": asked.may_act, "page": page}
            return self._renderer.live(page.template, values | given)

        name = f"{asked.may_act} {asked.root}{page.path} {sorted(asked.fields.items())}"
        return StreamingResponse(
            self._live.stream(name, make),
            media_type="text/event-stream",
            # nginx would gather events before it passes them on.
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _act(self, action: Action, request: Request) -> Response:
        access = await self._guard.access(request)
        try:
            if access is Access.NONE:
                return self._turned_away(request)
            asked = _asked(request, await _body(request), may_act=access is Access.ACT)
            self._guard.check_post(request, asked.text("csrf"))
            _check_may_act(access)
        except (Refused, RunnerError) as exc:
            return self._wrong(request, exc, access)
        said = await self._done(action, asked)
        logger.info("%s by %s: %s", action.path, _who(request), said)
        self._desk.forget()
        response = RedirectResponse(_back(request, asked, keeps=said.startswith("! ")), 303)
        told = quote(visible(said)[:MOST_FLASH])
        put_cookie(response, request, FLASH, told, age_s=FLASH_S)
        return response

    async def _done(self, action: Action, asked: Asked) -> str:
        try:
            async with asyncio.timeout(ACTS_S):
                return await action.act(self._desk, asked)
        except TROUBLE as exc:
            logger.warning("%s failed: %s", action.path, exc)
            return f"! Redis does not answer ({type(exc).__name__}); look whether it was done."
        except UnicodeError:
            return f"! {NO_TEXT}"
        except (RunnerError, NotThere) as exc:
            return f"! {exc}"

    async def _sign_in(self, request: Request) -> Response:
        try:
            asked = _asked(request)
        except RunnerError as exc:
            return self._wrong(request, exc, Access.NONE)
        if not self._guard.asks_password:
            return RedirectResponse(f"{asked.root}/", 303)
        said, status = "", 200
        if request.method == "POST":
            try:
                form = _asked(request, await _body(request))
                self._guard.check_post(request, form.text("csrf"))
                session = self._guard.sign_in(request, form.fields.get("password", ""))
            except (Refused, RunnerError) as exc:
                return self._wrong(request, exc, Access.NONE)
            if session is not None:
                response = RedirectResponse(f"{asked.root}/", 303)
                put_cookie(response, request, SESSION, session, age_s=access_module.SESSION_S)
                return response
            said, status = "That is not the password.", 401
            logger.warning("a wrong password came from %s", _who(request))
        values = self._common(request, asked, is_in=False) | {"wrong": said}
        return self._answer(request, "sign_in.html", values, status)

    async def _sign_out(self, request: Request) -> Response:
        try:
            asked = _asked(request, await _body(request))
            self._guard.check_post(request, asked.text("csrf"))
        except (Refused, RunnerError) as exc:
            return self._wrong(request, exc, Access.NONE)
        response = RedirectResponse(f"{asked.root}/sign-in", 303)
        put_cookie(response, request, SESSION, "", age_s=0)
        return response

    async def _static(self, request: Request) -> Response:
        found = self._renderer.static.get(request.path_params["name"])
        if found is None:
            return Response("there is no such file", 404)
        kind, body = found
        kept = {"cache-control": "public, max-age=31536000, immutable"}
        is_named = request.scope["query_string"] == f"v={self._renderer.version}".encode()
        return Response(body, headers={"content-type": kind, **(kept if is_named else {})})

    async def _lost(self, request: Request, exc: Any) -> Response:
        try:
            access = await self._guard.access(request)
        except HTTPException as refusal:  # the application's own, which a handler cannot raise
            return Response(refusal.detail, refusal.status_code, refusal.headers)
        if access is Access.NONE:
            return self._turned_away(request)
        what = "There is no such page." if exc.status_code == 404 else "This is done by a form."  # noqa: PLR2004
        return self._said(request, what, exc.status_code, access)

    async def _failed(self, request: Request, _exc: Exception) -> Response:
        """Say that there is a fault; it is raised behind this, so that the server logs it."""
        text = "Something went wrong in the dashboard. Its log says what."
        return self._said(request, text, 500, Access.NONE)

    def _turned_away(self, request: Request) -> Response:
        """Answer somebody who may not look: with the page to sign in, where there is one."""
        root = request.scope.get("root_path", "")
        if not self._guard.asks_password:
            why = (
                "This dashboard has no password, so it answers to this machine alone, under the "
                "name localhost. Set a password to open it to others."
                if self._guard.is_open_here
                else "You may not see this page."
            )
            return self._said(request, why, 403, Access.NONE)
        if request.method in ("GET", "HEAD") and not _wants_events(request):
            return RedirectResponse(f"{root}/sign-in", 303)
        return Response("sign in first\n", 401)

    def _wrong(self, request: Request, exc: Exception, access: Access) -> Response:
        if isinstance(exc, Refused):
            logger.warning("%s refused for %s: %s", request.scope["path"], _who(request), exc)
            return self._said(request, str(exc), exc.status, access)
        if isinstance(exc, MISSING):
            return self._said(request, str(exc), 404, access)
        if isinstance(exc, UnicodeError):  # a name that Redis could not be asked for
            return self._said(request, NO_TEXT, 400, access)
        if isinstance(exc, RunnerError):
            return self._said(request, str(exc), 400, access)
        if isinstance(exc, ResponseError):
            logger.warning("%s failed: Redis refuses: %s", request.scope["path"], exc)
            return self._said(request, f"Redis refuses: {exc}", 503, access)
        logger.warning("%s failed: Redis does not answer: %r", request.scope["path"], exc)
        text = f"Redis does not answer ({type(exc).__name__}). Load the page again in a moment."
        return self._said(request, text, 503, access)

    def _said(self, request: Request, text: str, status: int, access: Access) -> Response:
        asked = _asked(request, may_act=access is Access.ACT, is_read=False)
        values = self._common(request, asked, is_in=access is not Access.NONE)
        values |= {"text": text, "status": status}
        return self._answer(request, "message.html", values, status)

    def _common(self, request: Request, asked: Asked, *, is_in: bool) -> dict[str, Any]:
        return {
            "is_in": is_in,
            "asked": asked,
            "root": asked.root,
            "may_act": asked.may_act,
            "menu": MENU,
            "page": None,
            "said": unquote(request.cookies.get(FLASH, "")),
            "signs_out": self._guard.asks_password,
        }

    def _answer(
        self, request: Request, template: str, values: Mapping[str, Any], status: int = 200
    ) -> Response:
        csrf = request.cookies.get(TOKEN, "")
        is_new = not csrf
        csrf = csrf or secrets.token_hex(16)
        token = self._guard.token_of(request.cookies, csrf)
        body = self._renderer.page(template, {**values, "csrf": token})
        headers = {"cache-control": "no-store", "content-type": "text/html; charset=utf-8"}
        response = Response(body, status, headers)
        if is_new:
            put_cookie(response, request, TOKEN, csrf, age_s=TOKEN_S)
        if FLASH in request.cookies:
            put_cookie(response, request, FLASH, "", age_s=0)
        return response


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = [*message.get("headers", [])]
            given += [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": given}
        await send(message)

    return sending


def _asked(
    request: Request, form: bytes = b"", *, may_act: bool = False, is_read: bool = True
) -> Asked:
    """Read what a request asks for, in its address and its form."""
    root = request.scope.get("root_path", "")
    path = request.scope["path"].removeprefix(root) or "/"
    fields = {**fields_of(request.scope["query_string"]), **fields_of(form)} if is_read else {}
    return Asked(root, path, fields, may_act)


def _wants_events(request: Request) -> bool:
    return request.method == "GET" and "text/event-stream" in request.headers.get("accept", "")


def _check_may_act(access: Access) -> None:
    if access is not Access.ACT:
        raise Refused("This dashboard is read-only. Nothing was done.")


async def _body(request: Request) -> bytes:
    """Read a form; raise `Refused` when it is none, or too large."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise Refused("This is no form.", 415)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            raise Refused(f"This form holds more than {MOST_BODY:,} bytes.", 413)
    return body


def _back(request: Request, asked: Asked, *, keeps: bool = False) -> str:
    """Return the page that a form was on; `check_post` has seen that it is ours.

    Args:
        request: the form.
        asked: what it says.
        keeps: it was refused, so that what was typed is wanted once more.
    """
    came = split(request.headers.get("referer", ""))
    is_ours = came.netloc == request.headers.get("host") and came.path.startswith(f"{asked.root}/")
    if not is_ours or came.path.startswith(("//", "/\\")):  # which browsers take for a host
        return f"{asked.root}/"
    try:
        fields = fields_of(came.query.encode("latin-1", "replace"))
    except ArgumentsError:
        fields = {}  # more of them than a page of ours has
    fields.pop(TYPED, None)
    if keeps and len(typed := asked.fields.get(TYPED, "")) <= MOST_TYPED:
        fields[TYPED] = typed
    return address("", came.path, **fields)


def _who(request: Request) -> str:
    return request.client.host if request.client else "somebody"


__all__ = ["Dashboard", "dashboard"]
