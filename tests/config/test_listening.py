"""Addresses, certificates and edges: what goes together."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssegate.config import Address, Config, parse_config
from ssegate.errors import ConfigError
from tests.config.certificates import make_pair

Told = list[tuple[str, str, str]]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return make_pair("localhost").write(tmp_path)


@pytest.fixture
def with_http3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssegate.config.listening.find_spec", lambda name: object())


def _parse(server: str, source: str = "f.yaml", more: str = "", **environ: str) -> Config:
    return parse_config(f"version: 1\nserver: {server}\nroutes: []\n{more}", source=source, environ=environ)


def _told(server: str, source: str = "f.yaml", more: str = "", **environ: str) -> Told:
    with pytest.raises(ConfigError) as caught:
        _parse(server, source, more, **environ)
    return [(problem.code, problem.where, problem.message) for problem in caught.value.problems]


# Addresses


def test_without_tls_there_is_one_listener_on_the_native_edge() -> None:
    server = _parse("{}").server
    assert (server.tls, server.edge, server.http3) == (None, "native", False)


def test_the_tls_listener_has_an_address_of_its_own() -> None:
    tls = _parse("{tls: {self_signed: true}}").server.tls
    assert tls is not None
    assert (tls.listen, tls.cert, tls.key, tls.self_signed) == (Address("0.0.0.0", 8443), None, None, True)
    tls = _parse('{tls: {self_signed: true, listen: "[::1]:443"}}').server.tls
    assert tls is not None
    assert tls.listen == Address("::1", 443)


@pytest.mark.parametrize(
    ("server", "more", "expected"),
    [
        (
            '{listen: "0.0.0.0:8443", tls: {self_signed: true}}', "",
            [("value", "server.tls.listen", "the public listener has this address; give the TLS listener its own")],
        ),
        (
            '{tls: {self_signed: true, listen: "[::]:1"}}', 'admin: {listen: "[::]:1"}',
            [("value", "admin.listen", "the TLS listener has this address; give the admin listener its own")],
        ),
        (
            '{listen: "a:1", tls: {self_signed: true, listen: "a:1"}}', 'admin: {listen: "a:1"}',
            [
                ("value", "server.tls.listen", "the public listener has this address; give the TLS listener its own"),
                ("value", "admin.listen", "the public listener has this address; give the admin listener its own"),
            ],
        ),
    ],
)  # fmt: skip
def test_no_two_listeners_have_one_address(server: str, more: str, expected: Told) -> None:
    assert _told(server, more=more) == expected


def test_ports_that_the_system_chooses_differ() -> None:
    assert _parse('{listen: "a:0", tls: {self_signed: true, listen: "a:0"}}', more='admin: {listen: "a:0"}').admin


# Certificates


@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        ("{}", ("missing", "server.tls", "there is no certificate; write `cert` and `key`, or `self_signed: true`")),
        ("{self_signed: false}", ("missing", "server.tls", "there is no certificate; write `cert` and `key`, or `self_signed: true`")),
        ("{cert: a.crt}", ("missing", "server.tls", "`key` is missing; name the file of the certificate's private key")),
        ("{key: a.key, self_signed: false}", ("missing", "server.tls", "`cert` is missing; name the file of the key's certificate")),
        (
            "{cert: a.crt, self_signed: true}",
            ("value", "server.tls.cert", "`self_signed: true` makes a certificate of its own; leave out `cert`, or `self_signed`"),
        ),
        (
            "{key: a.key, self_signed: true}",
            ("value", "server.tls.key", "`self_signed: true` makes a certificate of its own; leave out `key`, or `self_signed`"),
        ),
        ("", ("type", "server.tls", "empty; write a mapping")),
        ("{self_signed: 'yes'}", ("type", "server.tls.self_signed", '"yes" is not a boolean; write true or false')),
        ("{cert: 5, key: a}", ("type", "server.tls.cert", "a number, not text; put it in quotes")),
        ("{cert: , key: a}", ("type", "server.tls.cert", "empty; write text")),
        ("{crt: a, key: a}", ("unknown-key", "server.tls", "`crt` is not a known key")),
    ],
)  # fmt: skip
def test_there_is_one_way_to_come_by_a_certificate(tls: str, expected: tuple[str, str, str]) -> None:
    assert _told(f"{{tls: {tls}}}") == [expected]


def test_both_keys_that_do_not_go_with_a_self_signed_certificate_are_told() -> None:
    told = _told("{tls: {cert: a, key: b, self_signed: true}}")
    assert [where for _, where, _ in told] == ["server.tls.cert", "server.tls.key"]


def test_files_are_found_from_the_configurations_folder(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    for folder, source in (
        (tmp_path / "elsewhere", "../f.yaml"),
        (tmp_path, "f.yaml"),
        (Path("/"), f"{tmp_path}/f.yaml"),
    ):
        monkeypatch.chdir(folder)
        tls = _parse("{tls: {cert: tls.crt, key: tls.key}}", source).server.tls
        assert tls is not None
        assert tls.cert is not None
        assert tls.key is not None
        assert (tls.cert.samefile(pair[0]), tls.key.samefile(pair[1])) == (True, True)
    tls = _parse(f"{{tls: {{cert: {pair[0]}, key: {pair[1]}}}}}", "/nowhere/f.yaml").server.tls
    assert tls is not None
    assert (tls.cert, tls.key) == pair


def test_a_file_that_cannot_be_used_is_told_at_its_key(pair: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = pair
    key.write_bytes(make_pair("other").key)
    text = f"version: 1\nroutes: []\nserver:\n  tls:\n    cert: {cert.name}\n    key: {key.name}\n"
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source=str(tmp_path / "f.yaml"), environ={})
    (problem,) = caught.value.problems
    assert (problem.line, problem.column, problem.code, problem.where) == (6, 10, "certificate", "server.tls.key")
    assert problem.message == f'"{key}" does not belong to the certificate in tls.crt; name the key it was made with'


def test_a_name_from_the_environment_is_not_quoted(tmp_path: Path) -> None:
    told = _told("{tls: {cert: '${CERT}', key: b}}", str(tmp_path / "f.yaml"), CERT="s3cret.crt")
    assert told == [("certificate", "server.tls.cert", "what `${…}` gave here is not a file that is there")]


# Edges


def test_http3_goes_with_hypercorn_and_tls(with_http3: None) -> None:
    server = _parse("{edge: hypercorn, http3: true, tls: {self_signed: true}}").server
    assert (server.edge, server.http3) == ("hypercorn", True)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (
            "{http3: true, tls: {self_signed: true}}",
            [("value", "server.http3", "HTTP/3 is for `edge: hypercorn` only; write that beside it, or leave `http3` out")],
        ),
        (
            "{http3: true, edge: hypercorn}",
            [("missing", "server.http3", "HTTP/3 is always encrypted; write `tls` beside it")],
        ),
        ("{http3: true, edge: hypercorn, tls: {self_signed: 1}}", [("type", "server.tls.self_signed", "1 is not a boolean; write true or false")]),
        ("{http3: true, edge: hypercorm, tls: {self_signed: true}}", [("value", "server.edge", '"hypercorm" is not known here; write native or hypercorn')]),
    ],
)  # fmt: skip
def test_http3_alone_says_what_it_wants(server: str, expected: Told, with_http3: None) -> None:
    assert _told(server) == expected


def test_http3_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssegate.config.listening.find_spec", lambda name: None)
    message = "HTTP/3 needs aioquic, which is not installed; run: pip install 'ssegate[http3]'"
    assert _told("{edge: hypercorn, http3: true, tls: {self_signed: true}}") == [("missing", "server.http3", message)]


def test_http3_that_is_off_wants_nothing() -> None:
    assert _parse("{http3: false}").server.http3 is False
