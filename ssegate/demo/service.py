"""The gate of the demo: its configuration, its page, and beside it the page's desk and a watch over the API's process."""

from __future__ import annotations

import asyncio
import errno
import html
import socket
from collections.abc import Callable, Mapping
from importlib.resources import files

from ssegate.config import parse_config
from ssegate.config.model import Config
from ssegate.demo.crowd import Crowd
from ssegate.demo.desk import Desk
from ssegate.demo.process import ApiProcess, DemoError
from ssegate.edge.exchange import Answer
from ssegate.edge.native.server import NativeServer
from ssegate.service import Service

PAGE = "/_ssegate/demo"
STREAM = "/orders/events"
LOOPBACK = "127.0.0.1"
PORTS_TRIED = 20

_PAGE_HEADERS = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # It needs nothing from anywhere else, and could not get it.
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:",
    ),
)


def demo_page() -> Answer:
    """Make the page, with the configuration in it."""
    here = files("ssegate.demo")
    text = here.joinpath("page.html").read_text("utf-8")
    page = text.replace("{{configuration}}", html.escape(demo_yaml()))
    return Answer(200, _PAGE_HEADERS, page.encode())


def demo_yaml() -> str:
    """The demo's configuration file."""
    return files("ssegate.demo").joinpath("demo.yaml").read_text("utf-8")


def demo_config(environ: Mapping[str, str]) -> Config:
    """Read it with `DEMO_LISTEN`, `DEMO_API` and `DEMO_DESK` as they are there."""
    return parse_config(demo_yaml(), source="demo.yaml", environ=environ)


def free_port(host: str, port: int) -> int:
    """The port, or one of the next that is not in use, or any. Raises `DemoError` when the host is none of ours."""
    for candidate in (*range(port, min(port + PORTS_TRIED, 65536)), 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise DemoError(f"cannot listen on {host}:{candidate}: {error.strerror or error}") from error
                continue
            return int(probe.getsockname()[1])
    raise DemoError(f"no port is free on {host}")


class DemoService(Service):
    """The gate before the demo's API. The API's process is not ended with it: that is for whoever started it."""

    def __init__(self, api: ApiProcess, *, host: str, port: int, tell: Callable[[str], None]) -> None:
        """`tell` is given a sentence when something has happened that the user must know. Raises `DemoError`."""
        desk_port = free_port(LOOPBACK, 0)
        config = demo_config(
            {
                "DEMO_LISTEN": f"{host}:{free_port(host, port)}",
                "DEMO_API": api.url,
                "DEMO_DESK": f"http://{LOOPBACK}:{desk_port}",
            }
        )
        page = demo_page()
        super().__init__(config, own={PAGE.encode(): page, PAGE.encode() + b"/": page})
        self._api = api
        self._tell = tell
        self._crowd = Crowd(LOOPBACK if host == "0.0.0.0" else host, STREAM)  # noqa: S104  (compared, not listened on)
        desk = Desk(self.gate.statistics, self._crowd)
        self._desk_port = desk_port
        self._desk = NativeServer(desk.answer)
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See `Service.start`."""
        await self._desk.start(LOOPBACK, self._desk_port)
        await super().start()
        self._crowd.port = self.port
        self._watch = asyncio.get_running_loop().create_task(self._watch_api())

    async def drain(self) -> None:
        """See `Service.drain`. The crowd goes home first: it would come back."""
        self._end_watch()
        await self._crowd.aclose()
        await super().drain()

    async def aclose(self, grace: float = 0.0) -> None:
        """See `Service.aclose`."""
        self._end_watch()
        await self._crowd.aclose()
        await super().aclose(grace)
        await self._desk.aclose(0.5)

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    async def _watch_api(self) -> None:
        """Say it when the API ends. The gate goes on: that is what viewers see of an outage."""
        while self._api.exit_code is None:  # noqa: ASYNC110  (a process does not end on the event loop)
            await asyncio.sleep(0.5)
        port = self._api.url.rpartition(":")[2]
        self._tell(
            f"the API's process has ended (exit code {self._api.exit_code}). The gate goes on, and its viewers are told "
            f"`fault`. To start the API again: python -m ssegate.demo.api --port {port}"
        )
