"""`ssegate health`: asks a running gate whether it should get requests; for a container's health check."""

from __future__ import annotations

import argparse
from typing import Any

from ssegate.cli.loading import load
from ssegate.cli.options import add_config, duration
from ssegate.cli.shown import from_here
from ssegate.cli.terminal import complain
from ssegate.errors import UpstreamError


def register(commands: Any) -> None:
    """Add the command to argparse's sub-parsers."""
    parser = commands.add_parser(
        "health",
        help="ask a running gate whether it is ready (exit 0 or 1)",
        description="Ask the configured admin listener's /readyz, or a URL. Exits with 0 when the answer is 200, else with 1.",
    )
    parser.add_argument("url", metavar="URL", nargs="?", help="ask this instead; then no configuration is read")
    parser.add_argument("--timeout", metavar="3s", type=duration, default=3.0, help="default: 3s")
    add_config(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask; 0 when it is ready. Raises `ConfigError`."""
    url = arguments.url or _url(arguments.config)
    return 1 if url is None else _ask(url, arguments.timeout)


def _url(config: str | None) -> str | None:
    admin = load(config).admin
    if admin is None:
        complain("there is no admin listener to ask; write `admin:` in the configuration, or name a URL")
        return None
    if not admin.listen.port:
        complain("the admin listener's port is chosen when it starts; name a URL")
        return None
    return f"http://{from_here(admin.listen)}/readyz"


def _ask(url: str, timeout: float) -> int:
    from ssegate.cli.http import fetch_status, shown_url  # httpx costs 0.1 s, and most commands have no use for it

    try:
        status = fetch_status(url, timeout=timeout)
    except ValueError as error:
        complain(str(error))
        return 2
    except UpstreamError as error:
        print(f"not ready: {shown_url(url)}: {error}")
        return 1
    print(f"ready: {shown_url(url)}" if status == 200 else f"not ready: {shown_url(url)}: {status}")
    return 0 if status == 200 else 1
