"""Errors as the OpenAI API has them: `{"error": {"message", "type", "param", "code"}}` with the right status.

The official client repeats a request after 408, 409, 429 and every 5xx, and no other. So a mistake of the client is
never one of these, and what is worth repeating always is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from foundry.config import FoundryError

CLIENT_CLOSED = 499  # what nginx logs when the client went away first; it is never sent


class ApiError(FoundryError):
    """A request that gets an error instead of an answer.

    Attributes:
        status: of HTTP.
        param: the field of the request that is wrong, such as `messages[0].content`.
        code: a name of the error for programs, such as `context_length_exceeded`.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, param, code)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def __str__(self) -> str:
        return self.message

    @property
    def type(self) -> str:
        """OpenAI's kind of error for the status."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return kinds.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> bytes:
        """The error object as JSON."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False).encode()


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A mistake in the request: status 400."""
    return ApiError(400, message, param=param, code=code)


def unknown_model(name: str, known: list[str]) -> ApiError:
    """No model is called so: status 404."""
    there = f"this server has {', '.join(known)}" if known else "this server has no model yet"
    return ApiError(404, f"the model {shown(name)} does not exist: {there}", param="model", code="model_not_found")


def unavailable(message: str, seconds: int = 1) -> ApiError:
    """The server takes no requests for the moment: status 503 with Retry-After in seconds."""
    return ApiError(503, message, code="unavailable", headers={"Retry-After": str(seconds)})


def internal(request_id: str) -> ApiError:
    """A bug: its traceback is in the server's log only."""
    return ApiError(500, f"the server failed at this request; its log has the reason under {request_id}")


def shown(text: str, length: int = 80) -> str:
    """A client's text for a message: quoted, and short."""
    return repr(text if len(text) <= length else text[: length - 1] + "…")
