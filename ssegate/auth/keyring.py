"""An issuer's keys: read at once, or fetched without anybody waiting who need not, and kept while the issuer is down."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from urllib.parse import urlsplit

from ssegate.config.auth import SigningKeys
from ssegate.config.keyset import MAX_BYTES, KeyFault, KeySet, read_jwks, read_key_file, shared_keys
from ssegate.config.model import Upstream as UpstreamSettings
from ssegate.core.headers import Headers
from ssegate.core.signature import key_of
from ssegate.errors import UpstreamError
from ssegate.upstream import Upstream

log = logging.getLogger(__name__)

USUAL_AGE = 300.0
"""Seconds for which keys are taken for fresh where the issuer says nothing."""

SHORTEST_AGE = 30.0
LONGEST_AGE = 86400.0

UNKNOWN_PAUSE = 30.0
"""Seconds between two fetches on account of keys that nobody knows: whoever makes up key ids must not flood the issuer."""

RETRY = (1.0, 30.0)
"""Seconds between two attempts while the issuer is down: the first, and the longest."""

_MAX_AGE = re.compile(r"(?:^|[,\s])max-age\s*=\s*\"?([0-9]{1,9})", re.IGNORECASE)


def make_keyring(name: str, keys: SigningKeys) -> Keyring:
    """The keys of a guard with this name. Raises `KeyFault` when a file has none."""
    if keys.url is not None:
        return FetchedKeyring(name, keys.url)
    if keys.file is not None:
        return Keyring(read_key_file(keys.file))
    assert keys.secret is not None, "the configuration knows three kinds of keys"
    return Keyring(shared_keys(key_of(secret.get_secret_value()) for secret in keys.secret))


class Keyring:
    """Keys that are at hand."""

    def __init__(self, keys: KeySet | None) -> None:
        self.keys = keys
        """None: there are none yet."""
        self.generation = 0
        """Grows with each change: what was found good under another set is looked at again."""
        self.outcomes: dict[str, int] = {}
        """Fetches by the answer's status, and `failed` for none."""
        self.trouble = ""
        """Why there are none, or none that are fresh; empty when all is well."""

    def begin(self, now: float) -> None:
        """See that they are at hand when the first token comes."""

    def look(self, now: float) -> None:
        """They are about to be used: when they are stale, fetch them anew, while those that are known go on. `now`: monotonic, seconds."""

    def may_learn(self, now: float) -> bool:
        """Whether it makes sense to fetch them because one is not known."""
        return False

    async def learn(self, now: float) -> None:
        """Fetch them, or wait for the fetch that is under way."""

    async def aclose(self) -> None:
        """Let go of the connection."""


class FetchedKeyring(Keyring):
    """Keys that the issuer publishes."""

    def __init__(self, name: str, url: str) -> None:
        super().__init__(None)
        self._name = name
        parts = urlsplit(url)
        self._upstream = Upstream(name, UpstreamSettings(url=f"{parts.scheme}://{parts.netloc}", connections=1))
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._stale_at = 0.0
        self._asked_at = float("-inf")
        self._again_at = float("-inf")  # not before that, while the issuer is down
        self._pause = RETRY[0]
        self._fetching: asyncio.Task[None] | None = None

    def begin(self, now: float) -> None:
        """See `Keyring`."""
        self._fetch(now)

    def look(self, now: float) -> None:
        """See `Keyring`."""
        if now >= self._stale_at and now >= self._again_at:
            self._fetch(now)

    def may_learn(self, now: float) -> bool:
        """See `Keyring`."""
        if self._fetching is not None:
            return True
        if self.keys is None:
            return now >= self._again_at
        return now >= self._asked_at + UNKNOWN_PAUSE

    async def learn(self, now: float) -> None:
        """See `Keyring`."""
        await asyncio.wait((self._fetch(now),))

    def _fetch(self, now: float) -> asyncio.Task[None]:
        if self._fetching is None:
            self._asked_at = now
            self._fetching = asyncio.get_running_loop().create_task(self._refresh(now))
            self._fetching.add_done_callback(self._fetched)
        return self._fetching

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _refresh(self, now: float) -> None:
        began = time.monotonic()
        try:
            keys, age = await self._ask()
        except (UpstreamError, KeyFault) as error:
            self._again_at = now + (time.monotonic() - began) + self._pause
            self._pause = min(2 * self._pause, RETRY[1])
            self._fail(str(error))
            return
        self._pause, self._again_at = RETRY[0], now
        self._stale_at = now + age
        if self.trouble:
            self.trouble = ""
            log.info("guard %s: the issuer's keys are here again", self._name)
        if not keys.is_same(self.keys):
            self.keys = keys
            self.generation += 1

    async def _ask(self) -> tuple[KeySet, float]:
        try:
            answer = await self._upstream.fetch(self._path, ((b"Accept", b"application/json"),), max_body=MAX_BYTES)
        except UpstreamError:
            self._count("failed")
            raise
        self._count(str(answer.status))
        if answer.status != 200:
            label = self._upstream.address.label("GET", self._path.encode())
            raise UpstreamError(f"{label}: answered {answer.status}, wanted its keys")
        try:
            return read_jwks(answer.body), _age(answer.headers)
        except KeyFault as fault:
            raise KeyFault(f"{self._upstream.address.label('GET', self._path.encode())}: {fault}") from None

    def _count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def _fail(self, fact: str) -> None:
        if not self.trouble:
            kept = "those that are known go on" if self.keys is not None else "nobody is let in by it"
            log.warning("guard %s: %s; %s, and it is tried again", self._name, fact, kept)
        self.trouble = fact

    async def aclose(self) -> None:
        """See `Keyring`."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait((self._fetching,))
        await self._upstream.aclose()


def _age(headers: Headers) -> float:
    """For how long an answer says that it is fresh (RFC 9111, 5.2.2.1), within bounds."""
    said = headers.get("cache-control") or ""
    found = _MAX_AGE.search(said)
    age = float(found[1]) if found else USUAL_AGE
    if "no-store" in said.lower() or "no-cache" in said.lower():
        age = 0.0
    return min(max(age, SHORTEST_AGE), LONGEST_AGE)
