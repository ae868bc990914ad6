"""The ASGI application: what is checked before a route, and how every error becomes OpenAI's error object."""

from __future__ import annotations

import ipaddress
import re
import secrets
from functools import cache
from http import HTTPStatus

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foundry.serving.body import Disconnected
from foundry.serving.errors import CLIENT_CLOSED, ApiError, internal, invalid, shown
from foundry.serving.interface import Server
from foundry.serving.routes import add_routes, describe
from foundry.serving.state import Call, Common
from foundry.utils.log import get_logger

OPEN = frozenset({"/", "/health", "/ready"})  # routes without a key: what a probe asks for, and the page
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # others are one in log and metrics
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
EXPOSED = ("X-Request-Id", "X-Foundry-Model", "X-Foundry-Seed", "Retry-After")


def build_app(server: Server) -> FastAPI:
    """The application that answers for a server."""
    app = FastAPI(
        title="Foundry",
        description="OpenAI-compatible server of one model. Every answer names the weights and the seed it comes from.",
        docs_url=None,  # their pages load scripts from other servers
        redoc_url=None,
        redirect_slashes=False,
    )
    add_routes(app, Common(server))
    app.openapi = cache(lambda: describe(app))  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Gate, server=server, paths=frozenset(getattr(r, "path", "") for r in app.routes))
    if server.config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=server.config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=list(EXPOSED),
        )
    return app


def _http_error(request: Request, error: Exception) -> Response:
    """What the router raises: an unknown path, or a method that a path does not have."""
    if not isinstance(error, HTTPException):  # Starlette calls it for nothing else
        raise error
    method, path = request.method, request.url.path
    messages = {404: f"there is no route {shown(path)}", 405: f"{shown(path)} does not accept {shown(method, 20)}"}
    message = messages.get(error.status_code, HTTPStatus(error.status_code).phrase)
    raise ApiError(error.status_code, message, code="unknown_route", headers=error.headers or {})


class Gate:
    """Wraps the application: request id, host and key are checked before a byte of the body is read.

    Every response gets the request id; every error its object; every request one line in the log without any text of a
    prompt, not even a path that is not in the table of routes.
    """

    def __init__(self, app: ASGIApp, server: Server, paths: frozenset[str]) -> None:
        self.app, self.server, self._paths = app, server, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        call = scope["foundry.call"] = Call(given if REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}")

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                own = {"X-Request-Id": call.request_id, "X-Content-Type-Options": "nosniff", **call.headers}
                if call.key:
                    own |= call.key.headers()
                extra = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in own.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            self._check(scope, headers, call)
            await self.app(scope, receive, answer)
        except ApiError as e:
            await self._refuse(e, call, answer)
        except Disconnected:
            call.status = CLIENT_CLOSED
        except Exception:
            get_logger().exception(f"an error of the server at {call.request_id}")
            if call.status:  # the response has begun: the connection is closed, which the client notices
                raise
            await self._refuse(internal(call.request_id), call, answer)
        finally:
            self._report(scope, call)

    def _check(self, scope: Scope, headers: Headers, call: Call) -> None:
        if not len(self.server.keys):
            check_host(headers.get("host"), self.server.config.host)
        if scope["path"] not in OPEN:
            given = headers.getlist("authorization")
            call.key = self.server.keys.check(given[0] if len(given) == 1 else None)
            if call.key:
                call.key.admit()
        if scope["query_string"] and scope["path"].startswith("/v1/"):
            name = scope["query_string"].decode("latin-1").partition("=")[0]
            raise invalid(f"this server has no query parameter {shown(name)}", name[:64], "unknown_parameter")

    async def _refuse(self, error: ApiError, call: Call, send: Send) -> None:
        if call.status:
            raise error
        content = error.body()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **error.headers}
        raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": error.status, "headers": raw})
        await send({"type": "http.response.body", "body": content})

    def _report(self, scope: Scope, call: Call) -> None:
        path = scope["path"]  # it names the route if the request did not get as far as the router
        route = getattr(scope.get("route"), "path", path if path in self._paths else "unknown")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.server.observer.responded(method, route, call.status, call.seconds)
        if route == "/ready" or (route in ("/health", "/metrics") and call.status < 400):
            return
        key = [f"key {call.key.name}"] if call.key else []
        notes = ", ".join([call.request_id, *key, *call.notes])
        get_logger().info(f"{method} {route} {call.status} in {call.seconds:.3f} s ({notes})")


def check_host(given: str | None, own: str) -> None:
    """Refuses a foreign name in the header Host where no key protects the server.

    A page of another site can make its own name point to this machine (DNS rebinding) and would then read answers.

    Raises:
        ApiError: 403.
    """
    if given is None:
        return
    name = given.rpartition(":")[0] if re.search(r":\d*$", given) and given.count(":") == 1 else given
    name = re.sub(r"^\[(.*)\](:\d*)?$", r"\1", name)
    if name.lower() in ("localhost", own.lower()):
        return
    try:
        if ipaddress.ip_address(name).is_loopback:
            return
    except ValueError:
        pass
    raise ApiError(
        403,
        f"the header Host is {shown(given)}: a server without API keys answers only to its address on this machine; "
        "set API keys (serving.keys_file or FOUNDRY_API_KEYS) to use it under other names",
        code="unknown_host",
    )
