"""A certificate and its private key on their way from PEM files into TLS, and what is wrong with them when they cannot be used."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Literal

_MISMATCHES = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
"""The key is another one, or of another kind than the certificate's."""


class CertificateFault(Exception):
    """The files cannot be used; `key` is the one to mend."""

    def __init__(self, key: Literal["cert", "key"], file: Path, message: str) -> None:
        self.key: Literal["cert", "key"] = key
        self.file = file
        self.message = message
        super().__init__(f"{file}: {message}")


class _EncryptedError(Exception):
    """The key wants a passphrase."""


def load_certificate(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Let the context show this certificate. Raises `CertificateFault`; the context is of no use then."""
    _check_readable("cert", cert)
    _check_readable("key", key)
    try:
        context.load_cert_chain(cert, key, password=_refuse)
    except _EncryptedError:
        mend = f"take it off: openssl pkey -in {key.name} -out plain.key"
        raise CertificateFault(
            "key", key, f"is encrypted with a passphrase, which nobody is there to type; {mend}"
        ) from None
    except ssl.SSLError as error:
        raise _explained(cert, key, error) from None
    except OSError as error:
        # Gone since it was looked at.
        raise CertificateFault("cert", cert, f"cannot be read: {error.strerror}") from None


def _refuse() -> str:
    """Without it OpenSSL would ask on the terminal."""
    raise _EncryptedError


def _check_readable(key: Literal["cert", "key"], file: Path) -> None:
    try:
        if not file.is_file():
            raise CertificateFault(key, file, "is a directory" if file.is_dir() else "is not a file that is there")
        with file.open("rb"):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no name of a file"
        raise CertificateFault(key, file, f"cannot be read: {reason}") from None


def _explained(cert: Path, key: Path, error: ssl.SSLError) -> CertificateFault:
    """OpenSSL does not say in which of the two files it found the fault."""
    if error.reason in _MISMATCHES:
        return CertificateFault(
            "key", key, f"does not belong to the certificate in {cert.name}; name the key it was made with"
        )
    certificates = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        certificates.load_verify_locations(cert)
    except (ssl.SSLError, OSError):
        return CertificateFault("cert", cert, "holds no certificate; write PEM: -----BEGIN CERTIFICATE-----")
    if error.reason and error.reason.startswith(("EE_", "CA_")):
        fact = error.reason.removeprefix("EE_").removeprefix("CA_").replace("_", " ").lower()
        return CertificateFault("cert", cert, f"is refused by OpenSSL: {fact}; have a stronger one made")
    return CertificateFault("key", key, "holds no private key; write PEM: -----BEGIN PRIVATE KEY-----")
