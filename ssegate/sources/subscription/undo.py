"""Takes a subscription back by what is remembered of it: the configuration that made it may be gone."""

from __future__ import annotations

from collections.abc import Callable

from ssegate.sources.subscription.ledger import Record
from ssegate.sources.subscription.provider import GONE, RefusedError, checked, send_json
from ssegate.sources.subscription.web import Web
from ssegate.sources.subscription.websub import post
from ssegate.upstream import Upstream


class Undo:
    """Removes subscriptions of every kind."""

    def __init__(self, web: Web, upstream_named: Callable[[str], Upstream | None]) -> None:
        """`upstream_named` gives the configuration's upstream of that name, or None."""
        self._web = web
        self._upstream_named = upstream_named

    async def __call__(self, record: Record) -> bool:
        """Ask the backend; one that does not know it is fine. False when the backend calls back to ask whether that is meant.

        Raises `UpstreamError` and its kinds.
        """
        if record.kind == "websub":
            return await self._leave_hub(record)
        if not record.undo:
            return True  # nothing is said of how to remove it
        name, method, path, body = record.undo
        upstream = self._upstream_named(name)
        if upstream is None:
            raise RefusedError(f"{method} {path}: there is no upstream `{name}` any more")
        answer = await send_json(upstream, method, path, body)
        if answer.status not in GONE:
            checked(answer, f"{method} {path.partition('?')[0]}")
        return True

    async def _leave_hub(self, record: Record) -> bool:
        if not record.hub:
            return True
        try:
            await post(self._web, "unsubscribe", record, {})
        except RefusedError as error:
            if error.status not in GONE:
                raise
            return True
        return False
