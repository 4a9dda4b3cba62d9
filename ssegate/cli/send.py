"""`ssegate send`: a webhook as its sender would make it, signed by the configuration, posted to a running gate."""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ssegate.cli.http import Posted, checked_url, post
from ssegate.cli.loading import load
from ssegate.cli.options import add_config, header, pair
from ssegate.cli.shown import from_here, masked
from ssegate.cli.terminal import complain, paint, printable
from ssegate.config import Config
from ssegate.config.explain import did_you_mean
from ssegate.config.values import Expression
from ssegate.core.routing import Router
from ssegate.core.scheme import Signed
from ssegate.errors import SsegateError, UpstreamError
from ssegate.gate.hooks import Hook
from ssegate.gate.routes import Table, WebhookRoute, route_entry
from ssegate.gate.watched import PollRoute
from ssegate.sources.subscription import Ledger

REFUSED = 1
USAGE = 2
UNREACHABLE = 69

TIMEOUT = 10.0
"""Seconds to wait for the gate's answer."""

Fed = PollRoute | WebhookRoute


class _UsageError(SsegateError):
    """What was asked for cannot be sent. Never leaves this module."""


def register(commands: Any) -> None:
    """Add the command to argparse's sub-parsers."""
    parser = commands.add_parser(
        "send",
        help="sign a sample webhook and post it to a running gate",
        description="Make a delivery as the sender of a route's webhook would, sign it by the configuration, post it to the "
        "running gate, and tell what became of it. Without --data a body is made up that leads to the path. "
        "Exits with 1 when it is refused, and with 69 when the gate cannot be reached.",
        epilog="ssegate send /repos/ann/tea/events --event push, or ssegate send '/repos/{owner}/{repo}/events' --data @push.json",
    )
    parser.add_argument(
        "route", metavar="ROUTE", help="its path as in the file, or a path that it answers, or its `at`"
    )
    parser.add_argument("--event", metavar="KIND", default="", help="the kind of the event, where the sender says that")
    parser.add_argument("--data", metavar="TEXT|@FILE|-", help="the body: as it is, of a file, or of standard input")
    parser.add_argument(
        "--param", metavar="NAME=VALUE", type=pair, action="append", default=[], help="a parameter of the path"
    )
    parser.add_argument(
        "--header", "-H", metavar="'N: v'", type=header, action="append", default=[], help="a further header"
    )
    parser.add_argument("--id", metavar="ID", help="the delivery's id (default: a new one)")
    parser.add_argument("--to", metavar="URL", help="where the gate is (default: its `server.listen`)")
    add_config(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Send it; return the exit code. Raises `ConfigError`."""
    config = load(arguments.config)
    try:
        url, signed = _prepare(config, arguments)
    except _UsageError as error:
        complain(str(error))
        return USAGE
    _tell_request(url, signed)
    try:
        answer = post(url, signed.headers, signed.body, timeout=TIMEOUT)
    except UpstreamError as error:
        complain(f"{url}: {error}; is the gate running? --to names another place")
        return UNREACHABLE
    _tell_answer(answer)
    return 0 if answer.status < 300 else REFUSED


def _prepare(config: Config, arguments: argparse.Namespace) -> tuple[str, Signed]:
    ledger = Ledger(config.server.state_dir)
    try:
        ledger.load()
    except (OSError, ValueError) as error:
        raise _UsageError(f"server.state_dir cannot be read: {error}") from error
    table = Table(config, ledger=ledger)
    route, params = _find(table, arguments.route)
    params = {**params, **dict(arguments.param)}
    assert route.route.webhook is not None
    hook = table.hooks[route.route.webhook.at.encode()]
    if hook.record is not None and hook.record.secret and ledger.get(hook.at, hook.record.definition) is None:
        raise _UsageError(
            "the secret of this subscription is known to the running gate alone; name a `server.state_dir`, or a secret in `verify`"
        )
    headers, body = _body(arguments.data, route, params)
    given = dict([*headers, *arguments.header])
    return _url(config, hook, arguments.to), _signed(hook, body, given, arguments.event, arguments.id)


def _signed(hook: Hook, body: bytes, given: Mapping[str, str], event: str, id_: str | None) -> Signed:
    """With these headers too; of the same name the signature's win, as a sender's would."""
    try:
        signed = hook.scheme.sample(body, event=event, id_=id_ or f"send-{secrets.token_hex(8)}", wall=time.time())
    except ValueError as error:
        raise _UsageError(str(error)) from error
    own = {name.lower() for name, _ in signed.headers}
    more = [(name, value) for name, value in given.items() if name.lower() not in own]
    if not any(name.lower() == "content-type" for name, _ in more):
        more.append(("Content-Type", "application/json" if _is_json(signed.body) else "text/plain; charset=utf-8"))
    return Signed((*more, *signed.headers), signed.body)


def _find(table: Table, text: str) -> tuple[Fed, dict[str, str]]:
    """The webhook route of that path, or the one that answers it, with the parameters the path has then."""
    fed = [route for route in table.routes if isinstance(route, Fed) and route.inlet is not None]
    for route in fed:
        assert route.route.webhook is not None
        if text in (route.route.path, route.route.webhook.at):
            return route, {}
    found = Router([route_entry(route.route, route) for route in fed]).match(
        "GET", quote(text, safe="%/~:@!$&'()*+,;=").encode(), "text/event-stream"
    )
    if found is not None:
        return found.target, dict(found.params)
    if not fed:
        raise _UsageError("no route takes webhooks; `ssegate routes` shows what there is")
    known = [route.route.path for route in fed]
    hint = did_you_mean(text, known)
    raise _UsageError(
        f"no webhook route is `{text}`; {hint or 'there are ' + ', '.join(f'`{path}`' for path in known)}"
    )


def _body(data: str | None, route: Fed, params: Mapping[str, str]) -> tuple[Sequence[tuple[str, str]], bytes]:
    """The body that was asked for, or one that `match` finds these parameters in, with the headers where it looks for them."""
    if data is None:
        return _made_up(route, params)
    if data == "-":
        return (), sys.stdin.buffer.read()
    if not data.startswith("@"):
        return (), data.encode("utf-8", "surrogateescape")
    try:
        return (), Path(data[1:]).read_bytes()
    except OSError as error:
        raise _UsageError(f"--data {data}: {error.strerror or error}") from error


def _made_up(route: Fed, params: Mapping[str, str]) -> tuple[Sequence[tuple[str, str]], bytes]:
    assert route.route.webhook is not None
    body: dict[str, Any] = {}
    headers: list[tuple[str, str]] = []
    for name, expression in route.route.webhook.match.items():
        if name not in params:
            raise _UsageError(f"{route.route.path} wants --param {name}=…, or a body by --data")
        place = expression.names if isinstance(expression, Expression) else ()
        if len(place) > 1 and place[0] == "body":
            _put(body, place[1:], params[name])
        elif len(place) == 2 and place[0] == "headers":
            headers.append((place[1], params[name]))
        else:
            raise _UsageError(
                f"`match.{name}` is no plain member of the body, so none can be made up; give one by --data"
            )
    return headers, json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def _put(document: dict[str, Any], place: Sequence[str], value: str) -> None:
    for name in place[:-1]:
        document = document.setdefault(name, {})
    document[place[-1]] = value


def _url(config: Config, hook: Hook, to: str | None) -> str:
    if to is not None:
        try:
            checked_url(to)
        except ValueError as error:
            raise _UsageError(f"--to: {error}") from error
        return to if urlsplit(to).path not in ("", "/") else to.rstrip("/") + hook.at
    listen = config.server.listen
    if not listen.port:
        raise _UsageError("the gate's port is chosen by the system; say by --to where it is")
    return f"http://{from_here(listen)}{hook.at}"


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


# What is told


def _tell_request(url: str, signed: Signed) -> None:
    print(paint(printable(f"POST {masked(url)}"), "bold", sys.stdout))
    print(f"  sends  {', '.join(printable(name) for name, _ in signed.headers)} · {len(signed.body)} bytes")


def _tell_answer(answer: Posted) -> None:
    colour = "green" if answer.status < 300 else "red"
    reached = ""
    if answer.events is not None:
        reached = f" · {_counted(answer.events, 'event')}, {_counted(answer.streams or '0', 'open stream')}"
    status = paint(f"{answer.status} {answer.phrase}".rstrip(), colour, sys.stdout)
    print(f"{status}{reached} · {answer.seconds * 1000:.0f} ms")
    if answer.detail:
        print(f"  {printable(answer.detail)}")


def _counted(count: str, what: str) -> str:
    return printable(
        f"{count} {what}{'' if count == '1' else 's'}" if re.fullmatch("[0-9]+", count) else f"{count} {what}"
    )
