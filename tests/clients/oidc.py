"""A real OpenID provider: npm `oidc-provider`, which issues JWTs to its clients and changes its keys when it is told to."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.clients.children import PATIENCE, Child
from tests.clients.peers import HERE, find_node

AUDIENCE = "orders-ui"
SCOPES = ("orders:read", "orders:write")
PEOPLE = ("ada", "grace")


class Provider:
    """`with Provider(folder) as provider: token = provider.token("ada")`. Needs the fixture `node_packages`."""

    def __init__(
        self,
        folder: Path,
        *,
        people: tuple[str, ...] = PEOPLE,
        audience: str = AUDIENCE,
        scopes: tuple[str, ...] = SCOPES,
    ) -> None:
        """Its standard error goes to `folder`."""
        said = json.dumps({"clients": people, "audience": audience, "scopes": " ".join(scopes)})
        self._child = Child([find_node(), HERE / "oidc.mjs", said], folder / "oidc.log")

    def __enter__(self) -> Self:
        try:
            self.issuer: str = self._child.next()["issuer"]
            """What its tokens have as `iss`, also the URL of the provider."""
            self.jwks_uri: str = self._get("/.well-known/openid-configuration")["jwks_uri"]
        except BaseException:
            self._child.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.kill()

    def token(self, who: str = PEOPLE[0], *, alg: str = "RS256", ttl: int = 300, scope: str = SCOPES[0]) -> str:
        """An access token whose `sub` is this client's name, signed by RS256, ES256 or EdDSA, good for `ttl` seconds."""
        response = httpx.post(
            f"{self.issuer}/token",
            auth=(who, who),
            data={
                "grant_type": "client_credentials",
                "resource": f"https://orders.example/?alg={alg}&ttl={ttl}",
                "scope": scope,
            },
            timeout=PATIENCE,
            trust_env=False,
        )
        assert response.status_code == 200, response.text
        token: str = response.json()["access_token"]
        return token

    def keys(self) -> list[str]:
        """The `kid`s that it publishes now."""
        return [key["kid"] for key in self._get(httpx.URL(self.jwks_uri).path)["keys"]]

    def rotate(self, *, keep_old: bool) -> list[str]:
        """Sign by new keys from now on; the ones before are still published, or are not. Returns the new `kid`s."""
        self._child.say({"do": "rotate", "keep_old": keep_old})
        kids: list[str] = self._child.next()["kids"]
        return kids

    def fetches(self) -> int:
        """How often its keys have been asked for, by `keys` too."""
        self._child.say({"do": "count"})
        counts: dict[str, int] = self._child.next()["counts"]
        return counts.get(httpx.URL(self.jwks_uri).path, 0)

    def kill(self) -> None:
        """Take it away: from now on its port refuses."""
        self._child.kill()

    def _get(self, path: str) -> Any:
        return httpx.get(self.issuer + path, timeout=PATIENCE, trust_env=False).raise_for_status().json()
