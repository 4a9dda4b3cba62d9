"""The ways a sender of webhooks proves itself: what it signs and how, how it asks whether we are there, how it names a delivery.

One class for each row of WIRE.md, "Webhooks". A scheme says why a delivery is not authentic in words for the operator's
diary; whoever sent it is told nothing of that. Nothing of a body is looked at before that, but for Microsoft Graph's
`clientState`, which is inside.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from ssegate.core.delivery import (
    Delivery,
    Message,
    media_type,
    message_facts,
    read_headers,
    read_json,
    read_messages,
    read_query,
    write_json,
)
from ssegate.core.document import decode
from ssegate.core.headers import Pair
from ssegate.core.signature import Algorithm, Encoding, bearer_of, is_one_of, is_signed, key_of, sign
from ssegate.errors import RejectedError, UndecodableError

TOLERANCE = 300.0
"""Seconds by which a delivery's timestamp may differ from our clock: what Standard Webhooks, Stripe and Slack recommend."""

_UNENCODED = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
_DIGITS = re.compile(r"[0-9]{1,15}")
_TEXT: Pair = (b"content-type", b"text/plain; charset=utf-8")
_NO_SNIFFING: Pair = (b"x-content-type-options", b"nosniff")


@dataclass(frozen=True, slots=True)
class Greeting:
    """The answer to a request that only asks whether we are there and mean it."""

    body: bytes = b""
    headers: tuple[Pair, ...] = ()


@dataclass(frozen=True, slots=True)
class Signed:
    """A delivery as a sender would make it."""

    headers: tuple[tuple[str, str], ...]
    body: bytes


class Scheme:
    """No proof at all: whoever knows the path may post."""

    name = "none"
    methods: tuple[str, ...] = ("POST",)
    is_silent = False
    """Whether what is not authentic is taken with 2xx and dropped, so that the sender does not learn of it."""
    has_ids = False
    """Whether its deliveries have ids by which a second one is known."""
    event_header = ""
    """Where it says what kind of event a delivery is, in lower case; empty where that is in the body."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """`secrets`: one, or several while one replaces the other."""
        self.keys = tuple(self._key(secret) for secret in secrets)

    def _key(self, secret: str) -> bytes:
        return key_of(secret)

    def greet(self, method: str, delivery: Delivery) -> Greeting | None:
        """The answer to a request that comes before there is anything to prove; None when it is a delivery."""
        return None

    def fault(self, delivery: Delivery, wall: float) -> str:
        """Why the delivery is not authentic, for the operator; empty when it is. `wall`: the time of day, in seconds."""
        return ""

    def messages(self, delivery: Delivery) -> Sequence[Message]:
        """The events of an authentic delivery. Raises `RejectedError`."""
        return read_messages(delivery)

    def welcome(self, message: Message) -> Greeting | None:
        """The answer to an authentic message that only asks whether we are there; None when it is an event."""
        return None

    def id_of(self, message: Message) -> str:
        """What a second delivery of the same event has in common with the first; empty when it has no such thing."""
        return ""

    def kind_of(self, message: Message) -> str:
        """What kind of event it is, in the sender's words; empty when it does not say."""
        return message.header(self.event_header) if self.event_header else message.member("type")

    def sample(self, body: bytes, *, event: str, id_: str, wall: float) -> Signed:
        """A delivery of this body as a sender would make it, signed by the first secret. Raises `ValueError` when it cannot be."""
        if event:
            raise ValueError(f"`{self.name}` has no place for the kind of an event; put it into the data, or a header")
        return Signed((), body)


class Token(Scheme):
    """`Authorization: Bearer` equals a secret."""

    name = "token"

    def fault(self, delivery: Delivery, wall: float) -> str:
        token = bearer_of(delivery.headers.get("authorization"))
        if not token:
            return "there is no `Authorization: Bearer …`; is the token set on the sender's side?"
        return "" if is_one_of([token], self.keys) else "the bearer token is another; is it the one in `verify`?"

    def sample(self, body: bytes, *, event: str, id_: str, wall: float) -> Signed:
        super().sample(body, event=event, id_=id_, wall=wall)
        return Signed((("Authorization", f"Bearer {_text(self.keys[0])}"),), body)


class Hmac(Scheme):
    """A header holds a signature over the raw body."""

    name = "hmac"
    id_header = ""

    def __init__(
        self,
        secrets: Iterable[str],
        header: str,
        *,
        algorithm: Algorithm = "sha256",
        encoding: Encoding = "hex",
        prefix: str = "",
    ) -> None:
        super().__init__(secrets)
        self.header = header
        self._algorithm: Algorithm = algorithm
        self._encoding: Encoding = encoding
        self._prefix = prefix

    def fault(self, delivery: Delivery, wall: float) -> str:
        value = delivery.headers.get(self.header)
        if value is None:
            return _missing(self.header)
        if not value.startswith(self._prefix):
            return f"{self.header} does not begin with `{self._prefix}`"
        given = [value[len(self._prefix) :]]
        is_good = is_signed(self.keys, delivery.body, given, self._algorithm, self._encoding)
        return "" if is_good else _mismatch(delivery)

    def id_of(self, message: Message) -> str:
        return message.header(self.id_header) if self.id_header else ""

    def sample(self, body: bytes, *, event: str, id_: str, wall: float) -> Signed:
        if not self.event_header:
            super().sample(body, event=event, id_=id_, wall=wall)
        signature = self._prefix + sign(self.keys[0], body, self._algorithm, self._encoding)
        return Signed((*self._named(event, id_), (self.header, signature)), body)

    def _named(self, event: str, id_: str) -> Sequence[tuple[str, str]]:
        """The headers that carry the kind and the id."""
        pairs = ((self.event_header, event), (self.id_header, id_))
        return [(name, value) for name, value in pairs if name and value]


class GitHub(Hmac):
    """`X-Hub-Signature-256` over the body; the event `ping` asks whether we are there. A form holds the JSON as `payload`."""

    name = "github"
    has_ids = True
    event_header = "x-github-event"
    id_header = "x-github-delivery"

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__(secrets, "X-Hub-Signature-256", prefix="sha256=")

    def messages(self, delivery: Delivery) -> Sequence[Message]:
        return [_unpacked(message) for message in super().messages(delivery)]

    def welcome(self, message: Message) -> Greeting | None:
        return Greeting() if message.header(self.event_header) == "ping" else None


class Shopify(Hmac):
    """`X-Shopify-Hmac-Sha256`, base64, over the body."""

    name = "shopify"
    has_ids = True
    event_header = "x-shopify-topic"
    id_header = "x-shopify-webhook-id"

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__(secrets, "X-Shopify-Hmac-Sha256", encoding="base64")


class GitLab(Scheme):
    """`X-Gitlab-Token` equals the secret.

    `Idempotency-Key` names a delivery where it is sent. `X-Gitlab-Event-UUID` is shared by webhooks that follow from one
    another, so it is asked only where there is no such key.
    """

    name = "gitlab"
    has_ids = True
    event_header = "x-gitlab-event"

    def fault(self, delivery: Delivery, wall: float) -> str:
        token = delivery.headers.get("x-gitlab-token")
        if not token:
            return _missing("X-Gitlab-Token")
        return "" if is_one_of([token.encode("latin-1")], self.keys) else "X-Gitlab-Token is another than the secret"

    def id_of(self, message: Message) -> str:
        return message.header("idempotency-key") or message.header("x-gitlab-event-uuid")

    def sample(self, body: bytes, *, event: str, id_: str, wall: float) -> Signed:
        named = [("X-Gitlab-Event", event)] if event else []
        return Signed((*named, ("X-Gitlab-Event-UUID", id_), ("X-Gitlab-Token", _text(self.keys[0]))), body)


class Stripe(Scheme):
    """`Stripe-Signature: t=…,v1=…` over time and body; an event's id is its `id`."""

    name = "stripe"
    has_ids = True

    def fault(self, delivery: Delivery, wall: float) -> str:
        value = delivery.headers.get("stripe-signature")
        if value is None:
            return _missing("Stripe-Signature")
        fields = [field.strip().partition("=") for field in value.split(",")]
        times = [text for name, _, text in fields if name == "t"]
        signatures = [text for name, _, text in fields if name == "v1"]
        if len(times) != 1 or not signatures or not _DIGITS.fullmatch(times[0]):
            return "Stripe-Signature is not `t=…,v1=…`"
        if not is_signed(self.keys, f"{times[0]}.".encode() + delivery.body, signatures):
            return _mismatch(delivery)
        return _untimely(times[0], wall)

    def id_of(self, message: Message) -> str:
        return message.member("id")

    def sample(self, body: bytes, *, event: str, id_: str, wall: float) -> Signed:
        body = _completed(body, {"id": id_, **({"type": event} if event else {})})
        time = str(int(wall))
        return Signed((("Stripe-Signature", f"t={time},v1={sign(self.keys[0], f'{time}.'.encode() + body)}"),), body)


class Slack(Scheme):
    """`X-Slack-Signature` over time and body; `url_verification` asks whether we are there. Forms hold JSON as `payload`."""

    name = "slack"
    has_ids = True

    def fault(self, delivery: Delivery, wall: float) -> str:
        signature, time = (delivery.headers.get(f"x-slack-{what}") for what in ("signature", "request-timestamp"))
        if signature is None or time is None:
            return _missing("X-Slack-Signature" if signature is None else "X-Slack-Request-Timestamp")
        if not signature.startswith("v0=") or not _DIGITS.fullmatch(time):
            return "X-Slack-Signature is not `v0=…`, or X-Slack-Request-Timestamp is no number"
        if not is_signed(self.keys, f"v0:{time}:".encode() + delivery.body, [signature[3:]]):
            return _mismatch(delivery)
        return _untimely(time, wall)

    def messages(self, delivery: Delivery) -> Sequence[Message]:
        return [_unpacked(message) for message in super().messages(delivery)]

    def welcome(self, message: Message) -> Greeting | None:
        if message.member("type") != "url_verification":
            return None
        return Greeting(message.member("challenge").encode("utf-8", "replace"), (_TEXT, _NO_SNIFFING))

    def id_of(self, message: Message) -> str:
        return message.member("event_id")

    def kind_of(self, message: Message) -> str:
        body = message.facts["body"]
        inner = body.get("event") if isinstance(body, Mapping) else None
        kind = inner.get("type") if isinstance(inner, Mapping) else None
        return kind if isinstance(kind, str) else message.member("type")

    def sample(self, body: bytes, *, event: str, id_: str, wall: float) -> Signed:
        more = {"event": {"type": event}} if event else {}
        body = _completed(body, {"type": "event_callback", "event_id": id_, **more})
        time = str(int(wall))
        signature = "v0=" + sign(self.keys[0], f"v0:{time}:".encode() + body)
        return Signed((("X-Slack-Request-Timestamp", time), ("X-Slack-Signature", signature)), body)


class StandardWebhooks(Scheme):
    """`webhook-signature: v1,…` over id, time and body (standardwebhooks.com); `svix-*` are other names of the same."""

    name = "standard"
    has_ids = True
    _names = ("webhook", "svix")

    def _key(self, secret: str) -> bytes:
        return standard_key(secret)

    def fault(self, delivery: Delivery, wall: float) -> str:
        headers = delivery.headers
        family = next((name for name in self._names if f"{name}-signature" in headers), None)
        if family is None:
            return _missing("webhook-signature")
        id_, time = headers.get(f"{family}-id"), headers.get(f"{family}-timestamp")
        if not id_ or time is None:
            return _missing(f"{family}-id" if not id_ else f"{family}-timestamp")
        if not _DIGITS.fullmatch(time):
            return f"{family}-timestamp is no number of seconds"
        # "a space delimited list"; whoever passes on two header fields may have joined them with a comma
        given = (headers.get(f"{family}-signature") or "").replace(",v1,", " v1,").split()
        signatures = [each[3:].rstrip(",") for each in given if each.startswith("v1,")]
        if not signatures:
            return f"{family}-signature has no `v1,…`"
        payload = f"{id_}.{time}.".encode("latin-1") + delivery.body
        if not is_signed(self.keys, payload, signatures, encoding="base64"):
            return _mismatch(delivery)
        return _untimely(time, wall)

    def id_of(self, message: Message) -> str:
        # The one that was signed: any other may have been added to it.
        family = next((name for name in self._names if message.header(f"{name}-signature")), self._names[0])
        return message.header(f"{family}-id")

    def sample(self, body: bytes, *, event: str, id_: str, wall: float) -> Signed:
        if event:
            body = _completed(body, {"type": event})
        time = str(int(wall))
        signature = "v1," + sign(self.keys[0], f"{id_}.{time}.".encode() + body, encoding="base64")
        names = ("webhook-id", id_), ("webhook-timestamp", time), ("webhook-signature", signature)
        return Signed(names, body)


def standard_key(secret: str) -> bytes:
    """The key in `whsec_` and base64. Raises `ValueError` when it is none."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ValueError("a Standard Webhooks secret is `whsec_` and base64")
    return key


class CloudEvents(Token):
    """`Authorization: Bearer`, or `access_token` in the query (CloudEvents webhooks 1.0, 3); `OPTIONS` asks whether we want it."""

    name = "cloudevents"
    methods = ("POST", "OPTIONS")
    has_ids = True
    event_header = "ce-type"

    def greet(self, method: str, delivery: Delivery) -> Greeting | None:
        origin = delivery.headers.get("webhook-request-origin")
        if method != "OPTIONS" or origin is None:
            return None
        allowed = ((b"webhook-allowed-origin", origin.encode("latin-1")), (b"webhook-allowed-rate", b"*"))
        return Greeting(b"", ((b"allow", b"POST, OPTIONS"), *allowed))

    def fault(self, delivery: Delivery, wall: float) -> str:
        if "access_token" in delivery.query and "authorization" not in delivery.headers:
            token = delivery.query["access_token"].encode("utf-8", "replace")
            return "" if is_one_of([token], self.keys) else "`access_token` is another than the token in `verify`"
        return super().fault(delivery, wall)

    def id_of(self, message: Message) -> str:
        source, id_ = message.header("ce-source"), message.header("ce-id")
        return f"{source} {id_}" if source and id_ else ""

    def sample(self, body: bytes, *, event: str, id_: str, wall: float) -> Signed:
        signed = super().sample(body, event="", id_=id_, wall=wall)
        named = {"specversion": "1.0", "id": id_, "source": "/ssegate/send", "type": event or "ssegate.sample"}
        # HTTP binding 1.0, 3.1.3.2: what a header cannot carry is percent-encoded
        attributes = tuple((f"ce-{name}", quote(value, safe=_UNENCODED)) for name, value in named.items())
        return Signed((*attributes, *signed.headers), body)


class MicrosoftGraph(Scheme):
    """`clientState` of each notification in `value`; `validationToken` in the query asks whether we are there.

    A notification is an event without its `clientState`.
    """

    name = "msgraph"

    def greet(self, method: str, delivery: Delivery) -> Greeting | None:
        token = delivery.query.get("validationToken")
        if method != "POST" or token is None:
            return None
        return Greeting(token.encode("utf-8", "replace"), (_TEXT, _NO_SNIFFING))

    def fault(self, delivery: Delivery, wall: float) -> str:
        try:
            items = _notifications(delivery)
        except RejectedError:
            # Nobody has proven anything yet, so it is not told what is wrong with its body.
            return 'the body is no list of notifications, `{"value": […]}`, so there is no `clientState` to look at'
        for item in items:
            state = item.get("clientState")
            if not isinstance(state, str) or not is_one_of([state.encode("utf-8", "replace")], self.keys):
                return "`clientState` of a notification is missing, or another than the one in `verify`"
        return "" if items else "the body has no notification, and so no `clientState`"

    def messages(self, delivery: Delivery) -> Sequence[Message]:
        headers, query = read_headers(delivery), read_query(delivery)
        # Without what proves it: a viewer who knew that could make notifications of its own.
        items = [
            {name: value for name, value in item.items() if name != "clientState"} for item in _notifications(delivery)
        ]
        return [Message(message_facts(item, headers, query), write_json(item, "a notification")) for item in items]

    def kind_of(self, message: Message) -> str:
        return message.member("lifecycleEvent") or message.member("changeType")

    def sample(self, body: bytes, *, event: str, id_: str, wall: float) -> Signed:
        item = _json_of(body)
        items = item["value"] if isinstance(item, dict) and isinstance(item.get("value"), list) else [item]
        if not items or not all(isinstance(each, dict) for each in items):
            raise ValueError("a notification is a JSON object, or several are in the list `value` of one")
        named = {"changeType": event} if event else {}
        filled = [{**named, **each, "clientState": _text(self.keys[0])} for each in items]
        return Signed((), json.dumps({"value": filled}).encode())


class WebSub(Scheme):
    """`X-Hub-Signature: <algorithm>=<hex>` over the body (W3C WebSub, 7.1); what does not match is dropped in silence."""

    name = "websub"
    is_silent = True
    _algorithms: Mapping[str, Algorithm] = {"sha1": "sha1", "sha256": "sha256", "sha384": "sha384", "sha512": "sha512"}

    def fault(self, delivery: Delivery, wall: float) -> str:
        value = delivery.headers.get("x-hub-signature")
        if value is None:
            return _missing("X-Hub-Signature")
        method, _, signature = value.partition("=")
        algorithm = self._algorithms.get(method.strip().lower())
        if algorithm is None:
            return "X-Hub-Signature is by none of sha1, sha256, sha384 and sha512"
        return "" if is_signed(self.keys, delivery.body, [signature.strip()], algorithm) else _mismatch(delivery)

    def sample(self, body: bytes, *, event: str, id_: str, wall: float) -> Signed:
        super().sample(body, event=event, id_=id_, wall=wall)
        return Signed((("X-Hub-Signature", f"sha256={sign(self.keys[0], body)}"),), body)


def _notifications(delivery: Delivery) -> Sequence[Mapping[str, object]]:
    body = read_json(delivery.body)
    items = body.get("value") if isinstance(body, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RejectedError(400, "the body is no list of notifications")
    return items


def _unpacked(message: Message) -> Message:
    """A form that holds a JSON document as `payload` is that document."""
    packed = message.member("payload")
    if not packed or media_type(message.header("content-type")) != "application/x-www-form-urlencoded":
        return message
    document = read_json(packed.encode("utf-8", "surrogateescape"))
    return replace(message, facts={**message.facts, "body": document}, text=packed)


# What is said, to whom it concerns


def _missing(header: str) -> str:
    return f"{header} is missing; is a secret set on the provider's page?"


def _mismatch(delivery: Delivery) -> str:
    size = len(delivery.body)
    return f"signature does not match; the body was {size:,} bytes; is the secret the one shown on the provider's page?"


def _untimely(time: str, wall: float) -> str:
    age = wall - int(time)
    if abs(age) <= TOLERANCE:
        return ""
    where = f"{_spoken(age)} old" if age > 0 else f"{_spoken(-age)} in the future"
    return (
        f"the signature is good, but its time is {where}, more than {_spoken(TOLERANCE)}: a replay, or a clock is wrong"
    )


def _spoken(seconds: float) -> str:
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{int(seconds)} seconds"


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def _json_of(body: bytes) -> Any:
    """What it says as JSON; None when that is nothing."""
    try:
        return decode(body)
    except (UndecodableError, RecursionError):
        return None


def _completed(body: bytes, members: Mapping[str, object]) -> bytes:
    """A JSON object with these members where it lacks them; what is no object is as it is."""
    document = _json_of(body)
    if not isinstance(document, dict) or all(name in document for name in members):
        return body
    return json.dumps({**members, **document}, ensure_ascii=False).encode()
