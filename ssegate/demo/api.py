"""A small legacy API that knows nothing of events: orders over plain REST, with ETags, that also change by themselves.

`python -m ssegate.demo.api` runs it. It needs the standard library only, and stands for whatever API you have.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

STATUSES = ("new", "paid", "packed", "shipped", "delivered")
"""The way of an order."""

MAX_BODY = 64 * 1024
MAX_ORDERS = 200
FEWEST_ORDERS = 6
MOST_ORDERS = 9
"""Between these the shop keeps itself."""

PORTS_TRIED = 20

STANDING = 1
"""This order never ends: delivered, it begins anew. So `/orders/1` is always there to be tried."""

_CUSTOMERS = (
    "Ada",
    "Grace",
    "Edsger",
    "Barbara",
    "Donald",
    "Hedy",
    "Alan",
    "Radia",
    "Dennis",
    "Frances",
    "Ken",
    "Joan",
)
_ORDER = re.compile(r"/orders/([0-9]{1,9})")
_ADVANCE = re.compile(r"/orders/([0-9]{1,9})/advance")

Order = dict[str, Any]


class RefusedError(Exception):
    """The request cannot be done; carries the status to answer."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Shop:
    """The orders, and what happens to them. Safe to use from several threads."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._lock = threading.RLock()
        self._orders: dict[int, Order] = {}
        self._last_id = 0
        for status in ("paid", "new", "packed", "shipped", "new", "paid", "delivered"):
            self.create({"customer": self._pick_customer(), "total": self._pick_price() * 3})
            self._orders[self._last_id]["status"] = status

    def list(self, status: str | None = None, customer: str | None = None) -> list[Order]:
        """Copies of the orders, those of one status or customer if asked."""
        with self._lock:
            return [
                dict(order)
                for order in self._orders.values()
                if status in (None, order["status"]) and customer in (None, order["customer"].lower())
            ]

    def get(self, number: int) -> Order:
        """A copy of one order. Raises `RefusedError` 404."""
        with self._lock:
            return dict(self._find(number))

    def create(self, fields: object) -> Order:
        """Take a new order. Raises `RefusedError`."""
        with self._lock:
            if len(self._orders) >= MAX_ORDERS:
                raise RefusedError(HTTPStatus.CONFLICT, f"there are {MAX_ORDERS} orders already; delete some")
            self._last_id += 1
            order: Order = {
                "id": self._last_id,
                "customer": "Ada",
                "status": STATUSES[0],
                "total": 0.0,
                "updated_at": "",
            }
            _update(order, fields)
            self._orders[self._last_id] = order
            return dict(order)

    def change(self, number: int, fields: object) -> Order:
        """Set `customer`, `status` or `total` of an order. Raises `RefusedError`, and then nothing has changed."""
        with self._lock:
            order = self._find(number)
            _update(order, fields)
            return dict(order)

    def delete(self, number: int) -> None:
        """Take an order away. Raises `RefusedError` 404."""
        with self._lock:
            del self._orders[self._find(number)["id"]]

    def advance(self, number: int) -> Order:
        """Lead an order one step on its way. Raises `RefusedError` 409 when it has been delivered."""
        with self._lock:
            order = self._find(number)
            step = STATUSES.index(order["status"]) + 1
            if step == len(STATUSES):
                if number != STANDING:
                    raise RefusedError(HTTPStatus.CONFLICT, f"order {number} has been delivered already")
                step = 0
            return self.change(number, {"status": STATUSES[step]})

    def live(self) -> None:
        """Let something happen, as in any shop."""
        with self._lock:
            delivered = [o["id"] for o in self._orders.values() if o["status"] == STATUSES[-1] and o["id"] != STANDING]
            if len(self._orders) > MOST_ORDERS and delivered:
                self.delete(delivered[0])
            elif len(self._orders) < FEWEST_ORDERS or self._chance.random() < 0.2:
                self._sell(delivered)
            else:
                self._move_on(delivered)

    def _sell(self, delivered: Sequence[int]) -> None:
        """A new order comes; while there are many, one that has been delivered is filed away instead."""
        if len(self._orders) >= MOST_ORDERS and delivered:
            self.delete(delivered[0])
        elif len(self._orders) < MAX_ORDERS:
            self.create({"customer": self._pick_customer(), "total": self._pick_price()})

    def _move_on(self, delivered: Sequence[int]) -> None:
        open_orders = [number for number in self._orders if number not in delivered]
        if not open_orders:
            return
        number = self._chance.choice(open_orders)
        if self._chance.random() < 0.25:
            self.change(number, {"total": self._orders[number]["total"] + self._pick_price()})
        else:
            self.advance(number)

    def _find(self, number: int) -> Order:
        order = self._orders.get(number)
        if order is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no order {number}")
        return order

    def _pick_customer(self) -> str:
        return self._chance.choice(_CUSTOMERS)

    def _pick_price(self) -> float:
        return self._chance.randint(5, 80) + self._chance.choice((0.0, 0.5, 0.9))


def _update(order: Order, fields: object) -> None:
    """Check all, then set all."""
    if not isinstance(fields, dict) or not fields:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "send a JSON object with customer, status or total")
    for name, value in fields.items():
        is_good = _IS_GOOD.get(name)
        if is_good is None:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST, f"an order has no {name!r} to set; it has customer, status and total"
            )
        if not is_good(value):
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{name} cannot be {json.dumps(value)[:60]}")
    order.update(fields)
    order["total"] = round(float(order["total"]), 2)
    order["updated_at"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_IS_GOOD: dict[str, Callable[[Any], bool]] = {
    "customer": lambda value: isinstance(value, str) and 0 < len(value) <= 80 and value.isprintable(),
    "status": lambda value: value in STATUSES,
    "total": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9,
}


class Api(ThreadingHTTPServer):
    """Serves a shop."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], shop: Shop) -> None:
        """Raises `OSError` when the address cannot be listened on."""
        super().__init__(address, _Handler)
        self.shop = shop
        self._lock = threading.Lock()
        self._served: Counter[int] = Counter()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def count(self, status: int) -> None:
        """A request has been served."""
        with self._lock:
            self._served[status] += 1

    def statistics(self) -> dict[str, object]:
        """How many requests have been served, apart from those for these figures."""
        with self._lock:
            by_status = {str(status): count for status, count in sorted(self._served.items())}
        return {"requests": sum(by_status.values()), "by_status": by_status}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left in mid-answer is no event; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Api
    protocol_version = "HTTP/1.1"
    server_version = "legacy-orders/1.0"
    wbufsize = -1  # head and body leave together; apart they wait for each other's acknowledgement
    timeout = 120  # an idle connection

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815  (the names are http.server's)

    def _serve(self) -> None:
        url = urlsplit(self.path)
        try:
            status, document = self._answer(url.path, parse_qs(url.query))
        except RefusedError as error:
            status, document = error.status, {"error": str(error)}
        self._send(status, document, is_counted=url.path != "/stats")

    def _answer(self, path: str, query: dict[str, list[str]]) -> tuple[HTTPStatus, object]:
        body = self._read_body()
        method = "GET" if self.command == "HEAD" else self.command
        shop = self.server.shop
        if found := _ADVANCE.fullmatch(path):
            number = int(found[1])
            return self._only(method, POST=lambda: shop.advance(number))
        if found := _ORDER.fullmatch(path):
            number = int(found[1])
            return self._only(
                method,
                GET=lambda: shop.get(number),
                PATCH=lambda: shop.change(number, _decode(body)),
                DELETE=lambda: shop.delete(number),
            )
        match path:
            case "/orders":
                status = query.get("status", [None])[-1]
                return self._only(
                    method, GET=lambda: {"data": shop.list(status)}, POST=lambda: shop.create(_decode(body))
                )
            case "/me/orders":
                return self._only(method, GET=lambda: {"data": shop.list(customer=self._customer())})
            case "/stats":
                return self._only(method, GET=self.server.statistics)
            case "/":
                return self._only(method, GET=lambda: {"orders": "/orders", "stats": "/stats"})
        raise RefusedError(HTTPStatus.NOT_FOUND, "here are /orders, /orders/{id}, /me/orders and /stats")

    def _only(self, method: str, **actions: Callable[[], object]) -> tuple[HTTPStatus, object]:
        action = actions.get(method)
        if action is None:
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not served here")
        document = action()
        if document is None:
            return HTTPStatus.NO_CONTENT, None
        return HTTPStatus.CREATED if self.path == "/orders" and method == "POST" else HTTPStatus.OK, document

    def _customer(self) -> str:
        """Who asks: a token is simply the customer's name."""
        scheme, _, name = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or name.strip().lower() not in map(str.lower, _CUSTOMERS):
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "send Authorization: Bearer ada, or another customer's name")
        return name.strip().lower()

    def _read_body(self) -> bytes:
        """Read the body whole. What cannot be read ends the connection, since what follows it cannot be found."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            self.close_connection = True
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "send a Content-Length")
        if int(length[:20]) > MAX_BODY:
            self.close_connection = True
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {MAX_BODY} bytes")
        return self.rfile.read(int(length))

    def _send(self, status: HTTPStatus, document: object, *, is_counted: bool) -> None:
        body = b"" if document is None else json.dumps(document, ensure_ascii=False).encode()
        tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        if status == HTTPStatus.OK and self.command in ("GET", "HEAD") and self._has(tag):
            status, body = HTTPStatus.NOT_MODIFIED, b""
        self.send_response(status)
        if status in (HTTPStatus.OK, HTTPStatus.NOT_MODIFIED) and self.command in ("GET", "HEAD"):
            self.send_header("ETag", tag)
            self.send_header("Cache-Control", "no-cache")
        if status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if is_counted:
            self.server.count(status)

    def _has(self, tag: str) -> bool:
        """RFC 9110, 13.1.2: the comparison is weak."""
        known = (each.strip().removeprefix("W/") for each in self.headers.get("If-None-Match", "").split(","))
        return any(each in (tag, "*") for each in known)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name is http.server's)
        """Nothing: a poll a second would fill the terminal."""


def _decode(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None


def listen(host: str, port: int, shop: Shop, *, or_next: bool = False) -> Api:
    """Listen on the port, or with `or_next` on one of the next that is free. Raises `OSError` when that cannot be."""
    for attempt in range(PORTS_TRIED):
        try:
            return Api((host, port + attempt), shop)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not or_next:
                raise
    return Api((host, 0), shop)


def _live_on(shop: Shop, seconds: float, chance: random.Random) -> None:
    """Let something happen every few seconds, until the process ends."""
    pause = threading.Event()
    while not pause.wait(seconds * chance.uniform(0.5, 1.5)):
        shop.live()


def _end_with_parent(api: Api) -> None:
    """Wait for standard input to end, which it does when the parent ends, however it ends."""
    while sys.stdin.buffer.read(1):
        pass
    api.shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the API until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m ssegate.demo.api", description="A legacy API to try ssegate with.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--or-next", action="store_true", help="take one of the next ports where this one is in use")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between changes, about; 0: none")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input ends")
    arguments = parser.parse_args(argv)
    shop = Shop(random.Random())
    try:
        api = listen(arguments.host, arguments.port, shop, or_next=arguments.or_next)
    except (OSError, OverflowError) as error:
        print(f"cannot listen on {arguments.host}:{arguments.port}: {error}; name another --port", file=sys.stderr)
        return 1
    print(f"http://{arguments.host}:{api.port}", flush=True)
    if arguments.every > 0:
        threading.Thread(target=_live_on, args=(shop, arguments.every, random.Random()), daemon=True).start()
    if arguments.with_parent:
        threading.Thread(target=_end_with_parent, args=(api,), daemon=True).start()
    try:
        api.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        api.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
