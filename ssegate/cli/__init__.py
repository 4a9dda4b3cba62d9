"""The command `ssegate`: finds the sub-command that was asked for, runs it, and turns what went wrong into an exit code."""

from __future__ import annotations

import argparse
import errno
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from ssegate import __version__
from ssegate.cli import (
    check,
    demo,
    explain_token,
    health,
    listen,
    match,
    quick,
    routes,
    schema,
    send,
    serve,
    token,
    try_,
)
from ssegate.cli.terminal import complain, prepare_streams, report
from ssegate.errors import ConfigError

COMMANDS = (serve, quick, check, demo, routes, match, try_, listen, send, token, explain_token, schema, health)
"""In the order in which the help lists them."""

FAILED = 1
WRONG_CONFIG = 78
INTERRUPTED = 130
BROKEN_PIPE = 141

_UNWRITABLE = (errno.ENOSPC, errno.EIO, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code. Exits by itself on wrong usage (2), `--help` and `--version` (0)."""
    prepare_streams()
    arguments = _parser().parse_args(_with_command(sys.argv[1:] if argv is None else argv))
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except ConfigError as error:
        report(error)
        return WRONG_CONFIG
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()  # whoever read it has gone (`| head`)
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        _discard_output()
        complain(f"the output cannot be written: {os.strerror(error.errno)}")
        return FAILED
    return code


def _discard_output() -> None:
    """What is still buffered would fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_command(argv: Sequence[str]) -> Sequence[str]:
    """Plain `ssegate`, or with options of `serve`, is `ssegate serve`."""
    own = ("-h", "--help", "--version")
    return ["serve", *argv] if not argv or (argv[0].startswith("-") and argv[0] not in own) else argv


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ssegate",
        description="Live updates, as Server-Sent Events, in front of an HTTP API that knows nothing of them.",
        epilog="Without a command it serves. `ssegate COMMAND --help` tells more.",
    )
    parser.add_argument("--version", action=_Version, help="print the version and leave")
    commands: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.register(commands)
    return parser


class _Version(argparse.Action):
    """Prints lines as they are; argparse's own action would join them."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(nargs=0, **keywords)

    def __call__(self, parser: argparse.ArgumentParser, *arguments: object) -> None:
        print(f"ssegate {__version__}\nPython {platform.python_version()}")
        parser.exit()
