"""Subscriptions at WebSub hubs (W3C Recommendation "WebSub", 4 and 5): found at the topic, asked for, confirmed by the hub's call."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from urllib.parse import urlencode, urljoin, urlsplit

from ssegate.config.webhook import SubscribeWebSub
from ssegate.core.delivery import media_type
from ssegate.core.headers import Headers
from ssegate.sources.subscription.ledger import Record
from ssegate.sources.subscription.provider import Grant, RefusedError, checked
from ssegate.sources.subscription.web import Web, shown_url

_LINK = re.compile(r'<([^<>]*)>((?:\s*;\s*[^\s;,="]+(?:\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s;,"]*))?)*)')
_PARAMETER = re.compile(r';\s*([^\s;,="]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*)))?')
_MARKUP = (
    "text/html",
    "application/xhtml+xml",
    "application/atom+xml",
    "application/rss+xml",
    "application/xml",
    "text/xml",
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a topic says of itself."""

    hubs: tuple[str, ...]
    topic: str
    """Its own URL: `rel=self`."""


class WebSubProvider:
    """See `provider.Provider`. Nothing is granted before the hub has called back: see `Keeper.confirm`."""

    def __init__(self, settings: SubscribeWebSub, secret: str, web: Web) -> None:
        self._settings = settings
        self._secret = secret
        self._web = web
        self._turn = 0

    async def prepare(self, record: Record) -> Record:
        found = await self._discover()
        hub = found.hubs[self._turn % len(found.hubs)]  # one that refuses is not the only one
        # Asking twice for the same is asking once (5.1), so it counts as made from here on.
        is_same = (record.hub, record.topic) == (hub, found.topic)
        return replace(record, is_made=True, hub=hub, topic=found.topic, until=record.until if is_same else 0.0)

    async def ask(self, record: Record) -> Grant:
        self._turn += 1
        fields = {"hub.lease_seconds": str(max(1, round(self._settings.lease))), "hub.secret": self._secret}
        await post(self._web, "subscribe", record, fields)
        self._turn -= 1
        return Grant(record, None, is_confirmed=False)

    async def _discover(self) -> Found:
        """Find the topic's hubs: in the Link headers, else in the document (4, "Discovery")."""
        accept = ((b"Accept", b"*/*"),)
        answer, url = await self._web.fetch("GET", self._settings.topic, accept)
        checked(answer, f"topic {shown_url(url)}")
        links = list(link_headers(answer.headers))
        if (
            not any("hub" in rels for _, rels in links)
            and media_type(answer.headers.get("content-type") or "") in _MARKUP
        ):
            links = list(embedded_links(answer.body))
        hubs = [urljoin(url, target) for target, rels in links if "hub" in rels]
        hubs = [hub for hub in hubs if urlsplit(hub).scheme in ("http", "https")]
        if not hubs:
            raise RefusedError(f"topic {shown_url(url)}: it names no hub, neither by a Link header nor in its body")
        own = next((urljoin(url, target) for target, rels in links if "self" in rels), url)
        return Found(tuple(hubs), own)


async def post(web: Web, mode: str, record: Record, more: Mapping[str, str]) -> None:
    """Ask the record's hub (5.1). Raises `UpstreamError` and its kinds."""
    own = {"hub.mode": mode, "hub.topic": record.topic, "hub.callback": record.callback}
    body = urlencode({**own, **more}).encode()
    kind = ((b"Content-Type", b"application/x-www-form-urlencoded"),)
    answer, url = await web.fetch("POST", record.hub, kind, body)
    checked(answer, f"{mode} at {shown_url(url)}", more.get("hub.secret", ""), record.token)


def link_headers(headers: Headers) -> Iterable[tuple[str, frozenset[str]]]:
    """The targets of Link fields with their relations, in lower case (RFC 8288, 3)."""
    for target, parameters in _LINK.findall(headers.get("link") or ""):
        # "The rel parameter MUST NOT appear more than once": of several the first counts
        rels = [quoted or bare for name, quoted, bare in _PARAMETER.findall(parameters) if name.lower() == "rel"]
        if rels:
            yield target.strip(), frozenset(rels[0].lower().split())


def embedded_links(body: bytes) -> Iterable[tuple[str, frozenset[str]]]:
    """The same out of the `<link>` elements of HTML, Atom and RSS."""
    parser = _Links()
    parser.feed(body.decode("utf-8", "replace"))
    return parser.found


class _Links(HTMLParser):
    """Forgiving enough for XML too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, frozenset[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag.rpartition(":")[2] == "link" and values.get("href"):
            self.found.append((str(values["href"]), frozenset((values.get("rel") or "").lower().split())))

    handle_startendtag = handle_starttag
