"""`ssegate check` beyond its golden output: several files, warnings, what only shows when a gate is built."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from ssegate.cli import main
from ssegate.cli.advice import advise
from ssegate.config import parse_config
from tests.config.certificates import make_pair

OPEN_WEBHOOK = """
version: 1
server: {{listen: "{listen}"}}
routes:
  - path: /repos/events
    webhook: {{at: /hooks, verify: none}}
    auth: none
"""


def write(directory: Path, text: str, name: str = "ssegate.yaml") -> str:
    (directory / name).write_text(text)
    return str(directory / name)


def test_the_worst_of_several_files_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path, "version: 1\nroutes: []\n", "good.yaml")
    assert main(["check", good, str(tmp_path / "none.yaml"), good]) == 78
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[-1] == f"{good}: 0 routes, all well"
    assert "none.yaml: error[missing] cannot be read" in lines[1]


def test_an_unverified_webhook_that_anybody_reaches_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, OPEN_WEBHOOK.format(listen="0.0.0.0:8080"))
    assert main(["check", file]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{file}: 1 route, all well\n"
    assert captured.err.startswith(f"{file}:5: warning[open-webhook] routes[0].webhook.verify: ")


@pytest.mark.parametrize("listen", ["127.0.0.1:8080", "[::1]:8080", "localhost:8080"])
def test_on_a_loopback_listener_it_is_none(listen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", write(tmp_path, OPEN_WEBHOOK.format(listen=listen))]) == 0
    assert capsys.readouterr().err == ""


def test_the_tls_listener_counts_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = OPEN_WEBHOOK.format(listen="127.0.0.1:8080")
    file = write(tmp_path, text.replace('8080"', '8080", tls: {self_signed: true}'))
    assert main(["check", file]) == 0
    assert "anybody who reaches 0.0.0.0:8443 can make up events" in capsys.readouterr().err


def test_a_certificate_is_looked_at_and_told_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pair("localhost").write(tmp_path)
    text = "version: 1\nroutes: []\nserver:\n  tls: {cert: tls.crt, key: tls.key}\n"
    file = write(tmp_path, text)
    assert main(["check", file]) == 0
    (tmp_path / "tls.crt").write_text("not yet")
    capsys.readouterr()
    assert main(["check", file]) == 78
    out = capsys.readouterr().out
    assert (
        f'{file}:4:15: error[certificate] server.tls.cert: "{tmp_path}/tls.crt" holds no certificate; write PEM' in out
    )
    assert "   4 |   tls: {cert: tls.crt, key: tls.key}\n     |               ^^^^^^^\n" in out


def test_a_certificate_that_has_ended_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pair("localhost", until=datetime(2020, 2, 3, tzinfo=UTC)).write(tmp_path)
    file = write(tmp_path, "version: 1\nroutes: []\nserver: {tls: {cert: tls.crt, key: tls.key}}\n")
    assert main(["check", file]) == 0
    assert "warning[expired] server.tls.cert: the certificate ended on 2020-02-03" in capsys.readouterr().err


def test_warnings_are_annotations_for_github(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, OPEN_WEBHOOK.format(listen="0.0.0.0:8080"))
    assert main(["check", "--format", "github", file]) == 0
    assert capsys.readouterr().out.startswith(f"::warning file={file},line=5,col=1,")


def test_a_ca_file_that_holds_no_certificate_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ca = write(tmp_path, "no certificate", "ca.pem")
    file = write(
        tmp_path, f"version: 1\nupstreams: {{api: {{url: https://localhost, tls: {{ca: {ca}}}}}}}\nroutes: []\n"
    )
    assert main(["check", file]) == 78
    assert f"{file}: error[value] upstreams.api.tls.ca: " in capsys.readouterr().out


@pytest.mark.parametrize(("server", "codes"), [("", ["forgotten"]), ("server: {state_dir: state}\n", [])])
def test_a_subscription_that_is_kept_and_not_remembered_is_advised_against(server: str, codes: list[str]) -> None:
    webhook = "at: /h, callback: 'https://g/h', subscribe: {keep: true, websub: {topic: 'https://b/feed'}}"
    text = f"version: 1\n{server}routes:\n  - {{path: /w, auth: none, webhook: {{{webhook}}}}}\n"
    assert [each.code for each in advise(parse_config(text, source="f", environ={}))] == codes
