"""CloudEvents 1.0 as other programs send them: one JSON document, or beside a message on AMQP."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Self
from uuid import NAMESPACE_OID, uuid5

from pydantic import BaseModel, ConfigDict, Field

_REQUIRED = frozenset({"specversion", "id", "source", "type"})
_PREFIXES = ("cloudEvents:", "cloudEvents_", "ce-")
"""Of headers in binary mode: the first two are the AMQP binding's (3.1.3.1), the last is ours."""

_Word = Annotated[str, Field(min_length=1, max_length=1024)]


class CloudEvent(BaseModel):
    """The attributes of one that are of use here; others are kept as they are.

    Attributes:
        id: with the source it names the event.
        source: where it comes from, a URI reference.
        type: names the contract.
        time: when it happened, ISO 8601.
        datacontenttype: what its data is; JSON if it says nothing.
        dataschema: ``urn:umbel:<contract>:<version>`` names a version.
        umbelversion: our extension: likewise.
    """

    model_config = ConfigDict(extra="allow")

    specversion: Annotated[str, Field(pattern=r"^1\.")]
    id: _Word
    source: _Word
    type: _Word
    time: str | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    umbelversion: Annotated[int, Field(ge=1)] | None = None

    @classmethod
    def beside(cls, headers: Mapping[str, Any]) -> Self | None:
        """From a message's headers (binary mode); None if there is none.

        Raises:
            pydantic.ValidationError: one that lacks what it must have.
        """
        attributes = {
            name.removeprefix(prefix): value
            for prefix in _PREFIXES
            for name, value in headers.items()
            if name.startswith(prefix)
        }
        return cls.model_validate(attributes) if "specversion" in attributes else None

    @classmethod
    def inside(cls, content: Any) -> Self | None:
        """From a JSON document (structured mode); None if it is another one.

        Raises:
            pydantic.ValidationError: as above.
        """
        is_one = isinstance(content, dict) and content.keys() >= _REQUIRED
        return cls.model_validate(content) if is_one else None

    @property
    def data(self) -> Any:
        """What it carries in structured mode: JSON, or bytes where it says so.

        Raises:
            ValueError: no base64.
        """
        others = self.model_extra or {}
        if "data_base64" not in others:
            return others.get("data", {})
        try:
            return base64.b64decode(str(others["data_base64"]), validate=True)
        except binascii.Error as error:
            raise ValueError(f"data_base64: {error}") from error

    @property
    def unique_id(self) -> str:
        """A UUID (version 5, OID namespace) of ``<source> <id>``: the same for each copy."""
        return str(uuid5(NAMESPACE_OID, f"{self.source} {self.id}"))

    def headers(self) -> dict[str, Any]:
        """Its attributes as headers of ours."""
        said = self.model_dump(exclude_none=True)
        return {
            f"ce-{name}": value
            for name, value in said.items()
            if isinstance(value, str | int) and name not in {"data", "data_base64"}
        }
