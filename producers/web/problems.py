"""Every error as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_problem.error import Problem, ServerProblem
from fastapi_problem.handler import add_exception_handler, new_exception_handler
from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import TimeoutError as StoreTimeoutError
from starlette.requests import ClientDisconnect

from umbel.config.errors import (
    BlobError,
    BrokerUnavailable,
    ContractError,
    MessageRefused,
    StoreRequired,
    UmbelError,
    UnknownJob,
)
from umbel.jobs.blobs import BlobTooLarge

RETRY_AFTER_S = 5

_log = logging.getLogger("umbel.web")

STORE_AWAY = (StoreConnectionError, StoreTimeoutError)
_FORESEEN = (UmbelError, *STORE_AWAY, ClientDisconnect)


class InternalError(ServerProblem):
    """What nobody foresaw: the log has it, a stranger does not."""

    title = "Internal server error"

    def __init__(self, _detail: str = "") -> None:
        super().__init__("Something went wrong here; it is in the service's log.")


def problem(status: int, title: str, detail: str, **more: Any) -> Problem:
    """A problem to raise.

    Args:
        status: the HTTP status.
        title: which kind of problem it is.
        detail: what came, and what to do.
        more: further members of the document, or ``headers``.
    """
    return Problem(title, title.lower().replace(" ", "-"), detail, status, **more)


def unavailable(title: str, detail: str) -> Problem:
    """A problem that goes away by itself: 503, and when to come again."""
    return problem(503, title, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def problem_of(error: Exception) -> Problem:  # noqa: PLR0911  a table
    """What a foreseen error is over HTTP.

    Our own words where the error's name a server or a directory, which are no stranger's business.
    """
    match error:
        case ContractError():
            errors = [_field_error(*line.partition(": ")) for line in error.problems]
            return problem(422, "Message does not fit", str(error), errors=errors)
        case UnknownJob():
            return problem(404, "Unknown job", str(error))
        case BlobTooLarge():
            return problem(413, "File too large", str(error))
        case BlobError():
            return unavailable("Files unavailable", "the file store failed; it is in the log")
        case BrokerUnavailable():
            detail = "the broker did not take the job in time, or its answer was lost: "
            return unavailable(
                "Broker unavailable", f"{detail}repeat the request with the same Idempotency-Key"
            )
        case MessageRefused():
            return unavailable("Job refused", "the broker did not take the job; it is in the log")
        case StoreRequired():
            return problem(503, "No state store", str(error))
        case StoreConnectionError() | StoreTimeoutError():
            return unavailable("Store unavailable", "the state store does not answer")
        case ClientDisconnect():
            return problem(400, "Incomplete request", "the connection ended before the request")
        case _:
            return InternalError()


def add_problems(web: FastAPI) -> None:
    """Let every error of `web` become a problem, FastAPI's own included."""
    handler = new_exception_handler(
        pre_hooks=[lambda _request, error: _log_failure(error)],
        unhandled_wrappers={"default": InternalError},
        handlers=dict.fromkeys(_FORESEEN, lambda _handler, _request, error: problem_of(error)),
        request_validation_handler=lambda _handler, _request, error: _misfit(error),
    )
    add_exception_handler(web, handler)
    # Starlette answers the unforeseen and raises it again, for the server to log with its traceback
    # and to close the connection. What is foreseen is answered further in.
    for foreseen in _FORESEEN:
        web.add_exception_handler(foreseen, handler)


def _log_failure(error: Exception) -> None:
    """A line for what is not the client's doing; the answer may not name the server that failed."""
    if isinstance(error, _FORESEEN) and (status := problem_of(error).status) >= 500:
        why = error if status == 500 else None
        _log.warning("%s: %s", type(error).__name__, error, exc_info=why)


def _misfit(error: RequestValidationError) -> Problem:
    """FastAPI's own check, of paths and headers, in the form of ours."""
    errors = [
        _field_error(".".join(str(part) for part in one["loc"]), "", one["msg"])
        for one in error.errors()
    ]
    return problem(422, "Request does not fit", "see errors", errors=errors)


def _field_error(field: str, _separator: str, detail: str) -> dict[str, str]:
    return {"field": field, "detail": detail}
