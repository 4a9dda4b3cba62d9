"""`ssegate` as a process, started and talked to as people and init systems do."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

COMMAND = (sys.executable, "-m", "ssegate")


def environment(**more: str) -> dict[str, str]:
    """This one's, so that the package is found from any directory, and nothing of the machine's own configuration."""
    kept = {name: value for name, value in os.environ.items() if name not in ("SSEGATE_CONFIG", "NO_COLOR")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


async def ran(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run to the end; the exit code, and what went to standard output and error."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, cwd=cwd, env=env or environment(), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


class Running:
    """A gate that is up."""

    def __init__(self, process: asyncio.subprocess.Process, facts: dict[str, Any]) -> None:
        self.process = process
        self.facts = facts
        self.url: str = facts["listening"][0]["url"]
        self.port = int(self.url.rpartition(":")[2])
        self.lines: list[str] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def logged(self, part: str) -> str:
        """Read the log until a line has this in it."""
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            self.lines.append(line)
            if part in line:
                return line
        raise AssertionError(f"no {part!r} in {self.lines}")

    async def open(self, path: str) -> tuple[asyncio.StreamReader, int]:
        """Ask for a stream; what it sends, and the status."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n".encode())
        self._writers.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        return reader, int(head.split(b" ")[1])

    async def ask(self, path: str) -> int:
        """Ask; the status."""
        return (await self.open(path))[1]

    async def aclose(self) -> None:
        """Hang up, and end it if it has not ended."""
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


@asynccontextmanager
async def running(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> AsyncIterator[Running]:
    """Start a gate, and wait until its line with the facts is there."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, cwd=cwd, env=env or environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )  # fmt: skip
    assert process.stdout is not None
    line = await process.stdout.readline()
    assert line, (await process.communicate())[1].decode()
    gate = Running(process, json.loads(line))
    try:
        yield gate
    finally:
        await gate.aclose()
