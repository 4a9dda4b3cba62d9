"""What a configuration file may say of guards: who may subscribe, how that is found out, and for how long it holds.

The docstring below a key is its description in the JSON Schema and in the manual.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from ssegate.config import values
from ssegate.config.types import (
    SINGLE_FIELDS,
    TEXT_SCHEMA,
    Duration,
    DurationOrZero,
    HeaderName,
    JMESPath,
    Keys,
    Line,
    Model,
    Rule,
    Secrets,
    ShortForm,
    WebUrl,
)
from ssegate.config.values import Expanded, ValueFault, kind_of, plain, said

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
_ALGORITHMS = (
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip

DEFAULT_ALGORITHMS: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA")
DEFAULT_SHARED: tuple[Algorithm, ...] = ("HS256",)
"""With a `secret`."""

_COOKIE_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def _read_sent(value: object) -> str:
    name = values.read_header_name(value)
    if name in SINGLE_FIELDS or name.startswith("x-forwarded-"):
        raise ValueFault("value", f"{said(value)} cannot be sent along; the gate sets it itself")
    return name


class HeaderClaims(Model):
    """Claims that a guard's answer has in its headers."""

    stand_ins = {"headers": ("x",)}

    headers: Annotated[tuple[HeaderName, ...], Field(min_length=1)]
    """Headers of the answer; what templates use as `{claims.x-groups}`."""


def _read_claims(value: object) -> Literal["json"] | HeaderClaims:
    if plain(value) == "json":
        return "json"
    if not isinstance(value, dict):
        raise ValueFault("value", f"{said(value)} is not known here; write json, or {{headers: [x-groups]}}")
    return HeaderClaims.model_validate(value)


_Claims = Annotated[
    HeaderClaims | Literal["json"],
    Keys(HeaderClaims),
    PlainValidator(_read_claims),
    WithJsonSchema({"anyOf": [{"const": "json"}, HeaderClaims.model_json_schema()]}),
]


class Forward(Model):
    """A guard that asks the backend, as nginx' `auth_request` and Traefik's `forwardAuth` do."""

    stand_ins = {"url": "http://localhost/"}

    url: WebUrl
    """What is asked, with GET. 2xx is yes, 401 and 403 are no and are passed on with their bodies; anything else, a redirect too,
    is a guard that is down."""
    send: Annotated[
        tuple[Annotated[str, PlainValidator(_read_sent), WithJsonSchema(TEXT_SCHEMA)], ...], Field(min_length=1)
    ] = ("authorization", "cookie")
    """The viewer's headers that are sent along: the credential. What the guard answers is to depend on nothing else."""
    identity: HeaderName | None = None
    """The header of its answer that names the viewer; a yes without it counts as a guard that is down."""
    headers: Annotated[tuple[HeaderName, ...], Field(min_length=1)] | None = None
    """Short for `claims: {headers: […]}`."""
    claims: _Claims | None = None
    """What else its answer tells of the viewer: `json`, its body, or `{headers: [x-groups]}`; templates use it as `{claims.x}`."""
    cache: DurationOrZero = 30.0
    """How long a yes holds for further streams with the same credential. `0s`: it is asked for each stream."""
    recheck: Duration = 60.0
    """How often it is asked about streams that are open; a no ends them."""

    @model_validator(mode="after")
    def _short(self) -> Forward:
        """`headers: [x-groups]` beside the others stands for `claims: {headers: [x-groups]}`."""
        if self.headers is None:
            return self
        if self.claims is not None:
            raise ValueFault("value", "`claims` and `headers` say the same; keep one of them")
        return self.model_copy(update={"claims": HeaderClaims(headers=self.headers), "headers": None})


class SigningKeys(Model):
    """What tokens are signed with."""

    url: WebUrl | None = None
    """Where the issuer publishes its keys (JWKS); they are fetched, and kept while the issuer is down."""
    file: Annotated[Path | None, PlainValidator(values.read_file_name), WithJsonSchema(TEXT_SCHEMA)] = None
    """A file with the keys (JWKS), or with a public key (PEM)."""
    secret: Secrets | None = Field(default=None, repr=False)
    """A secret that is shared with the issuer; two while one replaces the other."""

    @model_validator(mode="after")
    def _just_one(self) -> SigningKeys:
        if len([way for way in (self.url, self.file, self.secret) if way is not None]) != 1:
            raise ValueFault("value", "write one of url, file and secret")
        return self


def _read_keys(value: object, read: ValidatorFunctionWrapHandler) -> SigningKeys:
    text = plain(value)
    if isinstance(text, str):
        kind = "file" if text.startswith("file:") else "url"
        if kind == "url" and not text.startswith(("http://", "https://")):
            # It may be a secret in the wrong place, so it is not quoted.
            raise ValueFault("value", "names no keys; write the URL of a JWKS, file:/path, or {secret: …}")
        named = text.removeprefix("file:")
        value = {kind: Expanded(named, named) if isinstance(value, Expanded) else named}
    if not isinstance(value, dict):
        raise ValueFault(
            "type", f"{kind_of(value)} names no keys; write the URL of a JWKS, file:/path, or {{secret: …}}"
        )
    keys: SigningKeys = read(value)
    return keys


def _read_audience(value: object) -> tuple[str, ...]:
    if isinstance(value, tuple) and value:
        return tuple(values.read_line(item) for item in value)
    return (values.read_line(value),)


def _read_place(value: object) -> str:
    """Where a token is: `header`, `header:NAME`, `cookie:NAME`, `ticket`."""
    text = values.read_line(value)
    kind, colon, name = text.partition(":")
    if kind == "header" and colon:
        return f"header:{values.read_header_name(name)}"
    if text in ("header", "ticket") or (kind == "cookie" and _COOKIE_NAME.fullmatch(name)):
        return text
    raise ValueFault(
        "value", f'{said(value)} is no place for a token; write header, "header:NAME", "cookie:NAME" or ticket'
    )


_TEXTS: dict[str, Any] = {"anyOf": [TEXT_SCHEMA, {"type": "array", "items": TEXT_SCHEMA, "minItems": 1}]}


class Jwt(Model):
    """A guard that reads signed tokens (RFC 7519)."""

    stand_ins = {"issuer": "x", "audience": ("x",), "keys": {"secret": ("x",)}}

    issuer: Line
    """Who signs: a token's `iss` is exactly this."""
    audience: Annotated[tuple[str, ...], PlainValidator(_read_audience), WithJsonSchema(_TEXTS)]
    """For whom: a token's `aud` is this, or one of these."""
    keys: Annotated[
        SigningKeys, WrapValidator(_read_keys), ShortForm({"type": "string", "pattern": r"^https?://|^file:|\$\{"})
    ]
    """What tokens are signed with: the URL of a JWKS, `file:/path`, or `{secret: …}`."""
    algorithms: Annotated[
        tuple[Annotated[Algorithm, BeforeValidator(values.choice(*_ALGORITHMS))], ...] | None, Field(min_length=1)
    ] = None
    """The only algorithms that count. Without it RS256, ES256 and EdDSA, with a `secret` HS256; the two kinds are never mixed."""
    from_: Annotated[
        tuple[Annotated[str, PlainValidator(_read_place), WithJsonSchema(TEXT_SCHEMA)], ...], Field(min_length=1)
    ] = Field(default=("header", "ticket"), alias="from")
    """Where a viewer shows it, the first that is there: `header` (`Authorization: Bearer`), `header:NAME`, `cookie:NAME`, `ticket`."""
    require: Rule = None
    """What must be true of the claims; else the viewer gets 403."""
    at_expiry: Annotated[Literal["end", "ignore"], BeforeValidator(values.choice("end", "ignore"))] = "end"
    """What becomes of an open stream when its token expires: it ends, after an `expiring` a minute before, or goes on."""
    identity: JMESPath = Field(default_factory=lambda: values.read_expression("sub"))
    """Which claim names the viewer."""


class ApiKeys(Model):
    """A guard that knows some keys."""

    stand_ins = {"values": {"x": ("x",)}}

    header: HeaderName = "x-api-key"
    """The header that a viewer shows its key in; of `authorization` the key behind `Bearer`."""
    values: Annotated[dict[str, Secrets], Field(min_length=1)] = Field(repr=False)
    """The keys, by the identity of who has them; two while one replaces the other."""


class Guard(Model):
    """A way to find out who a viewer is."""

    forward: Forward | None = None
    """It asks the backend."""
    jwt: Jwt | None = None
    """It reads a signed token; needs `ssegate[jwt]`."""
    keys: ApiKeys | None = None
    """It knows some keys."""

    @property
    def kind(self) -> Literal["forward", "jwt", "keys"]:
        """Which of the ways it is."""
        if self.forward is not None:
            return "forward"
        return "keys" if self.jwt is None else "jwt"

    @property
    def headers(self) -> tuple[str, ...]:
        """The request headers in which a viewer shows a credential, beside `authorization` and `cookie`."""
        shown: tuple[str, ...] = ()
        if self.forward is not None:
            shown = self.forward.send
        elif self.jwt is not None:
            shown = tuple(place.removeprefix("header:") for place in self.jwt.from_ if place.startswith("header:"))
        elif self.keys is not None:
            shown = (self.keys.header,)
        return tuple(name for name in shown if name not in ("authorization", "cookie"))

    @property
    def names_viewers(self) -> bool:
        """Whether whoever it lets in has an identity."""
        return self.forward is None or self.forward.identity is not None

    @property
    def has_claims(self) -> bool:
        """Whether it tells anything else of viewers."""
        return self.jwt is not None or (self.forward is not None and self.forward.claims is not None)

    @model_validator(mode="after")
    def _just_one(self) -> Guard:
        if len([way for way in (self.forward, self.jwt, self.keys) if way is not None]) != 1:
            raise ValueFault("value", "write one of forward, jwt and keys")
        return self


PUBLIC = "none"
"""What `auth` says of a route that everybody may read."""


def read_auth(value: object) -> tuple[str, ...]:
    """The names of guards; none for `none`."""
    if plain(value) == PUBLIC:
        return ()
    if value is None:
        raise ValueFault("type", "empty; write the name of a guard, or none")
    if not isinstance(value, tuple):
        return (values.read_line(value),)
    if not value:
        raise ValueFault("value", "empty; write the name of a guard, or none")
    names = tuple(values.read_line(item) for item in value)
    if PUBLIC in names:
        raise ValueFault("value", "`none` lets everybody in, so it stands alone; write it alone, or leave it out")
    return names


Auth = Annotated[tuple[str, ...] | None, PlainValidator(read_auth), WithJsonSchema(_TEXTS)]
