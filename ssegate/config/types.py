"""The types of a configuration's keys: what each becomes, how it is read, and what the JSON Schema says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    PlainValidator,
    SecretStr,
    WithJsonSchema,
)
from pydantic_core import CoreSchema

from ssegate.config import values
from ssegate.config.values import (
    Address,
    Expanded,
    Expression,
    Network,
    ValueFault,
    said,
)
from ssegate.core.event import RESERVED_TYPES
from ssegate.core.routing import PathPattern
from ssegate.core.template import Template

GATE_PATHS = "/_ssegate/"
"""Paths that begin so are the gate's own."""

SINGLE_FIELDS = values.HOP_BY_HOP | {"host", "content-length"}
"""Header fields that the gate makes itself, on whatever it sends."""

TEXT_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1}
DURATION_SCHEMA = {"type": "string", "pattern": values.DURATION_PATTERN}
SIZE_SCHEMA = {"type": "string", "pattern": values.SIZE_PATTERN}

Text = Annotated[str, PlainValidator(values.read_text), WithJsonSchema(TEXT_SCHEMA)]
AnyText = Annotated[str, PlainValidator(values.read_any_text), WithJsonSchema({"type": "string"})]
Line = Annotated[str, PlainValidator(values.read_line), WithJsonSchema(TEXT_SCHEMA)]
Boolean = Annotated[bool, PlainValidator(values.read_boolean), WithJsonSchema({"type": "boolean"})]
Count = Annotated[int, PlainValidator(values.read_count), WithJsonSchema({"type": "integer", "minimum": 1})]
StreamCount = Annotated[
    int,
    PlainValidator(values.read_stream_count),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": values.MAX_STREAMS}),
]
Rate = Annotated[float, PlainValidator(values.read_rate), WithJsonSchema({"type": "number", "exclusiveMinimum": 0})]
Duration = Annotated[float, PlainValidator(values.read_duration), WithJsonSchema(DURATION_SCHEMA)]
DurationOrZero = Annotated[float, PlainValidator(values.read_duration_or_zero), WithJsonSchema(DURATION_SCHEMA)]
Size = Annotated[int, PlainValidator(values.read_size), WithJsonSchema(SIZE_SCHEMA)]
Listen = Annotated[
    Address,
    PlainValidator(values.read_address),
    WithJsonSchema({"type": "string", "pattern": r":[0-9]{1,5}$|^none$|\$\{"}),
]
Cidr = Annotated[Network, PlainValidator(values.read_network), WithJsonSchema(TEXT_SCHEMA)]
HeaderName = Annotated[str, PlainValidator(values.read_header_name), WithJsonSchema(TEXT_SCHEMA)]
Pattern = Annotated[re.Pattern[str], PlainValidator(values.read_pattern), WithJsonSchema(TEXT_SCHEMA)]
Pointer = Annotated[str, PlainValidator(values.read_pointer), WithJsonSchema({"type": "string"})]
JMESPath = Annotated[Expression, PlainValidator(values.read_expression), WithJsonSchema(TEXT_SCHEMA)]
# A rule whose text is all comments must not mean that there is none.
Rule = Annotated[Expression | None, PlainValidator(values.read_expression), WithJsonSchema(TEXT_SCHEMA)]
GoneStatus = Annotated[
    int, PlainValidator(values.read_gone_status), WithJsonSchema({"type": "integer", "minimum": 201, "maximum": 599})
]


def read_secret(value: object) -> SecretStr:
    """One line that no message quotes."""
    return SecretStr(values.read_line(hidden(value)))


def hidden(value: object) -> object:
    """Let no message quote it."""
    return Expanded(value, value) if isinstance(value, str) else value


def read_secrets(value: object) -> tuple[SecretStr, ...]:
    """A secret, or a list of them."""
    if not isinstance(value, tuple):
        return (read_secret(value),)
    if not value:
        raise ValueFault("value", "empty; write a secret, or several while one replaces the other")
    return tuple(read_secret(item) for item in value)


Secret = Annotated[SecretStr, PlainValidator(read_secret), WithJsonSchema(TEXT_SCHEMA)]
Secrets = Annotated[
    tuple[SecretStr, ...],
    PlainValidator(read_secrets),
    WithJsonSchema({"anyOf": [TEXT_SCHEMA, {"type": "array", "items": TEXT_SCHEMA, "minItems": 1}]}),
]


class Keys:
    """Marks a key that is read into a plain value with the model of the mapping it may be written as."""

    def __init__(self, model: type[Model]) -> None:
        self.model = model


class ShortForm:
    """Adds to the JSON Schema of a mapping what may stand in its place."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [self.schema, handler(core)]}


class Model(BaseModel):
    """A mapping whose keys are known."""

    stand_ins: ClassVar[Mapping[str, object]] = {}
    """For each required key a value that is valid, so that the others can be checked when it is missing or wrong."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        arbitrary_types_allowed=True,
    )


def is_host(netloc: str, host: str) -> bool:
    """Whether what a URL has between its slashes names a host; `host` is that without brackets and port."""
    if not netloc.startswith("["):
        return bool(values.HOST.fullmatch(host))
    return values.is_ipv6(host) and re.fullmatch(r"\[[^\[\]]*\](:[0-9]+)?", netloc) is not None


def said_url(value: object) -> str:
    """As `said`, but no user, no password and no query: they may be secrets."""
    if isinstance(value, Expanded) or "@" in str(value):
        return "this"
    return said(re.split(r"[?#]", str(value))[0])


def read_web_url(value: object) -> str:
    """A whole URL, with path and query; no template."""
    text = values.read_line(value)
    try:
        parts = urlsplit(text)
        is_good = parts.scheme in ("http", "https") and is_host(parts.netloc, parts.hostname or "") and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or "@" in parts.netloc or "#" in text or not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueFault(
            "value", f"{said_url(value)} is not a URL of the web; write https://host/path, without user and `#`"
        )
    return text


def read_url_template(value: object) -> str:
    """A path and query with `{name}` in it."""
    text = values.read_line(value)
    try:
        Template(text).check_url()
    except ValueError as error:
        raise broken_template(value, error) from None
    return text


def read_template(value: object) -> str:
    """One line with `{name}` in it."""
    text = values.read_line(value)
    try:
        Template(text)
    except ValueError as error:
        raise broken_template(value, error) from None
    return text


def read_event_name(value: object) -> str:
    """An event's name with `{name}` in it, which is none of the gate's own."""
    text = read_template(value)
    if text in RESERVED_TYPES:
        raise ValueFault("value", f"{said(value)} is a name of the gate's own; take another")
    return text


def read_any_template(value: object, text: str) -> str:
    """A text that may have several lines, with `{name}` in it."""
    try:
        Template(text)
    except ValueError as error:
        raise broken_template(value, error) from None
    return text


def broken_template(value: object, error: ValueError) -> ValueFault:
    """The fault of a text that is no template."""
    # The error quotes a part of the text.
    return ValueFault("template", f"{said(value)} is not a template" if isinstance(value, Expanded) else str(error))


def read_path(value: object) -> str:
    """The path of a route, which is not one of the gate's own."""
    text = values.read_line(value)
    try:
        PathPattern(text, allow_rest=True)
    except ValueError as error:
        raise broken_template(value, error) from None
    if (text + "/").startswith(GATE_PATHS):
        raise ValueFault("value", f"paths that begin with {GATE_PATHS} are the gate's own; take another")
    return text


def read_literal_path(value: object) -> str:
    """A path without parameters."""
    text = read_path(value)
    if PathPattern(text, allow_rest=True).parameters:
        raise ValueFault("template", "a webhook's path has no parameters; `match` takes them out of the body")
    return text


UrlTemplate = Annotated[
    str, PlainValidator(read_url_template), WithJsonSchema({"type": "string", "pattern": r"^/|\$\{"})
]
EventName = Annotated[str, PlainValidator(read_event_name), WithJsonSchema(TEXT_SCHEMA)]
RoutePath = Annotated[str, PlainValidator(read_path), WithJsonSchema({"type": "string", "pattern": r"^/|\$\{"})]
WebUrl = Annotated[str, PlainValidator(read_web_url), WithJsonSchema({"type": "string", "pattern": r"^https?://|\$\{"})]
