"""A gate in a process of its own, so that its memory, descriptors and tasks can be counted; run by `harness.py`.

`OPEN_FILES` in its environment is how many descriptors it may have. `python gate_process.py CONFIG` prints one line of JSON when it listens, answers each line `tasks` on standard input with
the number of its tasks, and leaves when standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import sys
from pathlib import Path

import uvloop

import ssegate.edge.asgi
import ssegate.edge.hypercorn
import ssegate.edge.native.limits
from ssegate.config.load import parse_config
from ssegate.service import Service

HEAD_TIMEOUT = 0.6
BODY_SILENCE = 0.6
HANDSHAKE_TIMEOUT = 0.8
LINGER = 0.5
CLOSE_TIMEOUT = 1.0


def shorten_waits() -> None:
    """What takes ten and thirty seconds outside takes less than one here."""
    for module in (ssegate.edge.hypercorn, ssegate.edge.native.limits):
        module.HEAD_TIMEOUT = HEAD_TIMEOUT
        module.LINGER = LINGER
        module.CLOSE_TIMEOUT = CLOSE_TIMEOUT
    ssegate.edge.native.limits.HANDSHAKE_TIMEOUT = HANDSHAKE_TIMEOUT
    for module in (ssegate.edge.asgi, ssegate.edge.native.limits):
        module.BODY_SILENCE = BODY_SILENCE


async def run(path: str) -> None:
    service = Service(parse_config(Path(path).read_text(), source=path, environ={}))
    await service.start()
    say({"port": service.port, "admin": service.admin_port, "tls": service.tls_port or 0})
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        say({"tasks": len(asyncio.all_tasks())})
        if "SHOW_TASKS" in os.environ:
            for task in asyncio.all_tasks():
                task.print_stack(file=sys.stderr)
    pipe.close()
    await service.aclose()


def say(fact: dict[str, int | None]) -> None:
    print(json.dumps(fact), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.INFO)
    shorten_waits()
    if files := os.environ.get("OPEN_FILES"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), int(files)))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(sys.argv[1]))
