"""`ssegate check` beyond its golden output: several files, warnings, what only shows when a gate is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssegate.cli import main

OPEN_WEBHOOK = """
version: 1
server: {{listen: "{listen}"}}
routes:
  - path: /repos/events
    webhook: {{at: /hooks, verify: none}}
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
