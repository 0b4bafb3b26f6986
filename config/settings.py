"""The one settings object: `UMBEL_*` variables, then files, then code, then the defaults here."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    ByteSize,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError as NotJSON

from umbel.config.errors import SettingsError
from umbel.config.sections import JobSection, QueueSection, SubscriberSection
from umbel.config.sources import ENV_PREFIX, Source, file_source, files

_BARE = re.compile(r"[\w-]+")
_PASSWORD = re.compile(r"://[^/\s]*@")  # and who has it
BROKER_SCHEMES = (
    "embedded",
    "redis",
    "rediss",
    "redis+socket",
    "valkey",
    "valkeys",
    "sentinel",
    "amqp",
    "amqps",
)
STORE_SCHEMES = ("embedded", "redis", "rediss", "redis+socket", "sentinel", "valkey", "valkeys")


class Settings(BaseSettings):
    """What can be set, each as ``UMBEL_<NAME>``, as a key of a file or as an argument of the app.

    The environment wins over ``umbel.toml``, this over ``[tool.umbel]`` of ``pyproject.toml`` and
    both over code, so that one program runs unchanged in every place.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    broker_url: Annotated[str, Field(description="where messages wait")] = "embedded://"
    store_url: Annotated[
        str | None,
        Field(description="where the state of tracked jobs is; by default the broker's server"),
    ] = None
    blob_url: Annotated[
        str | None,
        Field(description="where files are (file:///…, s3://…); by default .umbel/blobs"),
    ] = None
    namespace: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="prefix of every key and exchange"),
    ] = None
    require_broker: Annotated[bool, Field(description="refuse the embedded server")] = False
    publish_timeout_s: Annotated[
        PositiveFloat, Field(description="longest time that a send may take")
    ] = 5.0
    result_ttl_s: Annotated[
        PositiveInt, Field(description="how long the outcome of a tracked job is kept")
    ] = 3600
    lease_s: Annotated[
        float,
        Field(ge=1, le=600, description="a worker unheard for so long loses what it holds"),
    ] = 10.0
    grace_s: Annotated[
        float,
        Field(ge=0, description="time for running jobs after SIGTERM; 0 for any time"),
    ] = 25.0
    liveness_file: Annotated[
        Path | None,
        Field(description="touched every second by a worker whose event loop turns"),
    ] = None
    min_replicas: Annotated[
        int,
        Field(ge=0, description="replicas that must have a message before a send returns"),
    ] = 0
    consumer_timeout_s: Annotated[
        PositiveFloat, Field(description="RabbitMQ's own consumer_timeout, in seconds")
    ] = 1800.0
    max_deliveries: Annotated[
        PositiveInt,
        Field(description="runs begun that may end without an outcome before the dead letters"),
    ] = 3
    idempotency_ttl_s: Annotated[
        PositiveInt,
        Field(description="how long what came of an idempotency key is remembered"),
    ] = 24 * 3600
    dead_letters_max_bytes: Annotated[
        ByteSize, Field(ge=0, description="most bytes of dead letters; then the oldest go")
    ] = ByteSize(256 * 1024**2)
    dead_letters_max_count: Annotated[
        PositiveInt, Field(description="most dead letters; then the oldest go")
    ] = 100_000
    dead_letters_max_age_s: Annotated[
        PositiveInt, Field(description="longest time for which a dead letter is kept")
    ] = 30 * 24 * 3600
    webhook_secrets: Annotated[
        tuple[SecretStr, ...],
        NoDecode,
        Field(description="what callbacks to URLs are signed with, all of them: whsec_…"),
    ] = ()
    webhook_allow: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="hosts and networks that callbacks may go to though they are not public"),
    ] = ()
    webhook_allow_http: Annotated[
        bool, Field(description="let callbacks go to http:// URLs, where anybody can read them")
    ] = False
    webhook_ca_file: Annotated[
        Path | None, Field(description="certificates to trust in besides the public ones, in PEM")
    ] = None
    webhook_timeout_s: Annotated[
        float, Field(gt=0, le=600, description="longest time of one attempt at a URL")
    ] = 20.0
    webhook_delays_s: Annotated[
        tuple[NonNegativeFloat, ...],
        NoDecode,
        Field(description="pauses before further attempts; then the dead letters"),
    ] = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 21600, 28800)
    outbox_url: Annotated[
        str | None,
        Field(pattern="://", description="the outbox's database, a URL of SQLAlchemy"),
    ] = None
    outbox_table: Annotated[str, Field(pattern=r"^\w+(\.\w+)?$", description="its table")] = (
        "umbel_outbox"
    )
    on_unavailable: Annotated[
        Literal["raise", "outbox"],
        Field(description="what a send does while the broker is away"),
    ] = "raise"
    queues: Annotated[
        dict[str, QueueSection], Field(description="over what the code says of its queues")
    ] = {}
    jobs: Annotated[
        dict[str, JobSection], Field(description="over what the code says of its jobs")
    ] = {}
    subscribers: Annotated[
        dict[str, SubscriberSection], Field(description="likewise of its subscribers")
    ] = {}

    @field_validator("webhook_secrets", "webhook_allow", "webhook_delays_s", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        """In the environment they are parted by commas or spaces."""
        return re.findall(r"[^,\s]+", value) if isinstance(value, str) else value

    @field_validator("webhook_secrets")
    @classmethod
    def _long_enough(cls, secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if all(_is_secret(secret.get_secret_value()) for secret in secrets):
            return secrets
        raise ValueError("each whsec_ and 24 to 64 bytes in base64 (Standard Webhooks)")

    @field_validator("webhook_allow")
    @classmethod
    def _networks(cls, allowed: tuple[str, ...]) -> tuple[str, ...]:
        for one in allowed:
            if "/" in one:
                ip_network(one)
        return allowed

    @field_validator("on_unavailable")
    @classmethod
    def _has_an_outbox(cls, what: str, info: ValidationInfo) -> str:
        if what == "outbox" and not info.data.get("outbox_url"):
            raise ValueError("raise, or an outbox_url beside it (UMBEL_OUTBOX_URL)")
        return what

    @field_validator("broker_url")
    @classmethod
    def _broker_scheme(cls, url: str) -> str:
        return _known_scheme(url, BROKER_SCHEMES)

    @field_validator("store_url")
    @classmethod
    def _store_scheme(cls, url: str | None) -> str | None:
        return url and _known_scheme(url, STORE_SCHEMES)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        read = (file_source(settings_cls, path) for path in files())
        return env_settings, *read, init_settings

    @classmethod
    def load(cls, **code: Any) -> Self:
        """Read the environment and the files over what the code says.

        Args:
            code: values by the names above; None counts as not given.

        Raises:
            SettingsError: one line for each wrong value: its name, its source, what is allowed.
        """
        given = {name: value for name, value in code.items() if value is not None}
        try:
            return cls(**given)
        except NotJSON as error:
            raise SettingsError(f"{error}: {error.__cause__}") from error
        except ValidationError as error:
            raise SettingsError(_explain(error, [*cls.sources(), Source("code", given)])) from error

    @classmethod
    def sources(cls) -> list[Source]:
        """The environment and the files, as they are now; who comes first wins."""
        read = [Source(str(path), file_source(cls, path)()) for path in files()]
        return [Source("environment", EnvSettingsSource(cls)()), *read]


def _is_secret(text: str) -> bool:
    prefix, _, encoded = text.partition("_")
    try:
        return prefix == "whsec" and 24 <= len(b64decode(encoded + "==")) <= 64
    except ValueError:
        return False


def _known_scheme(url: str, allowed: tuple[str, ...]) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in allowed:
        raise ValueError(f"a URL with one of the schemes {', '.join(allowed)}")
    return url


def _explain(error: ValidationError, sources: Sequence[Source]) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        path = problem["loc"]
        name = _dotted(path)
        source = next((one for one in sources if one.has(path)), sources[-1]).named(path)
        if problem["type"] == "extra_forbidden":
            known = sorted(_keys(path[:-1]))
            near = get_close_matches(str(path[-1]), known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            lines.append(
                f"{name} from the {source}: there is no such setting{hint}; "
                f"there are: {', '.join(known)}"
            )
            continue
        message = problem["msg"].removeprefix("Value error, ")
        shown = _PASSWORD.sub("://***@", repr(problem["input"]))
        if "secret" in name.lower():
            shown = "***"
        lines.append(f"{name} from the {source} is {shown}; expected: {message}")
    return "wrong settings:\n  " + "\n  ".join(lines)


def _dotted(path: Sequence[str | int]) -> str:
    """As TOML has it."""
    return ".".join(str(step) if _BARE.fullmatch(str(step)) else f'"{step}"' for step in path)


def _keys(path: Sequence[str | int]) -> Mapping[str, Any]:
    """What may be in a table: of the settings, of a section under some name, or deeper."""
    model: Any = Settings
    for step in (*path[:1], *path[2:]):
        annotation = model.model_fields[str(step)].annotation
        model = next(iter(get_args(annotation)[1:]), annotation)
    fields: Mapping[str, Any] = model.model_fields
    return fields
