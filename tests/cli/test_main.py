"""The command as a whole: usage, exit codes, output that nobody reads."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssegate.cli import main
from tests.cli.process import COMMAND, ROOT, environment, ran


def test_the_first_line_of_the_version_is_for_programs(tmp_path: Path) -> None:
    code, out, err = asyncio.run(ran("--version", cwd=tmp_path))
    assert (code, err) == (0, "")
    assert out.splitlines() == ["ssegate 0.1.0", f"Python {sys.version.split()[0]}"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["--bogus"],
        ["serve", "--listen", "8080"],
        ["serve", "--log-level", "loud"],
        ["quick", "localhost:8000"],
        ["quick", "localhost:8000", "--poll", "/a"],
        ["quick", "localhost:8000", "--poll", "/a=/a@2"],
        ["match", "GET", "orders"],
        ["listen", "localhost"],
        ["listen", "http://localhost/", "--timeout", "30"],
        ["listen", "http://localhost/", "--header", "Authorization"],
        ["try", "/x", "--param", "id"],
        ["try"],
    ],
)
def test_wrong_usage_is_2_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ssegate")


def test_a_header_in_a_usage_error_is_not_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["listen", "http://localhost/", "--header", "Bearer s3cret"])
    assert "s3cret" not in capsys.readouterr().err


def test_no_configuration_is_78_and_says_where_one_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSEGATE_CONFIG", raising=False)
    assert main([]) == 78
    assert "write one, or name it with -c FILE or $SSEGATE_CONFIG" in capsys.readouterr().err


def test_a_wrong_quick_is_explained_with_the_yaml_it_stands_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quick", "localhost:8000", "--poll", "/orders/{id}=/orders/{idd}", "--print"]) == 78
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "`{idd}` is not a parameter of the path" in captured.err
    assert "get: /orders/{idd}" in captured.err


def test_a_reader_that_leaves_gets_no_traceback(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "schema"], stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, env=environment(), check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"ssegate: the output cannot be written: No space left on device\n"


def test_closed_standard_streams_are_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "ssegate.yaml").write_text("version: 1\nroutes: []\n")
    command = f"exec {' '.join(COMMAND)} check >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment(), check=False).returncode == 0


def test_an_encoding_without_our_characters_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "ssegate.yaml").write_text(
        "version: 1\nupstreams: {api: http://localhost}\nroutes:\n  - path: /x\n    poll: {get: /x}\n"
    )
    code, out, _ = asyncio.run(ran("match", "GET", "/x", cwd=tmp_path, env=environment(PYTHONIOENCODING="ascii")))
    assert code == 0
    assert "\\u2713 poll" in out


def test_httpx_is_imported_in_one_module() -> None:
    modules = [
        path
        for path in (ROOT / "ssegate").rglob("*.py")
        if re.search(r"^\s*(import|from) httpx", path.read_text(), re.MULTILINE)
    ]
    assert modules == [ROOT / "ssegate" / "cli" / "http.py"]
