"""`ssegate serve`: runs the gateway of a configuration file."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from ssegate.cli import advice
from ssegate.cli.banner import show_banner
from ssegate.cli.loading import load
from ssegate.cli.logs import set_up_logging
from ssegate.cli.options import add_config, add_serving
from ssegate.cli.running import run_service
from ssegate.config import Config
from ssegate.service import Service

log = logging.getLogger(__name__)


def register(commands: Any) -> None:
    """Add the command to argparse's sub-parsers."""
    parser = commands.add_parser(
        "serve",
        help="run the gateway (also plain `ssegate`)",
        description="Run the gateway. SIGTERM and Ctrl-C drain it, a second one leaves at once, SIGHUP reads the file again.",
    )
    add_config(parser)
    add_serving(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes; return the exit code. Raises `ConfigError`."""

    set_up_logging(arguments.log_level)

    def read() -> Config:
        config = load(arguments.config, arguments.listen)
        for each in advice.advise(config):
            log.warning("%s: %s: %s", advice.place_of(each), each.where, each.message)
        return config

    service = Service(read())
    return run_service(service, banner=lambda: show_banner(service), load=read)
