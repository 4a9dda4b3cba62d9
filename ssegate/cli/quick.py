"""`ssegate quick`: a gateway from the command line, without a file."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from typing import Any

import yaml

from ssegate.cli.banner import show_banner
from ssegate.cli.check import WRONG
from ssegate.cli.loading import load_text
from ssegate.cli.logs import set_up_logging
from ssegate.cli.options import add_serving, duration
from ssegate.cli.running import run_service
from ssegate.cli.terminal import is_coloured, say
from ssegate.config import explain
from ssegate.errors import ConfigError
from ssegate.service import Service

SOURCE = "(command line)"
"""What messages call the configuration."""

FORM = "'/orders/{id}/events=/orders/{id}@2s'"

_UPSTREAM = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class QuickPoll:
    """`PATH=GET@EVERY`."""

    path: str
    get: str
    every: str
    """Empty is the default."""


def register(commands: Any) -> None:
    """Add the command to argparse's sub-parsers."""
    parser = commands.add_parser(
        "quick",
        help="run a gateway without a file",
        description="Run a gateway without a file: the paths of --poll become event streams, everything else passes to the "
        "upstream. Where a stream has the same path as what it polls, it answers only those who ask for text/event-stream.",
        epilog=f"ssegate quick http://localhost:8000 --poll {FORM}",
    )
    parser.add_argument("upstream", metavar="UPSTREAM", help="the API: http://localhost:8000, or localhost:8000")
    parser.add_argument(
        "--poll",
        metavar="PATH=GET[@EVERY]",
        type=_poll,
        action="append",
        required=True,
        help=f"a stream, and what is polled for it: {FORM}; may be repeated",
    )
    parser.add_argument(
        "--as", dest="form", choices=("snapshot", "patch", "merge"), help="what streams send (default: snapshot)"
    )
    parser.add_argument(
        "--cors", metavar="ORIGIN", action="append", help="let pages of this origin read; may be repeated"
    )
    parser.add_argument(
        "--print", action="store_true", dest="is_print", help="print the YAML this stands for, and leave"
    )
    add_serving(parser)
    parser.set_defaults(run=run)


def _poll(text: str) -> QuickPoll:
    """Read `PATH=GET@EVERY`, as argparse wants it."""
    path, equals, get = text.partition("=")
    if not equals or not path.startswith("/") or not get.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not PATH=GET[@EVERY]; write {FORM}")
    before, _, every = get.rpartition("@")
    if before and re.match(r"[0-9.]", every) and "/" not in every:
        duration(every)
        return QuickPoll(path, before, every)
    return QuickPoll(path, get, "")


def run(arguments: argparse.Namespace) -> int:
    """Serve, or print; return the exit code."""
    text = as_yaml(arguments)
    try:
        config = load_text(text, SOURCE)
    except ConfigError as error:
        say(explain(error, text, colour=is_coloured(sys.stderr)))
        return WRONG
    if arguments.is_print:
        sys.stdout.write(text)
        return 0
    set_up_logging(arguments.log_level)
    service = Service(config)
    return run_service(service, banner=lambda: show_banner(service), load=None)


def as_yaml(arguments: argparse.Namespace) -> str:
    """The file that would do the same."""
    upstream = arguments.upstream if _UPSTREAM.match(arguments.upstream) else f"http://{arguments.upstream}"
    document: dict[str, object] = {"version": 1}
    if arguments.listen is not None:
        document["server"] = {"listen": str(arguments.listen)}
    document["upstreams"] = {"api": _literal(upstream)}
    if arguments.cors:
        document["cors"] = {"origins": [_literal(origin) for origin in arguments.cors]}
    polls = [_route(poll, arguments.form) for poll in arguments.poll]
    document["routes"] = [*polls, {"path": "/{rest:path}", "proxy": {}}]
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _route(poll: QuickPoll, form: str | None) -> dict[str, object]:
    route: dict[str, object] = {"path": _literal(poll.path)}
    if poll.path == poll.get.partition("?")[0]:
        route["negotiate"] = True
    route["poll"] = {"get": _literal(poll.get), **({"every": poll.every} if poll.every else {})}
    if form is not None:
        route["emit"] = {"as": form}
    return route


def _literal(text: str) -> str:
    """The shell has expanded what was to be expanded."""
    return text.replace("$", "$$")


class _Dumper(yaml.SafeDumper):
    """Indents lists below their key, as people do."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)
