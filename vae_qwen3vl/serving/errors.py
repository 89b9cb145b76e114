"""Refusals in the form of OpenAI's interface: a status, and a message that says the remedy."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_COME_AGAIN = {429: "1", 503: "5"}
"""Seconds after which a client may try once more."""


class ApiError(HTTPException):
    """A request is refused.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        code: the reason as one word, for programs.
        param: the field of the request that it is about.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(status, message)
        self.code, self.param = code, param

    def body(self) -> dict[str, Any]:
        """Return what the client is told."""
        kind = _TYPES.get(self.status_code, "server_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the whole answer."""
        headers = {}
        if self.status_code in _COME_AGAIN:
            headers["Retry-After"] = _COME_AGAIN[self.status_code]
        if self.status_code == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status_code, headers)
