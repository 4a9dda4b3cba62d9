"""`ssegate check`: every problem of configuration files, each with its place."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ssegate.cli import advice
from ssegate.cli.loading import load
from ssegate.cli.terminal import explained, paint, printable, say
from ssegate.config import Config, explain_github
from ssegate.errors import ConfigError, Problem

OK = 0
WRONG = 78


def register(commands: Any) -> None:
    """Add the command to argparse's sub-parsers."""
    parser = commands.add_parser(
        "check",
        help="tell every problem of a configuration",
        description="Tell every problem of configuration files, with line, column and the nearest name. Exits with 78 if there is one.",
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="default: the one that `ssegate serve` would find")
    parser.add_argument("-c", "--config", dest="files", action="append", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument(
        "--format",
        choices=("text", "github"),
        default="text",
        help="github: as workflow commands, shown beside the lines of a pull request",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check each file; 0 when all are well, else 78."""
    is_github = arguments.format == "github"
    return max([_check(file, is_github) for file in arguments.files or [None]])


def _check(file: str | None, is_github: bool) -> int:
    try:
        config = load(file)
    except ConfigError as error:
        print(explain_github(error) if is_github else explained(error, sys.stdout))
        return WRONG
    for each in advice.advise(config):
        _warn(each, is_github)
    print(f"{printable(config.source)}: {_counted(config)}, all well")
    return OK


def _counted(config: Config) -> str:
    count = len(config.routes)
    return f"{count} route{'' if count == 1 else 's'}"


def _warn(each: Problem, is_github: bool) -> None:
    if is_github:
        print(explain_github(ConfigError([each])).replace("::error ", "::warning ", 1))
    else:
        told = paint(f"warning[{each.code}]", "yellow", sys.stderr)
        say(f"{printable(advice.place_of(each))}: {told} {printable(f'{each.where}: {each.message}')}")
