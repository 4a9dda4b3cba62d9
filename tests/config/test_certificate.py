"""What is wrong with a certificate or its key, and in which file."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from ssegate.config.certificate import CertificateFault, load_certificate
from tests.config.certificates import Pair, make_pair

GOOD = make_pair("good")
OTHER = make_pair("other")


def _load(directory: Path, pair: Pair) -> None:
    load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *pair.write(directory))


def _fault(directory: Path, pair: Pair) -> tuple[str, str]:
    with pytest.raises(CertificateFault) as caught:
        _load(directory, pair)
    assert caught.value.file == directory / ("tls.crt" if caught.value.key == "cert" else "tls.key")
    return caught.value.key, caught.value.message


@pytest.mark.parametrize("kind", ["ec", "2048"])
def test_a_pair_that_fits_is_taken(kind: str, tmp_path: Path) -> None:
    _load(tmp_path, make_pair("a", kind=kind))


def test_a_chain_behind_the_certificate_is_taken(tmp_path: Path) -> None:
    _load(tmp_path, Pair(GOOD.cert + OTHER.cert, GOOD.key))


@pytest.mark.parametrize(
    ("pair", "key", "words"),
    [
        (Pair(GOOD.cert, OTHER.key), "key", "does not belong to the certificate in tls.crt"),
        (Pair(GOOD.cert, make_pair("rsa", kind="2048").key), "key", "does not belong to the certificate in tls.crt"),
        (Pair(OTHER.cert + GOOD.cert, GOOD.key), "key", "does not belong"),
        (Pair(b"", GOOD.key), "cert", "holds no certificate"),
        (Pair(b"nonsense", GOOD.key), "cert", "holds no certificate"),
        (Pair(GOOD.cert[:150], GOOD.key), "cert", "holds no certificate"),
        (Pair(ssl.PEM_cert_to_DER_cert(GOOD.cert.decode()), GOOD.key), "cert", "-----BEGIN CERTIFICATE-----"),
        (Pair(GOOD.key, GOOD.cert), "cert", "holds no certificate"),
        (Pair(GOOD.cert, b""), "key", "holds no private key"),
        (Pair(GOOD.cert, GOOD.key[:80]), "key", "holds no private key"),
        (Pair(GOOD.cert, GOOD.cert), "key", "-----BEGIN PRIVATE KEY-----"),
        (Pair(GOOD.cert, make_pair("x", passphrase=b"secret").key), "key", "openssl pkey -in tls.key"),
        (make_pair("weak", kind="1024"), "cert", "refused by OpenSSL: key too small"),
    ],
)
def test_the_file_to_mend_is_named(pair: Pair, key: str, words: str, tmp_path: Path) -> None:
    found, message = _fault(tmp_path, pair)
    assert (found, words in message) == (key, True), message


@pytest.mark.parametrize(("name", "key"), [("tls.crt", "cert"), ("tls.key", "key")])
def test_a_file_that_is_not_there_or_is_none_is_told(name: str, key: str, tmp_path: Path) -> None:
    cert, private = GOOD.write(tmp_path)
    for make, words in ((lambda: None, "is not a file that is there"), ((tmp_path / name).mkdir, "is a directory")):
        (tmp_path / name).unlink(missing_ok=True)
        make()
        with pytest.raises(CertificateFault) as caught:
            load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert, private)
        assert (caught.value.key, caught.value.message) == (key, words)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    cert, key = GOOD.write(tmp_path)
    key.unlink()
    os.mkfifo(key)
    with pytest.raises(CertificateFault, match="is not a file that is there"):
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert, key)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    cert, key = GOOD.write(tmp_path)
    key.chmod(0)
    with pytest.raises(CertificateFault, match="cannot be read: Permission denied"):
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert, key)


def test_a_name_too_long_for_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(CertificateFault, match="cannot be read: File name too long"):
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tmp_path / ("a" * 5000), tmp_path)
