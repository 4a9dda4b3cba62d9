"""The demo's legacy API: plain REST with ETags, that changes by itself."""

from __future__ import annotations

import http.client
import json
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ssegate.demo import api
from ssegate.demo.api import STANDING, STATUSES, RefusedError, Shop

Answer = tuple[int, dict[str, str], Any]


def make_shop(seed: int = 1) -> Shop:
    return Shop(random.Random(seed))


@pytest.fixture
def server() -> Iterator[api.Api]:
    server = api.listen("127.0.0.1", 0, make_shop())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(server: api.Api) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    yield connection
    connection.close()


def ask(
    client: http.client.HTTPConnection,
    method: str,
    path: str,
    body: object = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    client.request(method, path, data, headers or {})
    response = client.getresponse()
    text = response.read()
    told = {name.lower(): value for name, value in response.getheaders()}
    return response.status, told, json.loads(text) if text else None


# REST


def test_the_list_has_every_order_and_one_order_is_the_same_entry(client: http.client.HTTPConnection) -> None:
    _, _, listed = ask(client, "GET", "/orders")
    _, _, one = ask(client, "GET", "/orders/1")
    assert set(one) == {"id", "customer", "status", "total", "updated_at"}
    assert one in listed["data"]


@pytest.mark.parametrize("path", ["/orders", "/orders/1"])
def test_an_unchanged_resource_is_304_and_a_changed_one_has_a_new_etag(
    client: http.client.HTTPConnection, path: str
) -> None:
    _, first, _ = ask(client, "GET", path)
    status, _, body = ask(client, "GET", path, headers={"If-None-Match": f'"other", W/{first["etag"]}'})
    assert (status, body) == (304, None)
    ask(client, "POST", "/orders/1/advance")
    status, second, _ = ask(client, "GET", path, headers={"If-None-Match": first["etag"]})
    assert status == 200
    assert second["etag"] != first["etag"]


def test_an_order_is_advanced_step_by_step_until_it_has_been_delivered(client: http.client.HTTPConnection) -> None:
    ask(client, "PATCH", "/orders/2", {"status": "new"})
    seen = [ask(client, "POST", "/orders/2/advance")[2]["status"] for _ in STATUSES[1:]]
    assert seen == list(STATUSES[1:])
    assert ask(client, "POST", "/orders/2/advance")[0] == 409


def test_the_standing_order_begins_anew() -> None:
    shop = make_shop()
    shop.change(STANDING, {"status": STATUSES[-1]})
    assert shop.advance(STANDING)["status"] == STATUSES[0]


def test_an_order_is_created_changed_and_deleted(client: http.client.HTTPConnection) -> None:
    status, _, made = ask(client, "POST", "/orders", {"customer": "Mary"})
    assert status == 201
    assert ask(client, "PATCH", f"/orders/{made['id']}", {"total": 12.5})[2]["total"] == 12.5
    assert ask(client, "DELETE", f"/orders/{made['id']}")[0] == 204
    assert ask(client, "GET", f"/orders/{made['id']}")[0] == 404


def test_the_list_can_be_asked_for_one_status(client: http.client.HTTPConnection) -> None:
    ask(client, "PATCH", "/orders/3", {"status": "shipped"})
    _, _, listed = ask(client, "GET", "/orders?status=shipped")
    assert {order["status"] for order in listed["data"]} == {"shipped"}


def test_a_customer_sees_their_own_orders_and_nobody_else_sees_any(client: http.client.HTTPConnection) -> None:
    ask(client, "POST", "/orders", {"customer": "Ada"})
    assert ask(client, "GET", "/me/orders")[0] == 401
    assert ask(client, "GET", "/me/orders", headers={"Authorization": "Bearer nobody"})[0] == 401
    status, _, mine = ask(client, "GET", "/me/orders", headers={"Authorization": "Bearer ada"})
    assert status == 200
    assert {order["customer"] for order in mine["data"]} == {"Ada"}


def test_head_has_the_head_of_get_and_no_body(client: http.client.HTTPConnection) -> None:
    _, by_get, _ = ask(client, "GET", "/orders/1")
    status, by_head, body = ask(client, "HEAD", "/orders/1")
    assert (status, body) == (200, None)
    assert by_head["etag"] == by_get["etag"]


def test_stats_count_what_was_served_without_themselves(client: http.client.HTTPConnection) -> None:
    _, head, _ = ask(client, "GET", "/orders")
    ask(client, "GET", "/orders", headers={"If-None-Match": head["etag"]})
    ask(client, "GET", "/stats")
    _, _, stats = ask(client, "GET", "/stats")
    assert stats == {"requests": 2, "by_status": {"200": 1, "304": 1}}


# Bad input


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"{", "not JSON"),
        (b"[" * 40_000, "not JSON"),
        (b"[]", "JSON object"),
        (b'{"price": 1}', "'price'"),
        (b'{"status": "lost"}', "status"),
        (b'{"total": -1}', "total"),
        (b'{"total": NaN}', "total"),
        (b'{"customer": ""}', "customer"),
    ],
)
def test_a_change_that_cannot_be_is_refused_whole(client: http.client.HTTPConnection, body: bytes, part: str) -> None:
    _, _, before = ask(client, "GET", "/orders/1")
    status, _, answer = ask(client, "PATCH", "/orders/1", body)
    assert status == 400
    assert part in answer["error"]
    assert ask(client, "GET", "/orders/1")[2] == before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/orders/999", 404),
        ("GET", "/nothing", 404),
        ("DELETE", "/orders", 405),
        ("GET", "/orders/1/advance", 405),
    ],
)
def test_what_is_not_there_is_said(client: http.client.HTTPConnection, method: str, path: str, status: int) -> None:
    assert ask(client, method, path)[0] == status


def test_a_body_too_large_is_refused_and_ends_the_connection(server: api.Api) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
        sock.sendall(b"PATCH /orders/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_shop_that_is_full_takes_no_order() -> None:
    shop = make_shop()
    for _ in range(api.MAX_ORDERS - len(shop.list())):
        shop.create({"customer": "Ada"})
    with pytest.raises(RefusedError, match="delete some"):
        shop.create({"customer": "Ada"})


# Life


def test_a_shop_lives_on_with_a_handful_of_orders_and_the_standing_one() -> None:
    shop = make_shop(seed=7)
    numbers, states = set(), []
    for _ in range(500):
        shop.live()
        listed = shop.list()
        numbers.update(order["id"] for order in listed)
        states.append(json.dumps(listed))
        assert api.FEWEST_ORDERS - 1 <= len(listed) <= api.MOST_ORDERS + 3
        assert any(order["id"] == STANDING for order in listed)
    assert len(numbers) > 20
    assert len(set(states)) > 400


def test_a_port_in_use_is_refused_or_the_next_is_taken(server: api.Api) -> None:
    with pytest.raises(OSError, match="in use"):
        api.listen("127.0.0.1", server.port, make_shop())
    other = api.listen("127.0.0.1", server.port, make_shop(), or_next=True)
    other.server_close()
    assert other.port != server.port


def test_the_process_says_where_it_is_and_ends_with_its_parent() -> None:
    command = [
        sys.executable,
        "-m",
        "ssegate.demo.api",
        "--port",
        "8000",
        "--or-next",
        "--with-parent",
        "--every",
        "0.05",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        first = ask(client, "GET", "/orders")[2]
        while ask(client, "GET", "/orders")[2] == first:  # it changes by itself
            pass
        client.close()
        process.stdin.close()
        assert process.wait(5) == 0


def test_the_process_says_when_its_port_is_in_use(server: api.Api) -> None:
    command = [sys.executable, "-m", "ssegate.demo.api", "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{server.port}" in done.stderr
    assert "--port" in done.stderr
