"""Asks URLs that are no upstream of the configuration: topics and hubs of WebSub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import urljoin, urlsplit

from ssegate.config.model import Upstream as UpstreamSettings
from ssegate.core.headers import Pair
from ssegate.sources.subscription.provider import MAX_ANSWER, RefusedError
from ssegate.upstream import FetchAnswer, Upstream

MAX_HOPS = 5
"""Redirects that are followed, from one origin to another too."""

SettingsOf = Callable[[str], UpstreamSettings]
"""How an origin is asked: as the configuration's upstream that is there, if one is. Raises `ValueError` for what is no origin."""

_REDIRECTS = {"GET": (301, 302, 303, 307, 308), "POST": (307, 308)}
"""A hub "MAY use" 307 and 308 only (W3C WebSub, 5.1.1): the others would make a GET of it."""


class Web:
    """A client of any origin, one connection for each request: it is asked a few times a day."""

    def __init__(self, settings_of: SettingsOf) -> None:
        self._settings_of = settings_of

    async def fetch(
        self, method: str, url: str, headers: Sequence[Pair], body: bytes | None = None
    ) -> tuple[FetchAnswer, str]:
        """Ask, wherever redirects lead; returns the answer, and the URL that gave it. Raises `UpstreamError` and its kinds."""
        for _ in range(MAX_HOPS + 1):
            answer = await self._fetch_once(method, url, headers, body)
            location = answer.headers.get("location")
            if answer.status not in _REDIRECTS[method] or location is None:
                return answer, url
            url = urljoin(url, location)
        raise RefusedError(f"{method} {shown_url(url)}: more than {MAX_HOPS} redirects")

    async def _fetch_once(self, method: str, url: str, headers: Sequence[Pair], body: bytes | None) -> FetchAnswer:
        parts = urlsplit(url)
        try:
            if "@" in parts.netloc or not url.isascii():
                raise ValueError
            upstream = Upstream("websub", self._settings_of(f"{parts.scheme}://{parts.netloc}"))
        except ValueError as error:
            raise RefusedError(f"{method} {shown_url(url)}: it is no URL that can be asked") from error
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            return await upstream.fetch(
                target, headers, method=method, body=body, reads_refusals=True, max_body=MAX_ANSWER
            )
        finally:
            await upstream.aclose()


def shown_url(url: str) -> str:
    """Without user and query, which may be secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
