"""`ssegate health`: one line and an exit code for a container's health check."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ssegate.cli import main
from tests.upstream.scripted import ScriptedUpstream, answer


@pytest.mark.parametrize(
    ("status", "code", "told"), [(200, 0, "ready: {}/readyz"), (503, 1, "not ready: {}/readyz: 503")]
)
def test_the_configured_admin_listener_is_asked(
    status: int, code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> str:
        async with ScriptedUpstream(answer(b"x", status=status)) as upstream:
            file = tmp_path / "ssegate.yaml"
            file.write_text(f'version: 1\nadmin: {{listen: "0.0.0.0:{upstream.port}"}}\nroutes: []\n')
            assert await asyncio.to_thread(main, ["health", "-c", str(file)]) == code
            assert [asked.target for asked in upstream.requests] == ["/readyz"]
            return upstream.url

    url = asyncio.run(scenario())
    assert capsys.readouterr().out == told.format(url) + "\n"


def test_nobody_there_is_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "http://127.0.0.1:1/readyz"]) == 1
    assert capsys.readouterr().out == "not ready: http://127.0.0.1:1/readyz: connection refused\n"


def test_silence_is_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with ScriptedUpstream(lambda call: call.closed()) as upstream:
            assert await asyncio.to_thread(main, ["health", upstream.url, "--timeout", "200ms"]) == 1

    asyncio.run(scenario())
    assert ": no answer in time\n" in capsys.readouterr().out


def test_without_an_admin_listener_there_is_nothing_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ssegate.yaml").write_text("version: 1\nroutes: []\n")
    assert main(["health", "-c", str(tmp_path / "ssegate.yaml")]) == 1
    assert "there is no admin listener to ask; write `admin:`" in capsys.readouterr().err
