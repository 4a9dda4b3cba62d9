"""SIGTERM with streams open on every kind of connection: each is ended in order, and the process with it."""

from __future__ import annotations

import http.client
import json
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import hpack
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame

from tests.safety.harness import trusting
from tests.safety.test_storms import PREFACE, allow_files, request_of

ROOT = Path(__file__).parents[2]
STREAMS = 10

CONFIG = """
version: 1
server:
  listen: 127.0.0.1:0
  tls: {listen: "127.0.0.1:0", self_signed: true}
  drain: {timeout: SECONDSs}
admin: {listen: "127.0.0.1:0"}
routes:
  - path: /tickets/{id}/events
    webhook: {at: /hooks/tickets, verify: none, match: {id: body.id}, then: emit}
    auth: none
"""


@dataclass
class Gate:
    process: subprocess.Popen[str]
    plain: int
    tls: int
    admin: int
    log: Path

    def streams(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=10)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith("ssegate_streams ")))


@contextmanager
def serving(directory: Path, drain: int) -> Iterator[Gate]:
    file, log = directory / "ssegate.yaml", directory / "log"
    file.write_text(CONFIG.replace("SECONDS", str(drain)))
    command = [sys.executable, "-W", "error", "-m", "ssegate", "serve", "-c", str(file)]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT) as process,
    ):
        try:
            assert process.stdout is not None
            banner = json.loads(process.stdout.readline() or "null")
            assert banner, log.read_text()
            ports = [urlsplit(each["url"]).port or 0 for each in banner["listening"]]
            yield Gate(process, ports[0], ports[1], urlsplit(banner["admin"]).port or 0, log)
        finally:
            process.kill()


@dataclass
class Viewer:
    """One connection, with one stream or with ten."""

    connection: socket.socket
    is_http2: bool
    data: bytearray = field(default_factory=bytearray)

    def read(self) -> bool:
        """Take what there is; whether the connection has ended."""
        while True:
            try:
                piece = self.connection.recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError):
                return False
            if not piece:
                return True
            self.data += piece

    def check(self) -> None:
        """Whether it was ended in order."""
        if self.is_http2:
            self._check_http2()
        else:
            assert self.data.startswith(b"HTTP/1.1 200 "), self.data
            assert self.data.endswith(b"\r\n0\r\n\r\n"), self.data[-100:]
            assert self.data.count(b"retry:") == 2

    def _check_http2(self) -> None:
        ended, is_farewell = set(), False
        for frame in frames(bytes(self.data)):
            assert not isinstance(frame, RstStreamFrame), frame
            if isinstance(frame, DataFrame) and "END_STREAM" in frame.flags:
                ended.add(frame.stream_id)
            elif isinstance(frame, GoAwayFrame):
                is_farewell = True
                assert frame.error_code == ErrorCodes.NO_ERROR
        assert is_farewell
        assert ended == set(range(1, 2 * STREAMS, 2))


def frames(data: bytes) -> Iterator[Frame]:
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        yield frame
        data = data[9 + length :]


def ten_streams(scheme: str) -> bytes:
    encoder = hpack.Encoder()
    data = [PREFACE, SettingsFrame(0).serialize()]
    for number in range(1, 2 * STREAMS, 2):
        pairs = (
            (":method", "GET"),
            (":scheme", scheme),
            (":authority", "gate.test"),
            (":path", f"/tickets/{number}/events"),
        )
        data.append(HeadersFrame(number, encoder.encode(pairs), flags=["END_HEADERS", "END_STREAM"]).serialize())
    return b"".join(data)


def viewers(gate: Gate, stack: ExitStack, streams: int) -> Iterator[Viewer]:
    """So many streams over each of plain and TLS, HTTP/1.1 and HTTP/2."""
    http1, http2 = request_of("/tickets/1/events"), {scheme: ten_streams(scheme) for scheme in ("http", "https")}
    for is_http2 in (False, True):
        context = trusting("h2" if is_http2 else "http/1.1")
        for port in (gate.plain, gate.tls):
            for _ in range(streams // STREAMS if is_http2 else streams):
                connection = socket.create_connection(("127.0.0.1", port))
                if port == gate.tls:
                    connection = context.wrap_socket(
                        connection, server_hostname="localhost", suppress_ragged_eofs=False
                    )
                stack.callback(connection.close)
                connection.sendall(http2["https" if port == gate.tls else "http"] if is_http2 else http1)
                connection.setblocking(False)
                yield Viewer(connection, is_http2)


def read_to_the_end(all_of_them: list[Viewer], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for viewer in all_of_them:
            selector.register(viewer.connection, selectors.EVENT_READ, viewer)
        while selector.get_map():
            assert time.monotonic() < deadline, f"{len(selector.get_map())} connections are still open"
            for key, _ in selector.select(1.0):
                if key.data.read():
                    selector.unregister(key.fileobj)
                    key.data.connection.close()


@pytest.mark.parametrize(("streams", "drain"), [(520, 2), pytest.param(5000, 10, marks=pytest.mark.long)])
def test_sigterm_ends_every_stream_in_order_and_the_process_with_them(tmp_path: Path, streams: int, drain: int) -> None:
    allow_files(streams)
    with serving(tmp_path, drain) as gate, ExitStack() as stack:
        everybody = list(viewers(gate, stack, streams // 4))
        deadline = time.monotonic() + 20
        while (opened := gate.streams()) < streams:
            assert time.monotonic() < deadline, f"{opened} streams were opened"
            time.sleep(0.05)
        began = time.monotonic()
        gate.process.send_signal(signal.SIGTERM)
        read_to_the_end(everybody, drain + 3)
        assert gate.process.wait(5) == 0
        seconds = time.monotonic() - began
        print(f"{streams} streams ended in {seconds:.2f} s")
        assert seconds < drain + 1
        for viewer in everybody:
            viewer.check()
        said = gate.log.read_text()
        assert {line.split()[1] for line in said.splitlines()} == {"INFO"}, said
        assert f"draining {streams} streams" in said
