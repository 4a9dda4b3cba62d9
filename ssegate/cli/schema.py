"""`ssegate schema`: the JSON Schema of the configuration, for editors."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ssegate.config import json_schema


def register(commands: Any) -> None:
    """Add the command to argparse's sub-parsers."""
    parser = commands.add_parser(
        "schema",
        help="print the configuration's JSON Schema, for editors",
        description="Print the configuration's JSON Schema: ssegate schema > ssegate.schema.json",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0
