"""The contracts in OpenAPI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
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


def json_body(schema: JsonSchema) -> dict[str, Any]:
    """OpenAPI's description of a body."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def add_components(web: FastAPI, components: dict[str, JsonSchema]) -> None:
    """Put schemas into the OpenAPI document of `web`, where it is asked for."""
    generate = web.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(components, ValidationError=_FIELD_ERROR)
        return document

    web.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
