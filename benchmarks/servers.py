"""Servers to measure: the gate from this checkout, peers as Debian packages them, and the limit, a C program of our own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from process import LOAD_CORE, SERVER_CORE, Process, Unavailable, free_port, needs, running

HERE = Path(__file__).parent
CHECKOUT = HERE.parent

NGINX = """
{modules}
daemon off; worker_processes 1; worker_rlimit_nofile 20000; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 20000; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000000; client_max_body_size 0;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  {http}
}}
"""
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
NCHAN = """
nchan_max_reserved_memory 512M;
server {{
  listen 127.0.0.1:{h1} backlog=4096;
  listen 127.0.0.1:{h2c} http2 backlog=4096;
  listen 127.0.0.1:{tls_h1} ssl backlog=4096;
  listen 127.0.0.1:{tls_h2} ssl http2 backlog=4096;
  ssl_certificate {certificate.cert}; ssl_certificate_key {certificate.key};
  location /sub {{ nchan_subscriber eventsource; nchan_channel_id $arg_id; nchan_subscriber_first_message newest; }}
  location /pub {{ nchan_publisher; nchan_channel_id $arg_id; nchan_message_buffer_length 1000; }}
}}
"""
PROXY = """
upstream backend {{ server 127.0.0.1:{backend}; keepalive 64; keepalive_requests 1000000000; }}
server {{
  listen 127.0.0.1:{h1} backlog=4096;
  listen 127.0.0.1:{h2c} http2 backlog=4096;
  proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_request_buffering off; proxy_max_temp_file_size 0;
  location / {{ proxy_pass http://backend; }}
}}
"""
KILOBYTE = """
server {{
  listen 127.0.0.1:{port} backlog=4096;
  location / {{ default_type application/json; return 200 "{body}"; }}
}}
"""
SMALL_BODY = b"x" * 1024

WEBHOOK = """
routes:
  - path: "/t/{id}/events"
    webhook: {at: /hooks/t, verify: none, match: {id: body.id}, then: emit}
"""
PASS = """
routes:
  - path: "/{rest:path}"
    proxy: {}
"""


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate, in files."""

    cert: Path
    key: Path


@dataclass(frozen=True)
class Place:
    """Where a server's streams are and where events for them are posted."""

    ports: dict[str, int]
    """By protocol: h1, h2c, tls-h1, tls-h2. Events are posted to h1."""
    path: str = "/"
    publish_path: str = "/"


@dataclass(frozen=True)
class Server:
    """A server that is up."""

    name: str
    place: Place
    process: Process


@dataclass(frozen=True)
class Gate:
    """How the gate is configured and started."""

    edge: str | None = None
    """`server.edge`; None: its default."""
    certificate: Certificate | None = None
    """With it, a TLS listener."""
    topics: int = 10000
    extra: dict[str, str] = field(default_factory=dict)
    """Further top-level keys and their YAML."""

    @contextlib.contextmanager
    def up(self, routes: str, upstream: int = 9, path: str = "/", publish_path: str = "/") -> Iterator[Server]:
        """The gate with these routes before the upstream on this port."""
        port, tls = free_port(), free_port()
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder, "bench.yaml")
            config.write_text(self._yaml(port, tls, upstream) + routes)
            command = [sys.executable, "-m", "ssegate", "serve", "-c", str(config)]
            with running(command, port, core=SERVER_CORE, folder=CHECKOUT) as process:
                ports = {"h1": port, "h2c": port, "tls-h1": tls, "tls-h2": tls}
                yield Server("ssegate", Place(ports, path, publish_path), process)

    def fanout(self) -> contextlib.AbstractContextManager[Server]:
        """The gate with a webhook whose deliveries are events."""
        return self.up(WEBHOOK, path="/t/bench/events", publish_path="/hooks/t")

    def proxy(self, backend: int) -> contextlib.AbstractContextManager[Server]:
        """The gate with one route that passes everything through."""
        return self.up(PASS, backend)

    def _yaml(self, port: int, tls: int, upstream: int) -> str:
        server = [f'listen: "127.0.0.1:{port}"']
        if self.edge:
            server.append(f"edge: {self.edge}")
        if self.certificate:
            cert, key = self.certificate.cert, self.certificate.key
            server.append(f'tls: {{listen: "127.0.0.1:{tls}", cert: "{cert}", key: "{key}"}}')
        lines = ["version: 1", f"server: {{{', '.join(server)}}}"]
        lines.append(f'upstreams: {{api: {{url: "http://127.0.0.1:{upstream}", connections: 64}}}}')
        lines.append(f"limits: {{clients: 100000, topics: {self.topics}}}")
        lines += [f"{key}: {value}" for key, value in self.extra.items()]
        return "\n".join(lines)


@contextlib.contextmanager
def certificate() -> Iterator[Certificate]:
    """A certificate for localhost, made by openssl."""
    needs("openssl", "openssl")
    with tempfile.TemporaryDirectory() as folder:
        made = Certificate(Path(folder, "cert.pem"), Path(folder, "key.pem"))
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=localhost", "-keyout", str(made.key), "-out", str(made.cert)]
        subprocess.run(command, check=True, capture_output=True)
        yield made


@contextlib.contextmanager
def nchan(certificate: Certificate) -> Iterator[Server]:
    """nginx with nchan, on every protocol."""
    if not NCHAN_MODULE.exists():
        raise Unavailable("nchan is not installed: apt-get install nginx libnginx-mod-nchan")
    ports = {name: free_port() for name in ("h1", "h2c", "tls_h1", "tls_h2")}
    http = NCHAN.format(certificate=certificate, **ports)
    with _nginx(http, ports["h1"], SERVER_CORE, f"load_module {NCHAN_MODULE};") as process:
        by_name = {name.replace("_", "-"): port for name, port in ports.items()}
        yield Server("nchan", Place(by_name, "/sub?id=bench", "/pub?id=bench"), process)


@contextlib.contextmanager
def nginx_proxy(backend: int) -> Iterator[Server]:
    """nginx with `proxy_pass`, bodies streamed and not kept in files."""
    ports = {"h1": free_port(), "h2c": free_port()}
    with _nginx(PROXY.format(backend=backend, **ports), ports["h1"], SERVER_CORE) as process:
        yield Server("nginx", Place(ports), process)


@contextlib.contextmanager
def kilobyte_backend() -> Iterator[int]:
    """The port of an nginx on the load's core that answers everything with 1 kB."""
    port = free_port()
    with _nginx(KILOBYTE.format(port=port, body=SMALL_BODY.decode()), port, LOAD_CORE):
        yield port


@contextlib.contextmanager
def _nginx(http: str, port: int, core: int, modules: str = "") -> Iterator[Process]:
    needs("nginx", "nginx")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        config = Path(folder, "nginx.conf")
        config.write_text(NGINX.format(folder=folder, http=http, modules=modules))
        with running(["nginx", "-c", str(config), "-p", folder], port, core=core) as process:
            yield process


@contextlib.contextmanager
def send_loop() -> Iterator[Server]:
    """The limit: a loop of `send` in C and nothing else."""
    needs("cc", "gcc")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "send_loop")
        subprocess.run(["cc", "-O2", "-Wall", "-o", program, HERE / "send_loop.c"], check=True)
        with running([str(program), str(port)], port, core=SERVER_CORE) as process:
            yield Server("C", Place({"h1": port}, "/", "/pub"), process)


@contextlib.contextmanager
def script(name: str, *arguments: str, core: int) -> Iterator[tuple[int, Process]]:
    """A server of this folder written in Python, which takes its port first; and that port."""
    port = free_port()
    with running([sys.executable, str(HERE / name), str(port), *arguments], port, core=core) as process:
        yield port, process
