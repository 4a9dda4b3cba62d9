"""How a process leaves when something in it will not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.process import environment

STUBBORN = """
import asyncio, os, signal, sys
from ssegate.cli.logs import set_up_logging
from ssegate.cli.running import run_service
from ssegate.config.load import parse_config
from ssegate.service import Service

async def stay():
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

class Stubborn(Service):
    async def start(self):
        self.tasks = [asyncio.create_task(stay()) for _ in range(3)]

    async def drain(self):
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])
        await asyncio.sleep(600)

set_up_logging("info")
config = parse_config("version: 1\\nroutes: []\\n", source="x", environ={})
try:
    code = run_service(Stubborn(config), banner=lambda: os.kill(os.getpid(), signal.SIGTERM), load=None)
finally:
    print("unwound", flush=True)
sys.exit(code)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_second_signal_waits_for_nothing_and_unwinds_what_called_it(name: str, code: int, tmp_path: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", STUBBORN, name],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == code
    assert time.monotonic() - started < 20
    assert done.stdout == "unwound\n"
    assert [line.partition("running  ")[2] for line in done.stderr.splitlines()] == [
        "SIGTERM: draining 0 streams for up to 20 s; again to leave at once",
        f"{signal.Signals[name].name}: leaving at once",
    ]
