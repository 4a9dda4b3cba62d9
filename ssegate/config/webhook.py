"""What a configuration file may say of a webhook: how it is verified, what it feeds, how the gate asks for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from ssegate.config import values
from ssegate.config.asking import Request
from ssegate.config.types import (
    TEXT_SCHEMA,
    AnyText,
    Boolean,
    Duration,
    HeaderName,
    JMESPath,
    Line,
    Model,
    Secrets,
    ShortForm,
    Text,
    WebUrl,
    read_any_template,
    read_literal_path,
    read_secrets,
)
from ssegate.config.values import Expanded, ValueFault, kind_of, plain
from ssegate.core.scheme import standard_key

REST_NAMES = ("callback", "secret", "id")
"""What the templates of a `rest` subscription may name, beside `env.X`."""


def _read_rest_body(value: object) -> object:
    """JSON whose texts are templates."""
    if isinstance(value, dict):
        return {name: _read_rest_body(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_read_rest_body(item) for item in value]
    found = plain(value)
    if isinstance(value, Expanded):
        return found.replace("{", "{{").replace("}", "}}") if isinstance(found, str) else found
    return read_any_template(value, found) if isinstance(found, str) else found


class Hmac(Model):
    """A signature over the raw body."""

    stand_ins = {"header": "x"}

    secret: Secrets | None = None
    """The shared secret; two while one replaces the other."""
    header: HeaderName
    """The header that carries the signature."""
    algorithm: Annotated[
        Literal["sha256", "sha512", "sha1"], BeforeValidator(values.choice("sha256", "sha512", "sha1"))
    ] = "sha256"
    """The hash."""
    encoding: Annotated[Literal["hex", "base64"], BeforeValidator(values.choice("hex", "base64"))] = "hex"
    """How the signature is written."""
    prefix: AnyText = ""
    """What stands before it, such as `sha256=`."""


class Shared(Model):
    """A secret that the sender has too."""

    secret: Secrets | None = None
    """The shared secret; two while one replaces the other. May be left out beside a `subscribe`, for one that the gate makes."""


def _read_standard_secrets(value: object) -> tuple[SecretStr, ...]:
    secrets = read_secrets(value)
    for secret in secrets:
        try:
            standard_key(secret.get_secret_value())
        except ValueError as error:
            raise ValueFault("value", str(error)) from None
    return secrets


class SharedStandard(Model):
    """A secret of Standard Webhooks."""

    secret: Annotated[
        tuple[SecretStr, ...] | None,
        PlainValidator(_read_standard_secrets),
        WithJsonSchema({"anyOf": [TEXT_SCHEMA, {"type": "array", "items": TEXT_SCHEMA, "minItems": 1}]}),
    ] = None
    """The shared secret, `whsec_` and base64; two while one replaces the other. May be left out beside a `subscribe`."""


class SharedToken(Model):
    """A token that the sender shows."""

    token: Secrets | None = None
    """`Authorization: Bearer`, or `access_token` in the query, equals this; two while one replaces the other."""


class SharedState(Model):
    """What Microsoft Graph repeats in each notification."""

    client_state: Secrets | None = None
    """The subscription's `clientState`; two while one replaces the other. May be left out beside a `subscribe`."""


class Verify(Model):
    """How a delivery proves where it comes from; without any key it is `none`."""

    github: Shared | None = None
    """GitHub: `X-Hub-Signature-256`."""
    gitlab: Shared | None = None
    """GitLab: `X-Gitlab-Token`."""
    stripe: Shared | None = None
    """Stripe: `Stripe-Signature`, with a time."""
    slack: Shared | None = None
    """Slack: `X-Slack-Signature`, with a time."""
    shopify: Shared | None = None
    """Shopify: `X-Shopify-Hmac-Sha256`."""
    standard: SharedStandard | None = None
    """Standard Webhooks: `webhook-signature`, with an id and a time."""
    cloudevents: SharedToken | None = None
    """CloudEvents: `Authorization: Bearer` or `access_token`, and the answer to its `OPTIONS`."""
    msgraph: SharedState | None = None
    """Microsoft Graph: `clientState`, and the answer to its `validationToken`."""
    websub: Shared | None = None
    """WebSub: `X-Hub-Signature`; what does not fit is taken and dropped."""
    token: Secrets | None = None
    """`Authorization: Bearer` equals this; two while one replaces the other."""
    hmac: Hmac | None = None
    """A header holds a signature over the body."""

    @property
    def scheme(self) -> str:
        """Which of the ways it is: the name of its key, or `none`."""
        return next((name for name in SCHEMES if getattr(self, name) is not None), "none")

    @property
    def secrets(self) -> tuple[SecretStr, ...] | None:
        """What is shared with the sender; None when it is not said, and for `none`."""
        way = getattr(self, self.scheme, None)
        if isinstance(way, SharedToken):
            return way.token
        if isinstance(way, SharedState):
            return way.client_state
        return way.secret if isinstance(way, Hmac | Shared | SharedStandard) else way


SCHEMES = tuple(Verify.model_fields)
"""The ways to verify beside `none`."""

SECRET_KEYS = {"cloudevents": "token", "msgraph": "client_state"}
"""Where a scheme has its secret, if not in `secret`."""


def _read_verify(value: object, read: ValidatorFunctionWrapHandler) -> Verify:
    if plain(value) == "none":
        return Verify()
    if not isinstance(value, dict):
        # It may be a secret in the wrong place, so it is not quoted.
        raise ValueFault(
            "type", f"{kind_of(value)} is no way to verify; write none, {{token: …}} or {{github: {{secret: …}}}}"
        )
    verify: Verify = read(value)
    if len([name for name in SCHEMES if getattr(verify, name) is not None]) != 1:
        raise ValueFault("value", f"write one of none, {', '.join(SCHEMES)}")
    return verify


class Dedupe(Model):
    """By what a second delivery of the same event is known."""

    by: JMESPath | None = None
    """Where its id is found in `{body, headers, params, query}`. Without it where the scheme has it."""
    age: Duration = 86400.0
    """How long ids are remembered, at most 100,000 of them."""


class SubscribeWebSub(Model):
    """A topic whose hub tells what is new (W3C WebSub)."""

    stand_ins = {"topic": "http://localhost/"}

    topic: WebUrl
    """The topic's URL; its hub is found there."""
    lease: Duration = 86400.0
    """How long the hub is asked to go on. It is asked again before that ends."""


_CHANGES = ("created", "updated", "deleted")


class SubscribeGraph(Model):
    """A subscription of Microsoft Graph. The upstream's `url` is `https://graph.microsoft.com/v1.0`, and it has an `auth`."""

    stand_ins = {"resource": "x"}

    resource: Line
    """What is watched: `/users/{id}/messages` in Graph's words, without templates."""
    change: Annotated[tuple[Annotated[str, BeforeValidator(values.choice(*_CHANGES))], ...], Field(min_length=1)] = (
        _CHANGES
    )
    """Which changes are told: `created`, `updated`, `deleted`."""
    expires: Duration = 3600.0
    """How long it lasts. It is renewed before that ends."""


class RestCall(Request):
    """A request to the backend, made of a method and a path; templates know `{callback}`, `{secret}`, `{id}` and `{env.X}`."""

    body: Annotated[Any, PlainValidator(_read_rest_body), WithJsonSchema({})] = Field(default=None, repr=False)
    """What is sent, as JSON; its texts are templates."""


class RestCreate(RestCall):
    """How a subscription is made."""

    id: JMESPath | None = None
    """Where in the answer, `{body, headers}`, the subscription's id is: `{id}` in `renew` and `delete`."""


class RestRenew(RestCall):
    """How a subscription is kept alive; an answer 404 or 410 means that the backend has forgotten it."""

    stand_ins = {"every": "1h"}

    every: Duration
    """How often."""


class SubscribeRest(Model):
    """A backend with an API of its own for webhooks."""

    stand_ins = {"create": {"post": "/"}}

    create: RestCreate
    """How the subscription is made."""
    renew: RestRenew | None = None
    """How it is kept alive. Without it, it is made once."""
    delete: RestCall | None = None
    """How it is removed."""


class Subscribe(Model):
    """How the gate asks the backend for its webhooks."""

    upstream: Text = ""
    """Which upstream is asked, by `msgraph` and `rest`; may be left out when there is only one."""
    websub: SubscribeWebSub | None = None
    """A WebSub hub."""
    msgraph: SubscribeGraph | None = None
    """Microsoft Graph."""
    rest: SubscribeRest | None = None
    """An API of the backend's own."""
    keep: Boolean = False
    """Whether the subscription is left in place when the gate goes down."""

    @property
    def kind(self) -> Literal["websub", "msgraph", "rest"]:
        """Which of the ways it is."""
        if self.websub is not None:
            return "websub"
        return "rest" if self.msgraph is None else "msgraph"

    @model_validator(mode="after")
    def _just_one(self) -> Subscribe:
        if len([way for way in (self.websub, self.msgraph, self.rest) if way is not None]) != 1:
            raise ValueFault("value", "write one of websub, msgraph and rest")
        return self


class Webhook(Model):
    """A delivery that the backend posts, and that becomes an event."""

    stand_ins = {"at": "/"}

    model_config = ConfigDict(
        json_schema_extra={"required": ["at"], "anyOf": [{"required": ["verify"]}, {"required": ["subscribe"]}]}
    )

    at: Annotated[str, PlainValidator(read_literal_path), WithJsonSchema({"type": "string", "pattern": r"^/|\$\{"})]
    """Where the backend posts; a path of its own, without parameters."""
    verify: Annotated[Verify | None, WrapValidator(_read_verify), ShortForm({"const": "none"})] = None
    """How a delivery proves where it comes from. `none` must be written out; only beside a `subscribe` that brings a secret of
    its own it may be left out: `websub` and `msgraph` have their ways, `rest` with `{secret}` is taken for `standard`."""
    match: dict[str, JMESPath] = {}
    """Where each parameter of the route's path is found in `{body, headers, params, query}`."""
    when: JMESPath | None = None
    """Which deliveries count: those for which this is true."""
    then: Annotated[Literal["emit", "poll"] | None, BeforeValidator(values.choice("emit", "poll"))] = None
    """What a delivery does: `emit`, it is the event; `poll`, beside a `poll`: its topics are polled at once. The default is what
    fits."""
    dedupe: Dedupe = Dedupe()
    """By what a second delivery of the same event is known; on by itself where the scheme has ids."""
    callback: WebUrl | None = None
    """How the backend reaches `at` from where it is: the URL that `subscribe` gives it."""
    subscribe: Subscribe | None = None
    """How the gate asks for the deliveries by itself, and keeps them coming."""

    @property
    def scheme(self) -> str:
        """By what a delivery proves itself: the name of a key of `verify`, or `none`."""
        if self.verify is not None:
            return self.verify.scheme
        if self.subscribe is None:
            return "none"
        return "standard" if self.subscribe.kind == "rest" else self.subscribe.kind
