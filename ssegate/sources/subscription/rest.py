"""Subscriptions at a backend's own API, made of requests that the configuration describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from ssegate.config.model import RestCall, SubscribeRest
from ssegate.core.delivery import as_text, is_json, media_type
from ssegate.core.document import decode
from ssegate.core.template import Template
from ssegate.errors import UndecodableError
from ssegate.sources.subscription.ledger import Record
from ssegate.sources.subscription.provider import GONE, MAX_ANSWER, Grant, RefusedError, UpstreamOf, checked, filled
from ssegate.upstream import FetchAnswer


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
                checked(answer, self._told(renew))
                return Grant(record, renew.every, is_interval=True)
        create = self._settings.create
        answer = checked(await self._call(create, record), self._told(create))
        made = replace(record, is_made=True, id=self._id_in(answer))
        made = replace(made, undo=self._undo(made))
        return Grant(made, None if renew is None else renew.every, is_interval=True)

    async def _call(self, call: RestCall, record: Record) -> FetchAnswer:
        values = self._values(record)
        headers, body = [(b"Accept", b"application/json")], None
        if call.body is not None:
            body = json.dumps(filled(call.body, values)).encode()
            headers.append((b"Content-Type", b"application/json"))
        return await self._upstream().fetch(
            Template(call.path).expand_url(values),
            headers,
            method=call.method,
            body=body if body is not None or call.method in ("GET", "DELETE") else b"",
            reads_refusals=True,
            max_body=MAX_ANSWER,
        )

    def _values(self, record: Record) -> Mapping[str, str]:
        own = {"callback": record.callback, "secret": self._secret, "id": record.id}
        return {**{f"env.{name}": value for name, value in self._environ.items()}, **own}

    def _id_in(self, answer: FetchAnswer) -> str:
        expression = self._settings.create.id
        if expression is None:
            return ""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
        try:
            body = decode(answer.body) if is_json(media_type(headers.get("content-type", ""))) else as_text(answer.body)
            found = expression({"body": body, "headers": headers})
        except UndecodableError as error:
            raise RefusedError(f"{self._told(self._settings.create)}: {error}") from error
        if not isinstance(found, str | int) or isinstance(found, bool) or found == "":
            raise RefusedError(
                f"{self._told(self._settings.create)}: `id: {expression.text}` finds no id in the answer"
            )
        return str(found)

    def _undo(self, record: Record) -> tuple[str, str, str]:
        """Worked out while the configuration that made it is there."""
        delete = self._settings.delete
        if delete is None:
            return ("", "", "")
        return (self._name, delete.method, Template(delete.path).expand_url(self._values(record)))

    def _told(self, call: RestCall) -> str:
        return f"{call.method} {call.path.partition('?')[0]}"
