"""How a kind of backend is asked for its webhooks, as the keeper of a subscription sees it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, quote_plus

from ssegate.core.poll import LONGEST_WAIT, retry_after
from ssegate.core.template import Template
from ssegate.errors import UpstreamError
from ssegate.sources.subscription.ledger import Record
from ssegate.upstream import FetchAnswer, Upstream

MAX_ANSWER = 256 * 1024
"""Bytes of an answer to a subscription's request, or of the topic where a hub is looked for."""

_SHOWN = 200
_LOOKED_AT = 16 * 1024
GONE = (404, 410)
"""Statuses that say that a subscription is not known there."""


UpstreamOf = Callable[[], Upstream]
"""The upstream that is asked, as the configuration has it now."""


class RefusedError(UpstreamError):
    """The backend answered, and does not want it. `status` is 0 where that is not the reason; `retry_after` in seconds, 0 is
    not said."""

    def __init__(self, message: str, status: int = 0, retry_after: float = 0.0) -> None:
        self.status = status
        self.retry_after = retry_after
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a backend answered that was asked."""

    record: Record
    """What is known of the subscription now."""
    seconds: float | None
    """How long it lasts; None is for good."""
    is_interval: bool = False
    """Whether `seconds` says when to ask again, and not how long it lasts."""
    is_confirmed: bool = True
    """Whether it is granted with that; if not, the backend calls back to grant it."""


class Provider(Protocol):
    """Asks one backend for one subscription."""

    async def prepare(self, record: Record) -> Record:
        """Find out what has to be known before it is asked: it may call back before it answers. Raises as `ask` does."""
        ...

    async def ask(self, record: Record) -> Grant:
        """Make the subscription, or renew it where the record says that there is one; make it anew if it is not known there.

        Raises `UpstreamError` and its kinds, among them `RefusedError`.
        """
        ...


async def send_json(upstream: Upstream, method: str, path: str, body: str) -> FetchAnswer:
    """Ask the backend; an empty body is none. Raises `UpstreamError` and its kinds, whatever the answer's status is no error."""
    kind = ((b"Content-Type", b"application/json"),) if body else ()
    is_sent = body or method not in ("GET", "DELETE")
    return await upstream.fetch(
        path,
        ((b"Accept", b"application/json"), *kind),
        method=method,
        body=body.encode() if is_sent else None,
        reads_refusals=True,
        max_body=MAX_ANSWER,
    )


def checked(answer: FetchAnswer, what: str, *hidden: str) -> FetchAnswer:
    """An answer that is a success. Raises `RefusedError` with the beginning of what it says otherwise.

    `what` names the request; `hidden` is not to be told though the backend repeats it: many quote what they do not like.
    """
    if 200 <= answer.status < 300:
        return answer
    text = " ".join(answer.body[:_LOOKED_AT].decode("utf-8", "replace").split())
    for secret in filter(None, hidden):
        for form in (secret, json.dumps(secret)[1:-1], quote(secret, safe=""), quote_plus(secret)):
            text = text.replace(form, "***")
    said = "".join(each if each.isprintable() else "?" for each in text)[:_SHOWN]
    wait = min(retry_after(answer.headers, time.time()), LONGEST_WAIT)
    raise RefusedError(f"{what}: {answer.status}{': ' + said if said else ''}", answer.status, wait)


def filled(value: object, values: Mapping[str, str]) -> object:
    """JSON whose texts are templates, with these values in their places."""
    if isinstance(value, dict):
        return {name: filled(item, values) for name, item in value.items()}
    if isinstance(value, list):
        return [filled(item, values) for item in value]
    return Template(value).expand(values) if isinstance(value, str) else value
