"""The paths that take deliveries: how each is verified, and which routes it feeds."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, SecretStr

from ssegate.config.model import Config
from ssegate.config.webhook import Webhook
from ssegate.core import scheme as schemes
from ssegate.core.delivery import Message
from ssegate.core.scheme import Scheme
from ssegate.core.seen import Seen
from ssegate.errors import RejectedError, UndecodableError
from ssegate.sources.subscription import Ledger, Record
from ssegate.sources.webhook import Selection

if TYPE_CHECKING:
    from ssegate.gate.routes import WebhookRoute
    from ssegate.gate.watched import PollRoute

Secrets = Sequence[str]

_SHARED: dict[str, Callable[[Secrets], Scheme]] = {
    "github": schemes.GitHub,
    "gitlab": schemes.GitLab,
    "stripe": schemes.Stripe,
    "slack": schemes.Slack,
    "shopify": schemes.Shopify,
    "standard": schemes.StandardWebhooks,
    "cloudevents": schemes.CloudEvents,
    "msgraph": schemes.MicrosoftGraph,
    "websub": schemes.WebSub,
    "token": schemes.Token,
    "none": Scheme,
}
"""The schemes for which a secret is all that is to be said."""


class Inlet:
    """What comes into a route: which messages, and which of them have come before."""

    def __init__(self, webhook: Webhook, before: Inlet | None) -> None:
        """`before`: of the same route in the configuration before this one; what came there is known here."""
        self.selection = Selection(webhook.match, webhook.when)
        self._dedupe = webhook.dedupe
        is_same = before is not None and before._dedupe == webhook.dedupe
        self.seen: Seen = before.seen if before is not None and is_same else Seen(webhook.dedupe.age)
        self.pending: dict[str, asyncio.Future[None] | None] = {}
        """Messages by id that are being stored at this moment, and what those wait for who have the same one."""

    def id_of(self, scheme: Scheme, message: Message) -> str:
        """By what the message is known again; empty when it has nothing of that kind. Raises `RejectedError` 400."""
        if self._dedupe.by is None:
            return scheme.id_of(message)
        try:
            id_ = self._dedupe.by(message.facts)
        except UndecodableError as error:
            raise RejectedError(400, str(error)) from error
        return str(id_) if isinstance(id_, str | int) and not isinstance(id_, bool) else ""

    def begin(self, id_: str) -> None:
        """A message is about to be stored."""
        self.pending[id_] = None

    def end(self, id_: str) -> None:
        """It is stored, or that failed."""
        waited_for = self.pending.pop(id_)
        if waited_for is not None:
            waited_for.set_result(None)

    async def wait(self, id_: str) -> None:
        """Wait until a message that is being stored is, or is not."""
        waited_for = self.pending[id_]
        if waited_for is None:
            waited_for = self.pending[id_] = asyncio.get_running_loop().create_future()
        await asyncio.wait((waited_for,))


class Hook:
    """One path that takes deliveries."""

    def __init__(self, webhook: Webhook, config: Config, ledger: Ledger) -> None:
        """Of what `ledger` has not, it gets a new record, with a secret of its own if the configuration says none."""
        self.at = webhook.at
        self.webhook = webhook
        """As one of its routes has it: what concerns all of them is the same in each."""
        said = webhook.verify.secrets if webhook.verify is not None else None
        known = [secret.get_secret_value() for secret in said or ()]
        self.record: Record | None = None
        """The subscription, if there is one."""
        if webhook.subscribe is not None:
            self.record = _claim(webhook, config, ledger, has_secret=bool(known))
            known = known or [self.record.secret]
        self.secret = known[0] if known else ""
        """What the backend is told to sign with."""
        self.scheme = _make_scheme(webhook, known)
        self.routes: list[PollRoute | WebhookRoute] = []


def _make_scheme(webhook: Webhook, known: Secrets) -> Scheme:
    verify = webhook.verify
    if verify is not None and verify.hmac is not None:
        rule = verify.hmac
        return schemes.Hmac(known, rule.header, algorithm=rule.algorithm, encoding=rule.encoding, prefix=rule.prefix)
    return _SHARED[webhook.scheme](known)


def _claim(webhook: Webhook, config: Config, ledger: Ledger, *, has_secret: bool) -> Record:
    assert webhook.subscribe is not None
    assert webhook.callback is not None

    def make_secret() -> str:
        if has_secret:
            return ""
        if webhook.scheme == "standard":
            return "whsec_" + b64encode(secrets.token_bytes(32)).decode()
        return secrets.token_urlsafe(32)

    kind = webhook.subscribe.kind
    return ledger.claim(webhook.at, _definition(webhook, config), kind, webhook.callback, make_secret)


def _definition(webhook: Webhook, config: Config) -> str:
    """A digest of all that makes a subscription what it is: of another one the old is taken back and the new one made."""
    assert webhook.subscribe is not None
    upstream = config.upstreams.get(webhook.subscribe.upstream)
    facts = {
        "callback": webhook.callback,
        "subscribe": {name: _plain(value) for name, value in webhook.subscribe if name != "keep"},
        "verify": _plain(webhook.verify),
        "upstream": None if upstream is None else upstream.url,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return {name: _plain(item) for name, item in value}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return _plain_all(value)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return value if value is None or isinstance(value, str | int | float) else str(getattr(value, "text", value))


def _plain_all(values: Iterable[object]) -> object:
    """Of several secrets only the first is given to the backend."""
    items = list(values)
    return _plain(items[0]) if items and isinstance(items[0], SecretStr) else [_plain(item) for item in items]
