"""Subscriptions of Microsoft Graph (Microsoft Graph REST API v1.0, "subscription resource type")."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime

from ssegate.config.webhook import SubscribeGraph
from ssegate.core.document import decode
from ssegate.core.template import percent_encode
from ssegate.errors import UndecodableError
from ssegate.sources.subscription.ledger import Record
from ssegate.sources.subscription.provider import GONE, Grant, RefusedError, UpstreamOf, checked, send_json
from ssegate.upstream import FetchAnswer


class GraphProvider:
    """See `provider.Provider`. Graph asks the callback for its `validationToken` before it answers."""

    def __init__(self, settings: SubscribeGraph, secret: str, name: str, upstream: UpstreamOf) -> None:
        """`name` is the upstream's."""
        self._settings = settings
        self._secret = secret
        self._name = name
        self._upstream = upstream

    async def prepare(self, record: Record) -> Record:
        return record

    async def ask(self, record: Record) -> Grant:
        expires = self._timestamp()
        if record.is_made and record.id:
            answer = await self._call(
                "PATCH", f"/subscriptions/{percent_encode(record.id)}", {"expirationDateTime": expires}
            )
            if answer.status not in GONE:
                return self._granted(record, checked(answer, "PATCH /subscriptions/…", self._secret))
        answer = await self._call(
            "POST",
            "/subscriptions",
            {
                "changeType": ",".join(self._settings.change),
                "notificationUrl": record.callback,
                "lifecycleNotificationUrl": record.callback,
                "resource": self._settings.resource,
                "expirationDateTime": expires,
                "clientState": self._secret,
            },
        )
        return self._granted(record, checked(answer, "POST /subscriptions", self._secret))

    async def _call(self, method: str, path: str, body: object) -> FetchAnswer:
        return await send_json(self._upstream(), method, path, json.dumps(body))

    def _timestamp(self) -> str:
        until = datetime.fromtimestamp(time.time() + self._settings.expires, UTC)
        return until.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _granted(self, record: Record, answer: FetchAnswer) -> Grant:
        """What was granted, which may be less than what was asked for."""
        try:
            document = decode(answer.body) if answer.body else {}
        except UndecodableError as error:
            raise RefusedError(f"/subscriptions: {error}") from error
        facts = document if isinstance(document, dict) else {}
        id_ = facts.get("id") or record.id
        if not isinstance(id_, str) or not id_:
            raise RefusedError("POST /subscriptions: the answer has no `id`")
        seconds = _seconds_until(facts.get("expirationDateTime")) or self._settings.expires
        undo = (self._name, "DELETE", f"/subscriptions/{percent_encode(id_)}", "")
        return Grant(replace(record, is_made=True, id=id_, undo=undo), seconds)


def _seconds_until(value: object) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        until = datetime.fromisoformat(value)
    except ValueError:
        return None
    return max(1.0, (until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp() - time.time())
