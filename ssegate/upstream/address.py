"""Where an upstream is and how requests to it are called in messages, made from its configured URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}
_UNPRINTABLE = re.compile(rb"[^\x21-\x7e]")
_LONGEST_PATH = 200
"""Characters of a path that a message shows."""


@dataclass(frozen=True, slots=True)
class Address:
    """A configured URL, taken apart. Userinfo, query and fragment are not part of it."""

    scheme: str
    host: str
    port: int
    prefix: bytes
    """The URL's own path without a slash at its end; stands before every target."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises `ValueError` when it is no http or https URL with a host."""
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise ValueError("an upstream's url is http://host:port or https://host:port, with a path or without")
        prefix = parts.path.rstrip("/").encode("ascii")
        return cls(parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme], prefix)

    @property
    def authority(self) -> str:
        """The value of Host: without the port when it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def target(self, path: bytes) -> bytes:
        """The request's target for a path and query under this address."""
        return self.prefix + path if path.startswith(b"/") else path

    def label(self, method: str, target: bytes) -> str:
        """What messages call a request: no query, no userinfo, nothing that could forge a line."""
        path = _UNPRINTABLE.sub(b"?", target.partition(b"?")[0]).decode("ascii")
        shown = path if len(path) <= _LONGEST_PATH else path[:_LONGEST_PATH] + "…"
        return f"{method} {self.scheme}://{self.authority}{shown}"

    def follow(self, target: bytes, location: str) -> bytes | None:
        """The target a redirect from `target` leads to; None when it leads to another scheme, host or port."""
        here = f"{self.scheme}://{self.authority}{target.decode('latin-1')}"
        try:
            there = urlsplit(urljoin(here, location))
            port = there.port or _DEFAULT_PORTS.get(there.scheme)
        except ValueError:
            return None
        if (there.scheme, there.hostname, port) != (self.scheme, self.host, self.port):
            return None
        onward = (there.path or "/") + (f"?{there.query}" if there.query else "")
        raw = onward.encode("latin-1", "replace")
        return None if _UNPRINTABLE.search(raw) else raw

    def onward(self, path: str, location: str) -> str | None:
        """The path under this address that a Location in the answer to `path` names; None when it is not under this address."""
        target = self.follow(self.target(path.encode("ascii")), location)
        if target is None or not target.startswith(self.prefix + b"/"):
            return None
        return target[len(self.prefix) :].decode("ascii")
