"""The JavaScript client, as the gate serves it to pages."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from importlib.resources import files

from ssegate.edge.exchange import Answer

_FILES = {"client.js": b"text/javascript; charset=utf-8", "client.d.ts": b"text/plain; charset=utf-8"}


def client_answers() -> Mapping[bytes, Answer]:
    """The client and its types, by their paths. Any page may use it, of whatever origin: it says nothing of anybody."""
    return {b"/_ssegate/" + name.encode(): _answer(name, media) for name, media in _FILES.items()}


def _answer(name: str, media: bytes) -> Answer:
    body = (files("ssegate") / "client" / name).read_bytes()
    return Answer(
        200,
        (
            (b"content-type", media),
            (b"cache-control", b"public, max-age=3600"),
            (b"etag", b'"%b"' % blake2b(body, digest_size=12).hexdigest().encode()),
            (b"access-control-allow-origin", b"*"),
            (b"cross-origin-resource-policy", b"cross-origin"),
        ),
        body,
    )
