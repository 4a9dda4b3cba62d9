"""What guards cost: streams opened with signed tokens beside streams that anybody may open, and how often a backend is asked who
somebody is when everybody comes at once."""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from connects import QUIET, STREAMS, Storm
from process import LOAD_CORE, Unavailable, allow_files
from report import Options, Row
from servers import Gate, Server, script

LEAST = 0.5
"""Of the streams that can be opened without a guard."""

VIEWERS = 5000
CREDENTIALS = 2500
"""Every viewer has two pages open."""
SECONDS = 10.0
DELAY = 0.05
"""Seconds that the backend takes to say who somebody is."""

_ROUTES = """
routes:
  - path: /open/{id}
    auth: none
    webhook: {at: /hooks/a, verify: none, match: {id: body.id}}
  - path: /guarded/{id}
    auth: GUARD
    webhook: {at: /hooks/b, verify: none, match: {id: body.id}}
"""


def auth(options: Options) -> list[Row]:
    """Both figures."""
    return [*_tokens(options), *_storm(options)]


# Signed tokens


def _tokens(options: Options) -> list[Row]:
    allow_files(STREAMS + 500)
    with _issuer() as (jwks, sign):
        guard = f"{{user: {{jwt: {{issuer: bench, audience: bench, keys: 'file:{jwks}', require: \"contains(scope, 'read')\"}}}}}}"
        with Gate(options.edge, extra={"auth": guard}).up(_ROUTES.replace("GUARD", "user")) as gate:
            rounds = [_token_round(gate, [sign(f"u{n}") for n in range(STREAMS)]) for _ in range(options.rounds + 1)][
                1:
            ]
    free, new, known = (statistics.median(each[kind] for each in rounds) for kind in range(3))
    new_ratio, known_ratio = (statistics.median(each[kind] / each[0] for each in rounds) for kind in (1, 2))
    bar = f"≥ {LEAST} × without"
    return [
        Row(
            "new streams / CPU-s, tokens never seen",
            f"{new:,.0f}",
            f"without {free:,.0f}",
            f"{new_ratio:.2f}",
            bar,
            new_ratio >= LEAST,
        ),
        Row(
            "  with tokens that are known",
            f"{known:,.0f}",
            f"without {free:,.0f}",
            f"{known_ratio:.2f}",
            bar,
            known_ratio >= LEAST,
        ),
    ]


def _token_round(gate: Server, tokens: list[str]) -> tuple[float, float, float]:
    """Streams per second of CPU: without a guard, with new tokens, with the same again."""
    return (
        _turn(gate, "/open/bench", [""] * len(tokens)),
        _turn(gate, "/guarded/bench", [f"Authorization: Bearer {token}\r\n" for token in tokens]),
        _turn(gate, "/guarded/bench", [f"Authorization: Bearer {token}\r\n" for token in tokens]),
    )


def _turn(gate: Server, path: str, headers: list[str]) -> float:
    with contextlib.closing(Storm(gate, _requests(path, headers))) as storm:
        cpu = gate.process.cpu()
        storm.run()
        figure = len(headers) / (gate.process.cpu() - cpu)
    time.sleep(QUIET)
    return figure


def _requests(path: str, headers: list[str]) -> list[bytes]:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
    return [f"{head}{header}\r\n".encode() for header in headers]


@contextlib.contextmanager
def _issuer() -> Iterator[tuple[Path, object]]:
    """A file with the public key, and what signs a token for somebody, with RS256."""
    try:
        import jwt
        from cryptography.hazmat.primitives.asymmetric import rsa
        from jwt.algorithms import RSAAlgorithm
    except ImportError as error:
        raise Unavailable("PyJWT is not installed: pip install 'ssegate[jwt]'") from error
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    jwk = {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "bench"}

    def sign(who: str) -> str:
        claims = {"iss": "bench", "aud": "bench", "sub": who, "scope": "read write", "exp": int(time.time()) + 3600}
        return jwt.encode(claims, key, "RS256", {"kid": "bench"})

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "jwks.json")
        path.write_text(json.dumps({"keys": [jwk]}))
        yield path, sign


# A backend that is asked


def _storm(options: Options) -> list[Row]:
    allow_files(VIEWERS + 500)
    with script("guard_backend.py", str(DELAY), core=LOAD_CORE) as (port, _):
        guard = (
            f'{{session: {{forward: {{url: "http://127.0.0.1:{port}/whoami", send: [cookie], identity: x-user-id}}}}}}'
        )
        with Gate(options.edge, extra={"auth": guard}).up(_ROUTES.replace("GUARD", "session")) as gate:
            cookies = [f"Cookie: sid=s-{number % CREDENTIALS}\r\n" for number in range(VIEWERS)]
            requests = _requests("/guarded/bench", cookies)
            with contextlib.closing(Storm(gate, requests, per_second=VIEWERS / SECONDS)) as storm:
                cpu, start = gate.process.cpu(), time.monotonic()
                storm.run()
                cpu, took = gate.process.cpu() - cpu, time.monotonic() - start
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/count") as answer:
                asked = int(answer.read())
    return [
        Row(
            f"{VIEWERS:,} viewers in {took:.1f} s, a guard of {DELAY * 1000:.0f} ms: questions",
            f"{asked:,}",
            f"credentials {CREDENTIALS:,}",
            f"{asked / CREDENTIALS:.2f}",
            "≤ credentials",
            asked <= CREDENTIALS,
        ),
        Row("  the gate's CPU for all of it", f"{cpu:.2f} s"),
    ]
