"""`ssegate listen`: an `EventSource` in the terminal, which reconnects and resumes."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from ssegate.cli.options import duration, header
from ssegate.cli.terminal import complain, paint, printable, say
from ssegate.core.event import Event, EventStreamDecoder
from ssegate.errors import RejectedError, UpstreamError, UpstreamUnreachableError

if TYPE_CHECKING:
    from ssegate.cli.http import Client, EventStream

RETRY = 3.0
"""Seconds before a reconnection, until the server says otherwise."""

SHORTEST_RETRY = 0.1
"""Seconds: a server that asks for none at all is not asked in a tight loop."""


def register(commands: Any) -> None:
    """Add the command to argparse's sub-parsers."""
    parser = commands.add_parser(
        "listen",
        help="an SSE client: prints events, reconnects and resumes",
        description="Print the events of an event stream as they come. It goes by the rules of a browser's EventSource: "
        "reconnects after the time the server says, with the id of the last event, and stops at 204.",
    )
    parser.add_argument("url", metavar="URL", type=_url, help="http://localhost:8080/orders/17/events")
    parser.add_argument("--last-event-id", metavar="ID", default="", help="go on behind this event")
    parser.add_argument(
        "--until", metavar="EVENT", help="leave with 0 when an event of this type came (message: unnamed)"
    )
    parser.add_argument(
        "--timeout", metavar="30s", type=duration, help="leave after this long: with 1 if --until was not met"
    )
    parser.add_argument(
        "--header", "-H", metavar="'N: v'", type=header, action="append", default=[], help="send this header too"
    )
    parser.add_argument("--insecure", "-k", action="store_true", help="take any certificate, such as a self-signed one")
    parser.add_argument("--json", action="store_true", help="one JSON object a line: id, event, data")
    parser.set_defaults(run=run)


def _url(text: str) -> str:
    from ssegate.cli.http import checked_url  # httpx costs 0.1 s, and most commands have no use for it

    try:
        return checked_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(arguments: argparse.Namespace) -> int:
    """Listen until there is a reason to stop; return the exit code."""
    return asyncio.run(_Listener(arguments).run())


class _Listener:
    """One `EventSource`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._cursor: str = arguments.last_event_id
        self._retry = RETRY
        self._trouble = ""
        """Why there is no connection; empty while there is one."""

    async def run(self) -> int:
        from ssegate.cli.http import Client

        client = Client(self._arguments.header, is_trusting=self._arguments.insecure)
        try:
            async with asyncio.timeout(self._arguments.timeout):
                return await self._live(client)
        except TimeoutError:
            return self._give_up()
        finally:
            await client.aclose()

    def _give_up(self) -> int:
        until = self._arguments.until
        if until is None:
            return 0
        complain(f"no event `{until}` in {self._arguments.timeout:g} s")
        return 1

    async def _live(self, client: Client) -> int:
        from ssegate.cli.http import UntrustedError

        while True:
            fact = "has ended"
            try:
                if (code := await self._connect(client)) is not None:
                    return code
            except UntrustedError as error:
                complain(f"{self._name}: {error}; --insecure takes any")
                return 1
            except UpstreamUnreachableError as error:
                fact = f"cannot be reached ({error})"
            except UpstreamError as error:
                fact = f"broke off ({error})"
            except RejectedError as error:
                complain(f"{self._name}: {error}")
                return 1
            self._note(fact)
            await asyncio.sleep(self._retry)

    def _note(self, fact: str) -> None:
        """Say why it waits; of an outage once."""
        if fact != self._trouble:
            self._trouble = fact
            say(paint(printable(f"{self._name} {fact}; again in {self._retry:g} s"), "dim", sys.stderr))

    async def _connect(self, client: Client) -> int | None:
        """Read one connection to its end; return the exit code, None to reconnect."""
        async with client.open(self._arguments.url, self._cursor) as stream:
            if stream.status == 204:
                return self._finish()
            if stream.status != 200 or not stream.is_event_stream:
                return await self._refuse(stream)
            self._welcome(stream)
            return await self._read(stream)

    def _finish(self) -> int:
        say(paint(f"{self._name}: 204, it is over for good", "dim", sys.stderr))
        if self._arguments.until is None:
            return 0
        complain(f"no event `{self._arguments.until}` came")
        return 1

    async def _refuse(self, stream: EventStream) -> int:
        if stream.status == 200:
            complain(f"{self._name} is {stream.content_type}, not text/event-stream: an EventSource gives up here")
            return 1
        detail = await stream.refusal()
        complain(f"{self._name}: {stream.status}{f', {detail}' if detail else ''}: an EventSource gives up here")
        return 1

    def _welcome(self, stream: EventStream) -> None:
        self._trouble = ""
        resumed = f", resumed: {stream.is_resumed}" if self._cursor and stream.is_resumed else ""
        behind = f" behind {self._cursor}" if self._cursor else ""
        say(paint(printable(f"{self._name}: connected{behind}{resumed}"), "dim", sys.stderr))

    async def _read(self, stream: EventStream) -> int | None:
        decoder = EventStreamDecoder()
        decoder.last_event_id = self._cursor
        try:
            async for piece in stream:
                if self._take(decoder, piece):
                    return 0
        except ValueError as error:
            complain(f"{self._name}: {error}")
            return 1
        return None

    def _take(self, decoder: EventStreamDecoder, piece: bytes) -> bool:
        """Print what a piece completed; return whether the awaited event was among it."""
        events = decoder.receive(piece)
        if decoder.retry_ms is not None:
            self._retry = max(decoder.retry_ms / 1000, SHORTEST_RETRY)
        for event in events:
            self._cursor = event.id or ""
            print(_as_json(event) if self._arguments.json else _as_text(event), flush=True)
            if self._arguments.until == (event.type or "message"):
                return True
        self._cursor = decoder.last_event_id
        return False

    @property
    def _name(self) -> str:
        from ssegate.cli.http import shown_url

        return shown_url(self._arguments.url)


def _as_json(event: Event) -> str:
    """As in a stream of `application/x-ndjson`: data is a value where it is JSON, else a string."""
    try:
        data = json.loads(event.data)
    except (ValueError, RecursionError):
        data = event.data
    line: dict[str, object] = {"id": event.id}
    if event.type:
        line["event"] = event.type
    text = json.dumps({**line, "data": data}, ensure_ascii=False)
    # U+2028 ends a line for some readers, and terminals obey others; in JSON each can be written as an escape.
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _as_text(event: Event) -> str:
    """The id, the type and the data; further lines of the data are indented."""
    first, *others = event.data.split("\n")
    id_ = paint(printable(event.id or "-"), "dim", sys.stdout)
    type_ = paint(printable(event.type or "message"), "cyan", sys.stdout)
    return "\n".join((f"{id_}  {type_}  {printable(first)}", *(f"    {printable(line)}" for line in others)))
