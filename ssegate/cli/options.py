"""Options that several commands have, and how their values are read."""

from __future__ import annotations

import argparse

from ssegate.cli.logs import LEVELS
from ssegate.config.values import Address, ValueFault, read_address, read_duration


def add_config(parser: argparse.ArgumentParser) -> None:
    """`-c FILE`."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="the configuration (default: $SSEGATE_CONFIG, ./ssegate.yaml, /etc/ssegate/ssegate.yaml)",
    )


def add_serving(parser: argparse.ArgumentParser) -> None:
    """What every command that runs a gate takes."""
    parser.add_argument("--listen", metavar="HOST:PORT", type=address, help="listen here, whatever the file says")
    parser.add_argument(
        "--log-level", choices=LEVELS, default="info", metavar="LEVEL", help=f"{', '.join(LEVELS)} (default: info)"
    )


def address(text: str) -> Address:
    """Read `host:port`, as argparse wants it."""
    try:
        return read_address(text)
    except ValueFault as fault:
        raise argparse.ArgumentTypeError(fault.message) from None


def duration(text: str) -> float:
    """Read a duration with its unit; in seconds, as argparse wants it."""
    try:
        return read_duration(text)
    except ValueFault as fault:
        raise argparse.ArgumentTypeError(fault.message) from None


def header(text: str) -> tuple[str, str]:
    """Read `Name: value`, as argparse wants it. The message quotes nothing: the value may be a secret."""
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    is_name = name.isascii() and name != "" and all(each.isalnum() or each in "!#$%&'*+-.^_`|~" for each in name)
    if not colon or not is_name:
        raise argparse.ArgumentTypeError("a header is written 'Name: value'")
    if any((ord(each) < 32 and each != "\t") or ord(each) == 127 or ord(each) > 255 for each in value):
        raise argparse.ArgumentTypeError(f"the value of {name} has a character that no header carries")
    return name, value


def pair(text: str) -> tuple[str, str]:
    """Read `name=value`, as argparse wants it."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    return name, value
