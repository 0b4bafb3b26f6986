"""Every error as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI
from fastapi_problem.error import Problem, ServerProblem
from fastapi_problem.handler import add_exception_handler, new_exception_handler

from umbel.config.errors import (
    BlobError,
    BrokerUnavailable,
    ContractError,
    StoreRequired,
    UmbelError,
    UnknownJob,
)

RETRY_AFTER_S = 5


class InternalError(ServerProblem):
    """What nobody foresaw: the log has it, a stranger does not."""

    title = "Internal server error"

    def __init__(self, _detail: str) -> None:
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


def problem_of(error: UmbelError) -> Problem:
    """What one of our errors is over HTTP."""
    match error:
        case ContractError():
            problems = list(error.problems)
            return problem(422, "Message does not fit", str(error), errors=problems)
        case UnknownJob():
            return problem(404, "Unknown job", str(error))
        case BlobError():
            return problem(404, "Unknown file", str(error))
        case BrokerUnavailable():
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            return problem(503, "Broker unavailable", str(error), headers=headers)
        case StoreRequired():
            return problem(503, "No state store", str(error))
        case _:
            return InternalError("")


def add_problems(web: FastAPI) -> None:
    """Let every error of `web` become a problem, FastAPI's own included."""
    handler = new_exception_handler(
        logger=logging.getLogger("umbel.web"),
        unhandled_wrappers={"default": InternalError},
        handlers={UmbelError: lambda _handler, _request, error: problem_of(error)},
    )
    add_exception_handler(web, handler)
    # That one stands where Starlette raises again after it has answered, which ends the connection;
    # what is foreseen is answered further in.
    for foreseen in (UmbelError, Problem):
        web.add_exception_handler(foreseen, handler)
