"""The certificate the gate shows: from files that are read again when they change, or made for a developer's machine."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from ssegate.config.certificate import CertificateFault, load_certificate
from ssegate.config.model import ServerTls
from ssegate.config.values import HOST
from ssegate.errors import ConfigError, Problem

log = logging.getLogger(__name__)

PROTOCOLS = ("h2", "http/1.1")
"""What is agreed to by ALPN, the better first."""

INTERVAL = 1.0
"""Seconds between two looks at the files."""

VALIDITY = timedelta(days=30)
"""How long a self-signed certificate holds; it is made anew a day before it ends."""

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class ServerCertificate:
    """A certificate and its key, ready for connections; belongs to one event loop's thread."""

    def __init__(self, settings: ServerTls, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `ConfigError` when the files cannot be used. `clock` gives seconds."""
        self._clock = clock
        self._settings = settings
        self._source = _source_of(settings)
        self._source.has_changed()
        try:
            self._loaded = self._load(self._source)
        except CertificateFault as fault:
            problem = Problem(str(fault.file), 0, 0, "certificate", f"server.tls.{fault.key}", fault.message)
            raise ConfigError([problem]) from None
        self._next_look = clock() + INTERVAL
        self._tell()

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the certificate as browsers show it: `AB:CD:…`."""
        return self._loaded.fingerprint

    def context(self) -> ssl.SSLContext:
        """The context for the next connection; never raises and costs next to nothing.

        A server that takes one context for good may keep the first: its handshakes go over to the newest by themselves.
        """
        self.check(self._clock())
        return self._loaded.context

    def check(self, now: float) -> None:
        """Look whether the files have changed, once a second at most. Broken ones are told once, and the old pair stays."""
        if now < self._next_look:
            return
        self._next_look = now + INTERVAL
        if self._source.has_changed():
            self._replace(self._source)

    def use(self, settings: ServerTls) -> None:
        """Go over to other files, or to a certificate of our own; when they cannot be used the old pair stays, and the log says why."""
        if (settings.cert, settings.key, settings.self_signed) == (
            self._settings.cert,
            self._settings.key,
            self._settings.self_signed,
        ):
            return
        self._settings = settings
        self._source = _source_of(settings)
        self._source.has_changed()
        self._replace(self._source)

    @contextmanager
    def files(self) -> Iterator[tuple[Path, Path]]:
        """Certificate and key as files, for a server that reads them itself. Those of a self-signed one are gone at the end."""
        with self._source.files() as pair:
            yield pair

    def _replace(self, source: _Source) -> None:
        try:
            self._loaded = self._load(source)
        except CertificateFault as fault:
            log.error("tls: %s %s; the certificate stays as it was", fault.file, fault.message)
            return
        self._tell()

    def _tell(self) -> None:
        log.info("tls: %s is in use, SHA-256 %s", self._source, self.fingerprint)

    def _load(self, source: _Source) -> _Loaded:
        context = _new_context()
        context.sni_callback = self._follow
        return _Loaded(context, _fingerprint(source.load_into(context)))

    def _follow(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in each handshake, also without a server name: one that began with an old context gets the newest."""
        newest = self.context()
        if context is not newest:
            connection.context = newest


@dataclass(frozen=True, slots=True)
class _Loaded:
    context: ssl.SSLContext
    fingerprint: str


class _Source(Protocol):
    """Where a certificate and its key come from."""

    def has_changed(self) -> bool:
        """Whether it is another than when this was asked last."""
        ...

    def load_into(self, context: ssl.SSLContext) -> str:
        """Let the context show it; the certificate as PEM. Raises `CertificateFault`."""
        ...

    def files(self) -> AbstractContextManager[tuple[Path, Path]]: ...


def _source_of(settings: ServerTls) -> _Source:
    if settings.cert is None or settings.key is None:
        return _SelfSigned()
    return _Files(settings.cert, settings.key)


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client that renegotiates makes the server work for nothing; HTTP/2 forbids it (RFC 9113, 9.2.1).
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(PROTOCOLS)
    return context


def _fingerprint(pem: str) -> str:
    found = _PEM.search(pem)
    # Without it the certificate is in OpenSSL's own form, BEGIN TRUSTED CERTIFICATE, which nobody compares.
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).digest().hex(":").upper() if found else "unknown"


class _Files:
    """A pair of files."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self._seen: object = None

    def __str__(self) -> str:
        return f"the certificate of {self._cert}"

    def has_changed(self) -> bool:
        """Follows symbolic links, as Kubernetes replaces a secret by turning one."""
        before, self._seen = self._seen, (_state(self._cert), _state(self._key))
        return self._seen != before

    def load_into(self, context: ssl.SSLContext) -> str:
        load_certificate(context, self._cert, self._key)
        try:
            return self._cert.read_text("latin-1")
        except OSError as error:
            raise CertificateFault("cert", self._cert, f"cannot be read: {error.strerror}") from None

    @contextmanager
    def files(self) -> Iterator[tuple[Path, Path]]:
        yield self._cert, self._key


def _state(file: Path) -> object:
    """What changes when the file does; None when it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_dev, found.st_size


class _SelfSigned:
    """A pair made here, for this machine's own names."""

    def __init__(self) -> None:
        self._pair: tuple[bytes, bytes] = (b"", b"")
        self._renewal = datetime.min.replace(tzinfo=UTC)

    def __str__(self) -> str:
        return f"a self-signed certificate for {', '.join(own_names())}"

    def has_changed(self) -> bool:
        now = datetime.now(UTC)
        if now < self._renewal:
            return False
        self._pair = make_self_signed(now)
        self._renewal = now + VALIDITY - timedelta(days=1)
        return True

    def load_into(self, context: ssl.SSLContext) -> str:
        with self.files() as (cert, key):
            load_certificate(context, cert, key)
        return self._pair[0].decode()

    @contextmanager
    def files(self) -> Iterator[tuple[Path, Path]]:
        """OpenSSL reads from files only; these are nobody else's, and gone at once."""
        with tempfile.TemporaryDirectory(prefix="ssegate-") as directory:
            cert, key = Path(directory, "tls.crt"), Path(directory, "tls.key")
            for file, data in zip((cert, key), self._pair, strict=True):
                with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
                    opened.write(data)
            yield cert, key


def own_names() -> tuple[str, ...]:
    """What this machine is called by itself: names first, addresses after them."""
    host = socket.gethostname()
    return ("localhost", *((host,) if HOST.fullmatch(host) and host != "localhost" else ()), "127.0.0.1", "::1")


def make_self_signed(now: datetime) -> tuple[bytes, bytes]:
    """A certificate for `own_names` and its key (EC P-256), as PEM. Nobody trusts it who has not been told to."""
    # A fifth of a start's time, and only a developer's machine has a use for it.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ssegate on localhost")])
    names = [
        x509.IPAddress(ip_address(each)) if ":" in each or each[0].isdigit() else x509.DNSName(each)
        for each in own_names()
    ]
    built = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return built.public_bytes(serialization.Encoding.PEM), private
