"""The certificate of the TLS listener, in handshakes with a server and a client that are not ours."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvloop
from cryptography import x509

from ssegate.config.model import ServerTls
from ssegate.edge.native.tls import VALIDITY, ServerCertificate, make_self_signed, own_names
from ssegate.errors import ConfigError
from tests.config.certificates import Pair, make_pair

SELF_SIGNED = ServerTls(self_signed=True)


def files(cert: Path, key: Path) -> ServerTls:
    """As it is written in a file."""
    return ServerTls.model_validate({"cert": str(cert), "key": str(key)})


LOOPS = [pytest.param(uvloop.new_event_loop, id="uvloop"), pytest.param(asyncio.new_event_loop, id="asyncio")]


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    def __init__(self, open_: set[asyncio.Transport], empty: asyncio.Event) -> None:
        self._open = open_
        self._empty = empty

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a stream's
        self._transport = transport
        self._open.add(transport)
        self._empty.clear()

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._open.discard(self._transport)
        if not self._open:
            self._empty.set()


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A server that keeps the one context; its port."""
    open_: set[asyncio.Transport] = set()
    empty = asyncio.Event()
    empty.set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Echo(open_, empty), "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for transport in list(open_):
            transport.abort()
        await empty.wait()


class Client:
    """A connection that has shaken hands."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.tls: ssl.SSLObject = writer.get_extra_info("ssl_object")

    @property
    def certificate(self) -> bytes:
        """The server's, as DER."""
        return self.tls.getpeercert(binary_form=True) or b""

    async def is_answered(self) -> bool:
        self._writer.write(b"ping")
        return await self._reader.readexactly(4) == b"ping"

    async def aclose(self) -> None:
        self._writer.transport.abort()


def trusting(pem: bytes | None) -> ssl.SSLContext:
    """A client's context; without a certificate to trust it takes any."""
    context = ssl.create_default_context(cadata=pem.decode() if pem else None)
    if pem is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def connected(
    port: int, context: ssl.SSLContext | None = None, name: str | None = "localhost"
) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context or trusting(None), server_hostname=name
    )
    client = Client(reader, writer)
    try:
        yield client
    finally:
        await client.aclose()


async def shown(port: int) -> bytes:
    """The certificate that a new connection sees."""
    async with connected(port) as client:
        assert await client.is_answered()
        return client.certificate


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.cert.decode())


def of_files(directory: Path, pair: Pair, clock: Clock | None = None) -> ServerCertificate:
    cert, key = pair.write(directory)
    return ServerCertificate(files(cert, key), clock=clock or Clock())


# Handshakes


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        (["h2", "http/1.1"], "h2"),
        (["http/1.1", "h2"], "h2"),
        (["http/1.1"], "http/1.1"),
        ([], None),
        (["spdy/1"], None),
    ],
)
def test_the_protocol_is_agreed_by_alpn(
    loop: Callable[[], asyncio.AbstractEventLoop], offered: list[str], agreed: str | None
) -> None:
    async def scenario() -> None:
        async with serving(ServerCertificate(SELF_SIGNED).context()) as port:
            context = trusting(None)
            if offered:
                context.set_alpn_protocols(offered)
            async with connected(port, context) as client:
                assert await client.is_answered()
                assert client.tls.selected_alpn_protocol() == agreed

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize(
    ("version", "expected"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")]
)
def test_tls_1_2_and_1_3_are_spoken_without_compression(version: ssl.TLSVersion, expected: str) -> None:
    async def scenario() -> None:
        async with serving(ServerCertificate(SELF_SIGNED).context()) as port:
            context = trusting(None)
            context.minimum_version = context.maximum_version = version
            async with connected(port, context) as client:
                assert await client.is_answered()
                assert (client.tls.version(), client.tls.compression()) == (expected, None)

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_older_versions_are_refused(version: ssl.TLSVersion) -> None:
    context = trusting(None)
    context.set_ciphers("ALL:@SECLEVEL=0")  # or OpenSSL would not even ask
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = context.maximum_version = version
    hello, nothing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(nothing, hello).do_handshake()
    server = ServerCertificate(SELF_SIGNED).context().wrap_bio(hello, ssl.MemoryBIO(), server_side=True)
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        server.do_handshake()


# Self-signed


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", *own_names()])
def test_a_self_signed_certificate_holds_for_this_machines_names(name: str) -> None:
    async def scenario() -> None:
        certificate = ServerCertificate(SELF_SIGNED)
        with certificate.files() as (cert, _):
            trusted = trusting(cert.read_bytes())
        async with serving(certificate.context()) as port, connected(port, trusted, name) as client:
            assert await client.is_answered()

    asyncio.run(scenario())


def test_a_self_signed_certificate_does_not_hold_for_others() -> None:
    async def scenario() -> None:
        certificate = ServerCertificate(SELF_SIGNED)
        with certificate.files() as (cert, _):
            trusted = trusting(cert.read_bytes())
        async with serving(certificate.context()) as port:
            with pytest.raises(ssl.SSLCertVerificationError):
                async with connected(port, trusted, "example.com"):
                    pass

    asyncio.run(scenario())


def test_a_hostname_that_is_no_name_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "a b")
    assert own_names() == ("localhost", "127.0.0.1", "::1")
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop.local")
    assert own_names() == ("localhost", "laptop.local", "127.0.0.1", "::1")


def test_a_self_signed_certificate_holds_for_thirty_days() -> None:
    now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    certificate = x509.load_pem_x509_certificate(make_self_signed(now)[0])
    assert certificate.not_valid_after_utc == now + timedelta(days=30)
    assert certificate.not_valid_before_utc < now


def test_a_self_signed_certificate_is_made_anew_before_it_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Later(datetime):
        days = 0.0

        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]  # only ever asked for UTC
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=cls.days)

    monkeypatch.setattr("ssegate.edge.native.tls.datetime", Later)
    caplog.set_level(logging.INFO)
    clock = Clock()
    certificate = ServerCertificate(SELF_SIGNED, clock=clock)
    first = certificate.fingerprint
    Later.days = VALIDITY.days - 1.1
    clock.now += 10
    certificate.context()
    assert certificate.fingerprint == first
    Later.days = VALIDITY.days - 0.9
    clock.now += 10
    certificate.context()
    assert certificate.fingerprint != first
    assert "a self-signed certificate for localhost" in caplog.text
    assert certificate.fingerprint in caplog.text


def test_the_private_key_is_nobody_elses_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    certificate = ServerCertificate(SELF_SIGNED)
    assert list(tmp_path.iterdir()) == []
    with certificate.files() as (cert, key):
        assert [oct(path.stat().st_mode & 0o777) for path in (cert, key, key.parent)] == ["0o600", "0o600", "0o700"]
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    assert list(tmp_path.iterdir()) == []


# Files


def test_the_fingerprint_is_the_one_a_browser_shows(tmp_path: Path) -> None:
    pair = make_pair("a")
    fingerprint = of_files(tmp_path, pair).fingerprint
    from cryptography.hazmat.primitives import hashes

    digest = x509.load_pem_x509_certificate(pair.cert).fingerprint(hashes.SHA256())
    assert fingerprint == ":".join(f"{byte:02X}" for byte in digest)


def test_files_that_cannot_be_used_are_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        of_files(tmp_path, Pair(make_pair("a").cert, make_pair("b").key))
    (problem,) = caught.value.problems
    assert (problem.file, problem.where) == (str(tmp_path / "tls.key"), "server.tls.key")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kinds", [("ec", "ec"), ("2048", "ec"), ("ec", "2048")])
def test_a_running_server_shows_the_new_certificate_and_old_connections_live(
    loop: Callable[[], asyncio.AbstractEventLoop], kinds: tuple[str, str], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    old, new = (make_pair(name, kind=kind) for name, kind in zip(("old", "new"), kinds, strict=True))

    async def scenario() -> None:
        clock = Clock()
        certificate = of_files(tmp_path, old, clock)
        async with serving(certificate.context()) as port, connected(port) as before:
            assert before.certificate == der(old)
            new.write(tmp_path)
            clock.now += 2
            assert await shown(port) == der(new)
            assert await before.is_answered()
            assert certificate.context() is certificate.context()
        async with serving(certificate.context()) as port:
            assert await shown(port) == der(new)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())
    assert [record.getMessage().partition(", SHA-256")[0] for record in caplog.records] == [
        f"tls: the certificate of {tmp_path}/tls.crt is in use"
    ] * 2


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["localhost", None])
def test_a_server_that_keeps_its_first_context_follows_whatever_the_client_names(
    version: ssl.TLSVersion, name: str | None, tmp_path: Path
) -> None:
    async def scenario() -> None:
        clock = Clock()
        certificate = of_files(tmp_path, make_pair("old"), clock)
        new = make_pair("new")
        async with serving(certificate.context()) as port:
            new.write(tmp_path)
            clock.now += 2
            context = trusting(None)
            context.minimum_version = context.maximum_version = version
            context.set_alpn_protocols(["h2"])
            async with connected(port, context, name or "") as client:
                assert client.certificate == der(new)
                assert client.tls.selected_alpn_protocol() == "h2"

    asyncio.run(scenario())


def test_the_files_are_looked_at_once_a_second_at_most(tmp_path: Path) -> None:
    clock = Clock()
    certificate = of_files(tmp_path, make_pair("old"), clock)
    old = certificate.fingerprint
    make_pair("new").write(tmp_path)
    clock.now += 0.9
    certificate.context()
    assert certificate.fingerprint == old
    clock.now += 0.2
    certificate.context()
    assert certificate.fingerprint != old


def test_a_secret_that_kubernetes_turns_to_is_noticed(tmp_path: Path) -> None:
    old, new = make_pair("old"), make_pair("new")
    for name, pair in (("..old", old), ("..new", new)):
        (tmp_path / name).mkdir()
        pair.write(tmp_path / name)
        for file in (tmp_path / name).iterdir():
            os.utime(file, ns=(0, 0))  # not told by the time alone
    (tmp_path / "..data").symlink_to("..old")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(Path("..data", name))
    clock = Clock()
    settings = files(tmp_path / "tls.crt", tmp_path / "tls.key")
    certificate = ServerCertificate(settings, clock=clock)
    before = certificate.fingerprint
    (tmp_path / "..data_tmp").symlink_to("..new")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    clock.now += 2
    certificate.check(clock.now)
    assert certificate.fingerprint not in (before, "unknown")


def test_a_broken_pair_is_told_once_and_the_old_one_stays_until_it_is_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    old, new = make_pair("old"), make_pair("new")

    async def scenario() -> None:
        clock = Clock()
        certificate = of_files(tmp_path, old, clock)
        async with serving(certificate.context()) as port:
            (tmp_path / "tls.crt").write_bytes(new.cert)  # and the key not yet
            for _ in range(3):
                clock.now += 2
                assert await shown(port) == der(old)
            (tmp_path / "tls.crt").write_bytes(new.cert[:200])
            clock.now += 2
            assert await shown(port) == der(old)
            (tmp_path / "tls.key").unlink()
            clock.now += 2
            assert await shown(port) == der(old)
            new.write(tmp_path)
            clock.now += 2
            assert await shown(port) == der(new)

    asyncio.run(scenario())
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    stays = "; the certificate stays as it was"
    mismatch = "does not belong to the certificate in tls.crt; name the key it was made with"
    assert told[1:-1] == [
        ("ERROR", f"tls: {tmp_path}/tls.key {mismatch}{stays}"),
        ("ERROR", f"tls: {tmp_path}/tls.crt holds no certificate; write PEM: -----BEGIN CERTIFICATE-----{stays}"),
        ("ERROR", f"tls: {tmp_path}/tls.key is not a file that is there{stays}"),
    ]
    assert [level for level, _ in (told[0], told[-1])] == ["INFO", "INFO"]


def test_other_files_are_gone_over_to_and_broken_ones_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other, broken = (tmp_path / name for name in ("one", "other", "broken"))
    for directory in (one, other, broken):
        directory.mkdir()
    certificate = of_files(one, make_pair("one"))
    first = certificate.context()
    certificate.use(files(one / "tls.crt", one / "tls.key"))
    assert certificate.context() is first
    cert, key = make_pair("other").write(other)
    certificate.use(files(cert, key))
    second = certificate.context()
    assert second is not first
    certificate.use(files(broken / "tls.crt", broken / "tls.key"))
    assert certificate.context() is second
    assert "broken/tls.crt is not a file that is there; the certificate stays as it was" in caplog.text
    certificate.use(SELF_SIGNED)
    assert certificate.context() is not second
