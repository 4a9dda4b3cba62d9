"""Servers to measure, each in a process of its own: the gate from this checkout, and peers as Debian packages them."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from load import Place, Process, pin

SERVER_CORE = 0

NCHAN = """
load_module /usr/lib/nginx/modules/ngx_nchan_module.so;
daemon off; worker_processes 1; worker_rlimit_nofile 40000; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 40000; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000000; nchan_max_reserved_memory 512M;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location /sub {{ nchan_subscriber eventsource; nchan_channel_id $arg_id; nchan_subscriber_first_message newest; }}
    location /pub {{ nchan_publisher; nchan_channel_id $arg_id; nchan_message_buffer_length 1000; }}
  }}
}}
"""

WEBHOOK = """
version: 1
server: {{listen: "127.0.0.1:{port}"}}
upstreams: {{api: "http://127.0.0.1:9"}}
limits: {{clients: 100000}}
routes:
  - path: "/t/{{id}}/events"
    webhook: {{at: /hooks/t, verify: none, match: {{id: body.id}}, then: emit}}
"""


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def gate(yaml: str, port: int) -> Iterator[Process]:
    """The gate with this configuration, ready."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "bench.yaml")
        config.write_text(yaml)
        with _running([sys.executable, "-m", "ssegate", "serve", "-c", str(config)], port) as process:
            yield process


@contextlib.contextmanager
def fanout_gate() -> Iterator[tuple[Place, Process]]:
    """The gate with a webhook whose deliveries are events."""
    port = free_port()
    with gate(WEBHOOK.format(port=port), port) as process:
        yield Place(port, "/t/bench/events", "/hooks/t"), process


@contextlib.contextmanager
def fanout_nchan() -> Iterator[tuple[Place, Process]]:
    """nginx with nchan. Exits with what to install when it is not there."""
    if shutil.which("nginx") is None or not Path("/usr/lib/nginx/modules/ngx_nchan_module.so").exists():
        sys.exit("nchan is not installed: apt-get install nginx libnginx-mod-nchan")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "nginx.conf")
        config.write_text(NCHAN.format(folder=folder, port=port))
        Path(folder).chmod(0o755)
        with _running(["nginx", "-c", str(config), "-p", folder], port) as process:
            yield Place(port, "/sub?id=bench", "/pub?id=bench"), process


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[Process]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        pin(SERVER_CORE, server.pid)
        _wait_for(port, server)
        yield Process([server.pid])
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        assert server.stderr is not None
        server.stderr.close()


def _wait_for(port: int, server: subprocess.Popen[bytes], timeout: float = 15.0) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if server.poll() is not None:
            assert server.stderr is not None
            sys.exit(f"the server ended with {server.returncode}: {server.stderr.read().decode()}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    sys.exit(f"nobody listens on port {port}")
