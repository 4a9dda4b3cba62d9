"""Subscriptions at a backend's own API, made of requests that the configuration describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from ssegate.config.webhook import RestCall, SubscribeRest
from ssegate.core.delivery import as_text, is_json, media_type
from ssegate.core.document import decode
from ssegate.core.template import Template
from ssegate.errors import UndecodableError
from ssegate.sources.subscription.ledger import Record
from ssegate.sources.subscription.provider import GONE, Grant, RefusedError, UpstreamOf, checked, filled, send_json
from ssegate.upstream import FetchAnswer

WITHOUT_ID = 600.0
"""Seconds until it is asked again where a webhook was made and its id is not found."""


class RestProvider:
    """See `provider.Provider`."""

    def __init__(
        self, settings: SubscribeRest, secret: str, name: str, upstream: UpstreamOf, environ: Mapping[str, str]
    ) -> None:
        """`name` is the upstream's; `environ` is what `{env.X}` stands for."""
        self._settings = settings
        self._secret = secret
        self._name = name
        self._upstream = upstream
        self._environ = environ

    async def prepare(self, record: Record) -> Record:
        return record

    async def ask(self, record: Record) -> Grant:
        renew = self._settings.renew
        if record.is_made:
            if renew is None:
                return Grant(record, None)
            answer = await self._call(renew, record)
            if answer.status not in GONE:
                self._checked(answer, renew, record)
                return Grant(record, renew.every, is_interval=True)
        create = self._settings.create
        answer = self._checked(await self._call(create, record), create, record)
        made = replace(record, is_made=True, id=self._id_in(answer))
        made = replace(made, undo=self._undo(made))
        return Grant(made, None if renew is None else renew.every, is_interval=True)

    async def _call(self, call: RestCall, record: Record) -> FetchAnswer:
        return await send_json(self._upstream(), *self._request(call, record))

    def _request(self, call: RestCall, record: Record) -> tuple[str, str, str]:
        """Method, path and body."""
        values = self._values(record)
        body = "" if call.body is None else json.dumps(filled(call.body, values))
        return (call.method, Template(call.path).expand_url(values), body)

    def _values(self, record: Record) -> Mapping[str, str]:
        own = {"callback": record.callback, "secret": self._secret, "id": record.id}
        return {**{f"env.{name}": value for name, value in self._environ.items()}, **own}

    def _id_in(self, answer: FetchAnswer) -> str:
        """The subscription's id. Raises `RefusedError` when there is none."""
        expression = self._settings.create.id
        if expression is None:
            return ""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
        try:
            body = decode(answer.body) if is_json(media_type(headers.get("content-type", ""))) else as_text(answer.body)
            found = expression({"body": body, "headers": headers})
        except UndecodableError as error:
            raise RefusedError(f"{self._told(self._settings.create)}: {error}") from error
        if isinstance(found, str | int) and not isinstance(found, bool) and found != "":
            return str(found)
        told = f"{self._told(self._settings.create)}: `id: {expression.text}` finds no id in the answer"
        # It has probably been made all the same, and each further attempt would make another one.
        raise RefusedError(told, retry_after=WITHOUT_ID if isinstance(body, dict | list) else 0.0)

    def _undo(self, record: Record) -> tuple[str, ...]:
        """Worked out while the configuration that made it is there."""
        delete = self._settings.delete
        return () if delete is None else (self._name, *self._request(delete, record))

    def _checked(self, answer: FetchAnswer, call: RestCall, record: Record) -> FetchAnswer:
        return checked(answer, self._told(call), self._secret, record.callback)

    def _told(self, call: RestCall) -> str:
        return f"{call.method} {call.path.partition('?')[0]}"
