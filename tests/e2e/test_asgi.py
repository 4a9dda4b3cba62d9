"""The gate as an application of plain ASGI servers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.client import PATIENCE
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Door, Edge, before, free_port, said, story

ROUTES = """
- path: /x/events
  poll: {get: /x, every: 50ms}
- path: "/{rest:path}"
  proxy: {}
"""

SERVERS = {
    "hypercorn": (("hypercorn", "ssegate.asgi:app", "--workers", "0", "--bind", "127.0.0.1:{port}"), "1.1"),
    "hypercorn-h2": (("hypercorn", "ssegate.asgi:app", "--workers", "0", "--bind", "127.0.0.1:{port}"), "2"),
    "uvicorn": (("uvicorn", "ssegate.asgi:app", "--port", "{port}"), "1.1"),
}


@asynccontextmanager
async def serving(name: str, text: str, directory: Path) -> AsyncIterator[Door]:
    """The application on this server, in a process that must end in order."""
    command, http = SERVERS[name]
    port = free_port()
    file = directory / "gate.yaml"
    file.write_text(f"version: 1\n{text}")
    arguments = [part.format(port=port) for part in command]
    environ = {**os.environ, "SSEGATE_CONFIG": str(file)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, env=environ, stdout=DEVNULL, stderr=PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            said_ = b""
            while b"unning on" not in said_:
                line = await process.stderr.readline()
                assert line, said_.decode()
                said_ += line
        yield Door(Edge(name, http), port)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            rest = await process.stderr.read()
            assert await process.wait() in (0, -signal.SIGTERM), rest.decode()
            assert b"Traceback" not in rest, rest.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.stderr.read()
            await process.wait()


@pytest.mark.parametrize("name", SERVERS)
@story
async def test_any_asgi_server_serves_a_stream_that_resumes(name: str, tmp_path: Path) -> None:
    async with LegacyApi() as api:
        api.put("/x", {"n": 1})
        async with serving(name, before(api, ROUTES), tmp_path) as door:
            async with door.watch("/x/events") as viewer:
                assert (viewer.status, viewer.get("content-type")) == (200, "text/event-stream")
                assert viewer.get("content-length") is None
                names = [name for name, _ in viewer.headers]
                assert len(names) == len(set(names)), "no field comes twice"
                first = await viewer.event()
                api.put("/x", {"n": 2})
                assert said((await viewer.event()).data) == {"n": 2}
            async with door.watch("/x/events", cursor=first.id) as viewer:
                assert viewer.get("ssegate-resumed") == "yes"
                assert said((await viewer.event()).data) == {"n": 2}
            reply = await door.ask("PUT", "/y", ("Content-Type", "application/json"), body=b'{"n": 3}')
            assert (reply.status, said(reply.body)) == (200, {"n": 3})
            assert (await door.ask("GET", "/x/events", ("Accept", "text/html"))).status == 406


@pytest.mark.parametrize("name", ["hypercorn", "uvicorn"])
@story
async def test_a_server_does_not_start_with_a_wrong_configuration(name: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="evry"):
        async with serving(
            name, "upstreams: {api: http://127.0.0.1}\nroutes: [{path: /x, poll: {get: /x, evry: 1s}}]", tmp_path
        ):
            pass
