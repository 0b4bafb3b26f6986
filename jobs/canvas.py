"""Chains of jobs: a step whose result can never be the next one's message is refused early.

With ``|`` when it is built, else (``chain(…)``, ``link=``) before anything is sent: Celery has no
place at the building of those. What only may not fit is found when the result is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from celery.canvas import Signature, _chain
from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from umbel.config.errors import ContractError
from umbel.jobs.contracts import Message

Jobs = Mapping[str, Any]


class JobSignature(Signature):
    """Celery's, of a job."""

    def __or__(self, other: Any) -> Any:
        """The job, then what follows."""
        return _checked(self._type.app.jobs, super().__or__(other))


class JobChain(_chain):
    """Celery's, which begins with a job."""

    def __or__(self, other: Any) -> Any:
        """All of it, then what follows."""
        return _checked(self.app.jobs, super().__or__(other))


def _checked(jobs: Jobs, built: Any) -> Any:
    if type(built) is _chain:
        built = JobChain(*built.tasks, app=built._app)
    if isinstance(built, JobChain):
        check_steps(jobs, built.tasks)
    return built


def check_followups(jobs: Jobs, name: str, options: Mapping[str, Any]) -> None:
    """Refuse to send a job with what can never follow it.

    Args:
        jobs: of the app, by their names.
        name: of the one that is sent.
        options: Celery's, of the send.

    Raises:
        ContractError: a next step, or a step after it, never gets a message that fits.
    """
    check_steps(jobs, [{"task": name}, *reversed(options.get("chain") or ())])
    for following in options.get("link") or ():
        check_steps(jobs, [{"task": name}, following])


def check_steps(jobs: Jobs, steps: Sequence[Mapping[str, Any]]) -> None:
    """Refuse steps of which one never gets a message that fits.

    Args:
        jobs: of the app, by their names.
        steps: Celery's signatures, in their order.

    Raises:
        ContractError: says which and why.
    """
    for before, after in pairwise(steps):
        job, following = jobs.get(before["task"]), jobs.get(after["task"])
        if following is None:
            continue
        arguments: tuple[Any, ...] = tuple(after.get("args") or ())
        if after.get("immutable"):
            if len(arguments) == 1 and isinstance(arguments[0], Message | Mapping):
                following.contract.checked(arguments[0])
        elif arguments:
            why = "gets the result of the step before, and has a message of its own already: .si(…)"
            raise ContractError(following.contract.contract_name, [why])
        elif job and (why := _never(job.result_annotation, following.contract)):
            where = f"after {job.name}, whose result is {_name(job.result_annotation)}: {why}"
            raise ContractError(following.contract.contract_name, [where])


def _never(result: Any, contract: type[Message]) -> str:
    """Why no result of a type is a message of a contract; empty if one may be."""
    try:
        schema = TypeAdapter(result).json_schema(mode="serialization")
    except PydanticInvalidForJsonSchema:
        return ""
    if "$ref" in schema:
        schema = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    kind = schema.get("type", "object")
    if kind != "object":
        return f"expected an object, and it is of type {kind}"
    if "properties" not in schema or not schema.get("type") or _reshapes(contract):
        return ""
    fields = contract.model_fields
    aliases = {field.alias for field in fields.values() if field.alias}
    if unknown := schema["properties"].keys() - fields.keys() - aliases:
        return f"it has no field {', '.join(sorted(unknown))}"
    missing = [
        name
        for name, field in fields.items()
        if field.is_required() and not {name, field.alias} & schema["properties"].keys()
    ]
    return f"the field {', '.join(missing)} is not in the result" if missing else ""


def _reshapes(contract: type[Message]) -> bool:
    """Whether a message may come in a form that its fields do not tell."""
    validators = contract.__pydantic_decorators__.model_validators.values()
    aliased = any(
        one.validation_alias not in {None, one.alias} for one in contract.model_fields.values()
    )
    return aliased or any(validator.info.mode != "after" for validator in validators)


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)
