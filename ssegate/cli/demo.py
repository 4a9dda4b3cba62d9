"""`ssegate demo`: a toy legacy API in its own process, the gate before it, and a page that shows both."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ssegate.cli.logs import set_up_logging
from ssegate.cli.running import run_service
from ssegate.cli.terminal import complain, paint, say
from ssegate.demo.process import ApiProcess, DemoError
from ssegate.demo.service import PAGE, STREAM, DemoService

FAILED = 1


def register(commands: Any) -> None:
    """Add the command to argparse's sub-parsers."""
    parser = commands.add_parser(
        "demo",
        help="a toy legacy API, the gateway before it, and a page that shows both",
        description="Start a small legacy API, the gateway before it, and a page that shows both. Works without a network. "
        "Where a port is in use, the next one is taken.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the gateway listens there (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8080, help="the gateway's port (default: %(default)s)")
    parser.add_argument("--api-port", type=_port, default=8000, help="the API's port (default: %(default)s)")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="how often the orders change (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the demo until a signal comes; return the exit code."""
    set_up_logging("warning")
    try:
        with ApiProcess(arguments.api_port, every=arguments.every) as api:
            service = DemoService(api, host=arguments.host, port=arguments.port, tell=complain)
            return run_service(service, banner=lambda: _show(service, api, arguments), load=None)
    except DemoError as error:
        complain(str(error))
        return FAILED


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; write 1 to 65535")
    return int(text)


def _show(service: DemoService, api: ApiProcess, arguments: argparse.Namespace) -> None:
    """Say where everything is."""
    for what, asked, got in (
        ("the gateway", arguments.port, service.port),
        ("the API", arguments.api_port, int(api.url.rpartition(":")[2])),
    ):
        if asked != got:
            say(f"port {asked} is in use: {what} has {got}")
    host = "localhost" if arguments.host in ("0.0.0.0", "::") else arguments.host  # noqa: S104  (compared only)
    gate = f"http://{host}:{service.port}"
    print(
        paint("ssegate demo", "bold", sys.stdout), "· a legacy API that knows nothing of events, and the gate before it"
    )
    print(f"  page        {paint(gate + PAGE, 'cyan', sys.stdout)}")
    print(f"  API         {api.url}/orders")
    print(f"  stream      {gate}{STREAM}")
    print("  Ctrl-C stops both.", flush=True)
