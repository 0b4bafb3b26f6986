"""The contracts in OpenAPI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import models_json_schema

from umbel.jobs.job import Job

JsonSchema = dict[str, Any]

# What `problems` puts in the place of FastAPI's own.
_FIELD_ERROR = {
    "title": "FieldError",
    "type": "object",
    "required": ["field", "detail"],
    "properties": {"field": {"type": "string"}, "detail": {"type": "string"}},
}
# FastAPI's own way of telling what is taken from what is given, and so never a name of its own.
_REFERENCE = "#/components/schemas/{model}-Input"
_RESULT_REFERENCE = "#/components/schemas/{model}-Result"


def contract_schemas(
    jobs: Sequence[Job[Any, Any, Any]],
) -> tuple[dict[str, JsonSchema], dict[str, JsonSchema]]:
    """The schemas of what jobs take.

    All at once, so that two models with one name get two.

    Returns:
        The schema of each job's body by the job's name, and the components to which they refer.
    """
    if not jobs:
        return {}, {}
    contracts = dict.fromkeys(job.contract for job in jobs)
    schemas, top = models_json_schema(
        [(contract, "validation") for contract in contracts], ref_template=_REFERENCE
    )
    bodies = {job.name: schemas[job.contract, "validation"] for job in jobs}
    return bodies, {f"{name}-Input": schema for name, schema in top.get("$defs", {}).items()}


def result_schemas(
    jobs: Sequence[Job[Any, Any, Any]],
) -> tuple[JsonSchema, dict[str, JsonSchema]]:
    """The schema of what jobs give: one alternative each, titled by its name.

    Returns:
        The schema, and the components to which it refers.
    """
    adapters = {job.name: TypeAdapter(job.result_annotation) for job in jobs}
    schemas, top = TypeAdapter.json_schemas(
        [(name, "serialization", one) for name, one in adapters.items() if _has_schema(one)],
        ref_template=_RESULT_REFERENCE,
    )
    alternatives: list[JsonSchema] = [
        {"title": name, "allOf": [schemas.get((name, "serialization"), {})]} for name in adapters
    ]
    result = {"title": "Result", "anyOf": [*alternatives, {"type": "null"}]}
    return result, {f"{name}-Result": schema for name, schema in top.get("$defs", {}).items()}


def _has_schema(adapter: TypeAdapter[Any]) -> bool:
    try:
        adapter.json_schema(mode="serialization")
    except PydanticInvalidForJsonSchema:
        return False  # a type of the user's own
    return True


def json_body(schema: JsonSchema) -> dict[str, Any]:
    """OpenAPI's description of a body."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def add_components(web: FastAPI, components: dict[str, JsonSchema], result: JsonSchema) -> None:
    """Put schemas, and that of every job's result, into the OpenAPI document of `web`."""
    generate = web.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(components, ValidationError=_FIELD_ERROR)
        schemas["Status"]["properties"]["result"] = result
        # Not every 422 is about fields: a key that was used for another message is not.
        schemas["HTTPValidationError"]["required"] = ["type", "title", "status"]
        return document

    web.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
