"""Certificates for tests: an authority, what it signs, and files that are not what they should be."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM."""

    cert: bytes
    key: bytes

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Put both into a directory, over those that are there."""
        cert, key = directory / "tls.crt", directory / "tls.key"
        cert.write_bytes(self.cert)
        key.write_bytes(self.key)
        return cert, key


def make_pair(name: str, *, kind: str = "ec", passphrase: bytes | None = None, until: datetime | None = None) -> Pair:
    """A certificate for localhost that is its own authority, told from others by its name."""
    key: Key = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, int(kind))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    until = until or datetime.now(UTC) + timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(until - timedelta(days=2))
        .not_valid_after(until)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), private)
