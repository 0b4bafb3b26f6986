"""Messages and their contracts: a wire name, a version and a Pydantic schema."""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, SecretBytes, SecretStr, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from umbel.config.errors import ContractError

WIRE_NAME = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*)*")


class Message(BaseModel):
    """A message with a contract: what producers and consumers agree on.

    The class arguments name the contract; they are explicit, so that moving or renaming the
    class never changes what is on the wire.

        class ResizeImage(Message, name="image.resize", version=1):
            width: int

    Args:
        name: the wire name, lower case words joined by dots.
        version: counts up from 1 with each change that old readers cannot read.
        aliases: the names that it had before: messages under these are still taken.

    Raises:
        TypeError: at declaration, when a name or the version is missing or malformed.
    """

    # On the wire bytes are base64 and names are the aliases, in both directions.
    model_config = ConfigDict(
        extra="forbid",
        ser_json_bytes="base64",
        val_json_bytes="base64",
        serialize_by_alias=True,
        validate_by_name=True,
        validate_by_alias=True,
    )

    contract_name: ClassVar[str]
    contract_version: ClassVar[int]
    contract_aliases: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        version: int | None = None,
        aliases: Sequence[str] = (),
        **config: Any,
    ) -> None:
        super().__init_subclass__(**config)
        if name is None and version is None and not aliases:
            return  # a common base of several messages has no contract of its own
        if isinstance(aliases, str):
            raise TypeError(
                f"{cls.__name__}: aliases={aliases!r}; expected several, ({aliases!r},)"
            )
        for one in (name, *aliases):
            if one is None or not WIRE_NAME.fullmatch(one):
                raise TypeError(
                    f"{cls.__name__}: name={one!r} is no wire name; "
                    'expected lower case words joined by dots, name="image.resize"'
                )
        if name is None or len({name, *aliases}) <= len(aliases):
            raise TypeError(f"{cls.__name__}: aliases={aliases!r} repeat a name")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise TypeError(f"{cls.__name__}: version={version!r}; expected 1, 2, 3 …")
        cls.contract_name = name
        cls.contract_version = version
        cls.contract_aliases = tuple(aliases)

    @classmethod
    def checked(cls, message: Self | Mapping[str, Any]) -> Self:
        """The message after the producer's check: what will be on the wire is read back.

        Args:
            message: of this class (it may have been changed since it was built), or a mapping
                of what is to be on the wire. Unknown fields are refused.

        Raises:
            ContractError: with a line for each field that does not fit.
        """
        if isinstance(message, BaseModel) and type(message) is not cls:
            problem = f"expected a {cls.__name__}, got a {type(message).__name__}"
            raise ContractError(cls.contract_name, [problem])
        try:
            wire = message.payload() if isinstance(message, Message) else message
            return cls._read(wire, extra="forbid")
        except PydanticSerializationError as error:
            raise ContractError(cls.contract_name, [str(error)]) from error

    @classmethod
    def encoded(cls, message: Self | Mapping[str, Any]) -> bytes:
        """The message as JSON, after the same check.

        Raises:
            ContractError: with a line for each field that does not fit.
        """
        if type(message) is not cls or has_secrets(cls):
            return to_json(cls.checked(message).payload())
        try:
            data = cls.__pydantic_serializer__.to_json(message, by_alias=True, warnings=False)
            cls.__pydantic_validator__.validate_json(data, extra="forbid")
        except PydanticSerializationError as error:
            raise ContractError(cls.contract_name, [str(error)]) from error
        except ValidationError as error:
            raise contract_error(cls, error) from error
        return data

    @classmethod
    def received(cls, payload: Any) -> Self:
        """The message after the consumer's check: fields of newer producers are let through.

        Args:
            payload: JSON types.

        Raises:
            ContractError: with a line for each field that does not fit.
        """
        return cls._read(payload, extra="ignore")

    @classmethod
    def _read(cls, payload: Any, extra: Literal["forbid", "ignore"]) -> Self:
        # As JSON, not as Python values: there a string would do for base64 bytes, and strict
        # models would refuse what JSON has no type for.
        data = to_json(payload, bytes_mode="base64", inf_nan_mode="null", fallback=_secret_value)
        try:
            read: Self = cls.__pydantic_validator__.validate_json(data, extra=extra)
            return read
        except ValidationError as error:
            raise contract_error(cls, error) from error

    def payload(self) -> dict[str, Any]:
        """The message as JSON types. Secrets are in it: it is for the wire, not for logs."""
        payload: dict[str, Any] = in_clear(self.model_dump, secret=has_secrets(type(self)))
        return payload

    def __json__(self) -> dict[str, Any]:
        """Kombu's hook: a message inside a signature (a chain, a beat entry) travels too."""
        return self.payload()


class Event(Message):
    """Something that happened: a message with any number of receivers, or with none.

    class ImageResized(Event, name="image.resized", version=1):
        width: int
    """


def contract_of(message_type: type[Message]) -> tuple[str, int]:
    """Name and version of a message class.

    Raises:
        ContractError: when the class was declared without them.
    """
    try:
        return message_type.contract_name, message_type.contract_version
    except AttributeError:
        raise ContractError(
            message_type.__name__,
            [
                "has no contract: declare it as "
                f'class {message_type.__name__}(Message, name="…", version=1)'
            ],
        ) from None


def names_of(message_type: type[Message]) -> tuple[str, ...]:
    """Its wire name, then those that it had before.

    Raises:
        ContractError: when the class was declared without one.
    """
    return (contract_of(message_type)[0], *message_type.contract_aliases)


def in_clear(dump: Callable[..., Any], *, secret: bool) -> Any:
    """What `dump` gives as JSON types, with secrets as they are: Pydantic sends stars instead.

    Args:
        dump: a model's `model_dump` or the like.
        secret: whether there are secrets in it.
    """
    dumped = dump(mode="json", by_alias=True, warnings=False)
    if secret:
        dumped = _reveal(dumped, dump(mode="python", by_alias=True, warnings=False))
    return dumped


@cache
def has_secrets(model: type[BaseModel]) -> bool:
    """Whether a field, at any depth, is a secret."""
    return mentions_secrets(model.model_json_schema(mode="serialization"))


def mentions_secrets(schema: Mapping[str, Any]) -> bool:
    """The same for a JSON Schema: Pydantic marks its secret types ``writeOnly``."""
    return "'writeOnly': True" in repr(schema)


def _reveal(dumped: Any, live: Any) -> Any:
    """`dumped` with the secrets of `live` in place of their stars; both have one shape."""
    if isinstance(live, SecretStr):
        return live.get_secret_value()
    if isinstance(live, SecretBytes):
        return urlsafe_b64encode(live.get_secret_value()).decode()
    if isinstance(live, Mapping):
        pairs = zip(dumped.items(), live.values(), strict=True)
        return {key: _reveal(value, inner) for (key, value), inner in pairs}
    if isinstance(live, Sequence) and not isinstance(live, str | bytes):
        return [_reveal(value, inner) for value, inner in zip(dumped, live, strict=True)]
    return dumped


def _secret_value(value: Any) -> Any:
    if isinstance(value, SecretStr | SecretBytes):
        return value.get_secret_value()
    raise PydanticSerializationError(f"a {type(value).__name__} has no form in JSON")


def contract_error(contract: type[Message], error: ValidationError) -> ContractError:
    """Field paths and what is wrong, without the input: it may hold a secret."""
    problems = [
        f"{'.'.join(str(part) for part in problem['loc']) or '(message)'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False)
    ]
    return ContractError(contract.contract_name, problems)
