"""Subscriptions at WebSub hubs: found, asked for, confirmed, renewed, remembered and taken back (WIRE.md, "WebSub subscriber")."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ssegate.core.lease import Standing
from ssegate.errors import ConfigError
from ssegate.sources.subscription import Status, keeper
from tests.e2e.client import PATIENCE, Reply
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, GateProcess, RunningGate, free_port, make_config, running_gate, said, story
from tests.e2e.hub import (
    Hub,
    Wish,
    denies_after,
    denies_before,
    never_calls,
    page,
    refuses,
    topic_page,
    verifies_before,
)
from tests.upstream.scripted import Pair, answer

EDGE = Edge("native-h1", "1.1")
"""Where what is tested has nothing to do with the edge."""


def route(
    topic: str, port: int, *, name: str = "feed", scheme: str = "http", lease: str = "10m", more: str = ""
) -> str:
    """A route whose events a hub delivers. `more` has further keys of `subscribe` in flow style, with a comma before them."""
    return f"""
- path: /{name}/events
  webhook:
    at: /hooks/{name}
    callback: {scheme}://127.0.0.1:{port}/hooks/{name}
    subscribe: {{websub: {{topic: "{topic}", lease: {lease}}}{more}}}
"""


def gate_of(*routes: str, port: int, edge: Edge = EDGE, server: str = "") -> Any:
    """A gate with these routes."""
    return running_gate(edge, text_of(*routes), port=port, server=server)


def text_of(*routes: str) -> str:
    return "routes:" + ("".join(routes) or " []\n")


async def reload(gate: RunningGate, *routes: str, server: str = "") -> None:
    """Go over to these routes."""
    text = gate.edge.yaml(gate.port, text_of(*routes), server=server)
    await gate.service.reload(lambda: make_config(text))


def status_of(gate: RunningGate, name: str = "feed") -> Status:
    """How the subscription of a route stands."""
    return next(each for each in gate.service.gate.subscriptions.statuses() if each.path == f"/hooks/{name}")


async def until_status(gate: RunningGate, fact: Callable[[Status], bool], name: str = "feed") -> Status:
    """Wait until its status is so."""
    async with asyncio.timeout(PATIENCE):
        while not fact(status_of(gate, name)):
            await asyncio.sleep(0.01)  # figures tell nobody when they change
    return status_of(gate, name)


def is_active(status: Status) -> bool:
    return status.standing is Standing.ACTIVE


def has_failed(status: Status) -> bool:
    return status.failures > 0


async def ask_callback(gate: RunningGate, callback: str, query: str, method: str = "GET") -> Reply:
    """What a hub would be told."""
    return await gate.ask(method, f"{urlsplit(callback).path}?{query}")


@asynccontextmanager
async def subscribed(
    *, lease: str = "10m", more: str = "", server: str = ""
) -> AsyncIterator[tuple[Hub, RunningGate, Wish]]:
    """A hub, a gate, and a subscription that holds."""
    async with (
        Hub() as hub,
        gate_of(route(hub.topic(), port := free_port(), lease=lease, more=more), port=port, server=server) as gate,
    ):
        kept = await hub.until_subscribed()
        yield hub, gate, kept.wish


# Asked for at the start


@story
async def test_what_a_hub_is_asked_for_at_the_start_reaches_a_stream(edge: Edge) -> None:
    port, scheme = free_port(), "https" if edge.tls else "http"
    async with Hub() as hub, gate_of(route(hub.topic(), port, scheme=scheme), port=port, edge=edge) as gate:
        await hub.until_subscribed(hub.topic())
        async with gate.watch("/feed/events") as viewer:
            await viewer.opening()
            body = b'{"n":  1, "x": "\xc3\xa9"}'
            (reply,) = await hub.publish(hub.topic(), body)
            assert 200 <= reply.status < 300
            event = await viewer.event()
            assert (event.data, event.type, (event.id or "")[-2:]) == (body.decode(), "", "-1")


@story
async def test_each_subscription_has_a_callback_nobody_can_guess_and_a_secret_of_its_own() -> None:
    port = free_port()
    async with Hub() as hub:
        routes = [route(hub.topic(name), port, name=name, lease="2h") for name in ("one", "two")]
        async with gate_of(*routes, port=port):
            await hub.until_subscribed(count=2)
        wishes = hub.wishes
        assert len(wishes) == 2
        for name, wish in zip(("one", "two"), sorted(wishes, key=lambda each: each.topic), strict=True):
            below, _, token = wish.callback.rpartition("/")
            assert below == f"http://127.0.0.1:{port}/hooks/{name}"
            assert len(token) >= 22, "at least 128 bits"
            assert 22 <= len(wish.secret.encode()) < 200
            assert wish.lease == 7200
            assert wish.secret not in wish.callback
        assert len({wish.callback.rpartition("/")[2] for wish in wishes} | {wish.secret for wish in wishes}) == 4


@story
async def test_a_secret_of_the_configuration_is_the_one_the_hub_gets() -> None:
    port = free_port()
    async with Hub() as hub:
        text = route(hub.topic(), port) + "    verify: {websub: {secret: [new, old]}}\n"
        async with gate_of(text, port=port) as gate:
            kept = await hub.until_subscribed()
            assert kept.wish.secret == "new"
            async with gate.watch("/feed/events") as viewer:
                await hub.publish(hub.topic(), b"1")
                assert (await viewer.event()).data == "1"


@story
async def test_the_word_of_a_hub_lets_a_poll_beside_it_ask_at_once() -> None:
    port = free_port()
    async with LegacyApi() as api, Hub() as hub:
        api.put("/x", {"n": 1})
        text = f"upstreams: {{api: {api.url}}}\n" + text_of(
            route(hub.topic(), port) + "    then: poll\n  poll: {get: /x, every: 1h}\n"
        )
        async with running_gate(EDGE, text, port=port) as gate, gate.watch("/feed/events") as viewer:
            assert said((await viewer.event()).data) == {"n": 1}
            await hub.until_subscribed()
            api.put("/x", {"n": 2})
            await hub.publish(hub.topic(), b"changed", kind="text/plain")
            assert said((await viewer.event()).data) == {"n": 2}


# Deliveries


@story
async def test_each_algorithm_of_the_recommendation_is_taken_and_what_is_signed_wrongly_is_dropped_in_silence() -> None:
    async with subscribed() as (hub, gate, wish), gate.watch("/feed/events") as viewer:
        await viewer.opening()
        good = "sha256=" + "0" * 64
        for signature in (good, "", "sha256=", "md5=00", "sha1=" + "0" * 40, "=", wish.secret):
            (reply,) = await hub.publish(hub.topic(), b'"forged"', signature=signature)
            assert 200 <= reply.status < 300
        assert gate.service.gate.statistics().events == 0
        for algorithm in ("sha1", "sha256", "sha384", "sha512"):
            await hub.publish(hub.topic(), json.dumps(algorithm).encode(), algorithm=algorithm)
            assert said((await viewer.event()).data) == algorithm


@story
async def test_content_of_any_type_is_an_event_as_it_came() -> None:
    atom = b'<?xml version="1.0"?>\n<feed xmlns="http://www.w3.org/2005/Atom"/>'
    async with subscribed() as (hub, gate, _), gate.watch("/feed/events") as viewer:
        await hub.publish(hub.topic(), atom, kind="application/atom+xml")
        assert (await viewer.event()).data == atom.decode()


# Calls of the hub


@story
async def test_a_challenge_is_answered_with_itself_as_plain_text() -> None:
    async with Hub() as hub, gate_of(route(hub.topic(), port := free_port()), port=port):
        hub.usually(never_calls)
        wish = await hub.until_asked_to("subscribe")
        reply = await hub.verify(wish, challenge="<script>a+b&c=\u00e9 %41")
        assert (reply.status, reply.body.decode()) == (200, "<script>a+b&c=\u00e9 %41")
        assert (reply.get("content-type") or "").startswith("text/plain")
        assert reply.get("x-content-type-options") == "nosniff"


@story
async def test_a_hub_that_asks_for_what_nobody_wants_is_told_404() -> None:
    async with subscribed() as (hub, gate, wish):
        asked = f"hub.mode=subscribe&hub.challenge=c&hub.lease_seconds=60&hub.topic={hub.topic()}"
        wrong = wish.callback[:-1] + ("x" if wish.callback[-1] != "x" else "y")
        for callback, query in (
            (wish.callback, asked),  # it has been asked for once, and confirmed once
            (wish.callback, asked.replace("topics/feed", "topics/other")),
            (wish.callback, asked.replace("=subscribe", "=unsubscribe")),
            (wish.callback, asked.replace("=subscribe", "=publish")),
            (wish.callback, asked.replace("&hub.challenge=c", "")),
            (wish.callback, asked.replace("hub.mode=subscribe&", "")),
            (wish.callback, ""),
            (wrong, asked),
            (wish.callback + "/more", asked),
        ):
            reply = await ask_callback(gate, callback, query)
            assert reply.status == 404, (callback, query)
            assert reply.body != b"c"
        assert is_active(status_of(gate))


@story
async def test_a_pending_subscription_is_confirmed_for_its_own_topic_and_callback_only() -> None:
    async with Hub() as hub, gate_of(route(hub.topic(), port := free_port()), port=port) as gate:
        hub.usually(never_calls)
        wish = await hub.until_asked_to("subscribe")
        assert (await hub.verify(wish, topic=hub.topic("other"))).status == 404
        asked = f"hub.mode=subscribe&hub.challenge=c&hub.topic={hub.topic()}"
        assert (await gate.ask("GET", f"/hooks/feed?{asked}")).status in (404, 405), "not without the token"
        assert (await gate.ask("GET", f"/hooks/feed/?{asked}")).status == 404
        assert status_of(gate).standing is Standing.ASKING
        assert (await hub.verify(wish)).status == 200
        assert is_active(status_of(gate))


@story
async def test_what_is_posted_to_an_unknown_callback_is_410() -> None:
    async with subscribed() as (hub, gate, wish), gate.watch("/feed/events") as viewer:
        known = urlsplit(wish.callback).path
        for path in ("/hooks/feed/" + "x" * 24, known[:-1] + ("a" if known[-1] != "a" else "b")):
            assert (await gate.ask("POST", path, body=b"1")).status == 410
        for path in ("/hooks/feed/guess", "/hooks/feed/", known + "x"):
            assert (await gate.ask("POST", path, body=b"1")).status == 404, "no route has it, and no hub was given it"
        await hub.publish(hub.topic(), b"2")
        assert (await viewer.event()).data == "2"


@story
async def test_a_challenge_that_is_asked_again_is_answered_again() -> None:
    async with Hub() as hub, gate_of(route(hub.topic(), port := free_port()), port=port):
        hub.usually(never_calls)
        wish = await hub.until_asked_to("subscribe")
        for _ in range(3):
            assert (await hub.verify(wish, challenge="the same")).body == b"the same"
        assert (await hub.verify(wish, challenge="another")).status == 404


@story
async def test_a_hub_may_call_before_it_answers() -> None:
    async with Hub() as hub:
        hub.usually(verifies_before)
        async with gate_of(route(hub.topic(), port := free_port()), port=port) as gate:
            await hub.until_subscribed()
            assert is_active(await until_status(gate, is_active))
            assert 500 < (status_of(gate).seconds or 0) <= 600


@story
async def test_a_hub_that_answers_and_never_calls_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "CONFIRMATION", 0.3)
    async with Hub() as hub:
        hub.plan(hub.topic(), never_calls)
        async with gate_of(route(hub.topic(), port := free_port()), port=port) as gate:
            await hub.until_subscribed()
            first, second = hub.wishes
            assert (first.callback, first.secret, first.topic) == (second.callback, second.secret, second.topic)
            assert second.at - first.at >= 0.29
            assert is_active(status_of(gate))


# Renewed


@story
async def test_a_subscription_is_renewed_before_the_lease_the_hub_has_granted_ends() -> None:
    async with Hub() as hub:
        hub.lease = 3
        async with gate_of(route(hub.topic(), port := free_port(), lease="1h"), port=port) as gate:
            kept = await hub.until_subscribed()
            assert 2 < (status_of(gate).seconds or 0) <= 3
            second = await hub.until_asked_to("subscribe", 2)
            assert second.at < kept.until, "before it ends"
            assert second.at > kept.until - 3 * 0.5, "not long before"
            assert (second.callback, second.secret, second.topic) == (
                kept.wish.callback,
                kept.wish.secret,
                kept.wish.topic,
            )
            reply = await hub.until_called("subscribe", 2)
            assert reply.status == 200
            assert status_of(gate).failures == 0
            assert len(hub.subscriptions) == 1
            assert 2 < (status_of(gate).seconds or 0) <= 3


# Hubs in trouble


@story
async def test_a_gate_whose_hub_is_down_starts_serves_and_subscribes_later(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hub_port, port = free_port(), free_port()
    text = route(f"http://127.0.0.1:{hub_port}/topics/feed", port)
    async with gate_of(text, port=port) as gate, gate.watch("/feed/events") as viewer:
        await viewer.opening()
        status = await until_status(gate, has_failed)
        assert status.standing is Standing.FAILING
        assert "refused" in status.trouble
        async with Hub(hub_port) as hub:
            await hub.until_subscribed()
            await hub.publish(hub.topic(), b"1")
            assert (await viewer.event()).data == "1"
            assert status_of(gate).trouble == ""
        told = [each for each in caplog.records if "subscription of /hooks/feed" in each.getMessage()]
        assert [each.levelname for each in told] == ["WARNING", "INFO"], "once when it fails, once when it works"


@story
async def test_what_a_hub_refuses_is_shown_and_asked_for_again_when_it_says() -> None:
    port, names = free_port(), ("400", "404", "410", "500")
    async with Hub() as hub:
        routes = [route(hub.topic(name), port, name=name) for name in (*names, "503")]
        for name in names:
            hub.plan(hub.topic(name), refuses(int(name)))
        hub.plan(hub.topic("503"), refuses(503, (b"Retry-After", b"2")))
        async with gate_of(*routes, port=port) as gate:

            async def until_subscribed(name: str) -> None:
                status = await until_status(gate, has_failed, name)
                assert status.standing is Standing.FAILING
                assert f"{name}: not this one" in status.trouble
                await hub.until_subscribed(hub.topic(name))
                first, second = hub.asked_to("subscribe", hub.topic(name))
                least, most = (1.99, 3.0) if name == "503" else (0.49, 2.0)
                assert least <= second.at - first.at < most, name
                assert first.callback == second.callback
                status = status_of(gate, name)
                assert (is_active(status), status.failures, status.trouble) == (True, 1, "")

            await asyncio.gather(*(until_subscribed(name) for name in (*names, "503")))


@pytest.mark.parametrize("plan", [denies_after, denies_before])
@story
async def test_a_denial_is_shown_and_it_is_asked_again(plan: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with Hub() as hub:
        hub.plan(hub.topic(), plan)
        async with gate_of(route(hub.topic(), port := free_port()), port=port) as gate:
            reply = await hub.until_called("denied")
            assert 200 <= reply.status < 300
            status = status_of(gate)
            assert status.standing is Standing.FAILING
            assert "denies" in status.trouble
            assert ("you are not on the list" in status.trouble) == (plan is denies_after)
            await hub.until_subscribed()
            status = status_of(gate)
            assert (is_active(status), status.failures, status.trouble) == (True, 1, "")
    assert sum("denies" in each.getMessage() for each in caplog.records) == 1


@story
async def test_a_hub_may_deny_at_any_time_what_it_has_granted() -> None:
    async with subscribed() as (hub, gate, wish):
        assert (await hub.deny(wish, "gone\nover")).status == 200
        assert status_of(gate).standing is Standing.FAILING
        assert "\n" not in status_of(gate).trouble
        await hub.until_subscribed()
        assert is_active(status_of(gate))


@story
async def test_who_does_not_know_the_topic_cannot_deny_it() -> None:
    async with subscribed() as (hub, gate, wish):
        reply = await ask_callback(gate, wish.callback, f"hub.mode=denied&hub.topic={hub.topic('other')}")
        assert reply.status == 404
        assert is_active(status_of(gate))


@story
async def test_another_hub_of_the_topic_is_asked_when_the_first_refuses() -> None:
    async with Hub() as bad, Hub() as good:
        bad.usually(refuses(500))
        links = f'<{bad.url}/hub>; rel="hub", <{good.url}/hub>; rel=hub, <{good.topic("two")}>; rel="self"'
        good.serve("/topics/feed", answer(b"{}", (b"Link", links.encode())))
        async with gate_of(route(good.topic(), port := free_port()), port=port):
            await good.until_subscribed(good.topic("two"))
            assert len(bad.wishes) == 1


@story
async def test_a_topic_that_moves_is_subscribed_where_it_is_now_and_not_where_it_was() -> None:
    async with Hub() as hub:
        hub.lease = 1

        def moved_to(name: str) -> bytes:
            links = f'<{hub.url}/hub>; rel="hub", <{hub.topic(name)}>; rel="self"'
            return answer(b"{}", (b"Link", links.encode()))

        hub.serve("/topics/feed", moved_to("old"))
        async with gate_of(route(hub.topic(), port := free_port()), port=port) as gate:
            await hub.until_subscribed(hub.topic("old"))
            hub.serve("/topics/feed", moved_to("new"))
            await hub.until_subscribed(hub.topic("new"))
            await hub.until_called("unsubscribe")
            assert hub.callbacks(hub.topic("old")) == []
            assert len(hub.callbacks(hub.topic("new"))) == 1
            await gate.service.drain()
        assert not hub.subscriptions


# Where the hub is found

BY_HEADER = {
    "one field": [b'<{0}/hub>; rel="hub", <{0}/own>; rel="self"'],
    "two fields": [b'<{0}/own>; rel="self"', b'<{0}/hub>; rel="hub"'],
    "bare": [b"<{0}/hub>;rel=hub,<{0}/own>;rel=self"],
    "any case": [b'<{0}/hub>; REL="HUB"', b"<{0}/own>; Rel=Self"],
    "relative": [b'</hub>; rel="hub", <../own>; rel="self"'],
    "with more": [
        b'<{0}/x>; rel="next", <{0}/hub>; title="a, <b>"; rel="x hub"; type="y", <{0}/own>; hreflang=en; rel="self"'
    ],
    "quoted": [b'<{0}/hub>; title="not; rel=self"; rel="hub", <{0}/own>; rel="self"'],
    "both relations": [b'<{0}/hub>; rel="hub"; foo, <{0}/own>; rel="alternate self"'],
}


@pytest.mark.parametrize("fields", BY_HEADER.values(), ids=BY_HEADER)
@story
async def test_the_hub_and_the_topics_own_url_are_found_in_link_headers(fields: list[bytes]) -> None:
    async with Hub() as hub:
        links: list[Pair] = [(b"Link", field.replace(b"{0}", hub.url.encode())) for field in fields]
        misleading = '<link rel="hub" href="/nowhere"/>'
        hub.serve("/topics/feed", page(misleading, "text/html", *links))
        async with gate_of(route(hub.topic() + "?a=1&b=%20", port := free_port()), port=port):
            kept = await hub.until_subscribed()
            assert (kept.wish.topic, kept.wish.target) == (f"{hub.url}/own", "/hub")
        assert hub.requests[0].target == "/topics/feed?a=1&b=%20"


BY_BODY = {
    "Atom": (
        "application/atom+xml; charset=utf-8",
        '<?xml version="1.0"?><feed xmlns="http://www.w3.org/2005/Atom"><link href="{0}/hub" rel="hub"/>'
        '<link rel="self" type="application/atom+xml" href="{0}/own"/><link href="http://example.com/"/><entry/></feed>',
    ),
    "Atom with a prefix": (
        "application/xml",
        '<a:feed xmlns:a="http://www.w3.org/2005/Atom"><a:link rel="self" href="{0}/own"/><a:link rel="hub" href="{0}/hub"/></a:feed>',
    ),
    "RSS": (
        "application/rss+xml",
        '<rss xmlns:atom="http://www.w3.org/2005/Atom"><channel><link>http://example.com/</link>'
        '<atom:link rel="hub" href="{0}/hub" /><atom:link rel="self" href="{0}/own"></atom:link></channel></rss>',
    ),
    "RSS as text/xml": (
        "text/xml",
        '<rss><atom:link rel="hub" href="{0}/hub"/><atom:link rel="self" href="{0}/own"/></rss>',
    ),
    "HTML": (
        "text/html",
        '<!doctype html><html><head><title>x</title><LINK REL=\'Hub\' HREF=/hub><link rel="self" href="/own">'
        '<link rel="stylesheet" href="/style.css"></head><body><p>no <b>end',
    ),
    "HTML with a reference": ("text/html", '<link rel=hub href="{0}/hub?a=1&amp;b=2"><link rel=self href="{0}/own">'),
    "XHTML": (
        "application/xhtml+xml",
        '<html><head><link rel="hub" href="{0}/hub"/><link rel="self" href="{0}/own"/></head></html>',
    ),
}


@pytest.mark.parametrize(("kind", "body"), BY_BODY.values(), ids=BY_BODY)
@story
async def test_the_hub_is_found_in_the_body_of_a_feed_or_a_page(kind: str, body: str) -> None:
    async with Hub() as hub:
        hub.serve("/topics/feed", page(body.replace("{0}", hub.url), kind))
        async with gate_of(route(hub.topic(), port := free_port()), port=port):
            kept = await hub.until_subscribed()
            assert kept.wish.topic == f"{hub.url}/own"
            assert kept.wish.target == ("/hub?a=1&b=2" if "a=1" in body else "/hub")


@story
async def test_a_topic_that_names_no_url_of_its_own_is_the_one_it_was_found_at() -> None:
    async with Hub() as hub:
        hub.serve("/topics/feed", answer(b"{}", (b"Link", b'</hub>; rel="hub"')))
        async with gate_of(route(hub.topic(), port := free_port()), port=port):
            await hub.until_subscribed(hub.topic())


HUBLESS = {
    "JSON": (answer(b"{}", (b"Content-Type", b"application/json")), "it names no hub"),
    "text": (answer(b'<link rel="hub" href="/hub">', (b"Content-Type", b"text/plain")), "it names no hub"),
    "another scheme": (answer(b"", (b"Link", b'<ftp://127.0.0.1/hub>; rel="hub"')), "it names no hub"),
    "with a password": (answer(b"", (b"Link", b"<http://user:pw@127.0.0.1/hub>; rel=hub")), "no URL"),
    "404": (answer(b"no", status=404), "404: no"),
    "a circle": (answer(b"", (b"Location", b"/topics/feed"), status=302), "redirects"),
    "no HTTP": (b"nonsense\r\n\r\n", "topics"),
}


@pytest.mark.parametrize(("served", "says"), HUBLESS.values(), ids=HUBLESS)
@story
async def test_a_topic_without_a_hub_is_told_and_asked_again(served: bytes, says: str) -> None:
    async with Hub() as hub:
        hub.serve("/topics/feed", served)
        async with gate_of(route(hub.topic() + "?key=hidden", port := free_port()), port=port) as gate:
            status = await until_status(gate, has_failed)
            assert says in status.trouble
            assert "hidden" not in status.trouble
            assert "pw" not in status.trouble
            hub.serve("/topics/feed", topic_page)
            await hub.until_subscribed(hub.topic())


# Redirects


@pytest.mark.parametrize("status", [307, 308])
@story
async def test_a_hub_that_has_moved_is_followed_with_all_that_was_said(status: int) -> None:
    async with Hub() as old, Hub() as new:
        old.serve("/hub", answer(b"", (b"Location", f"{new.url}/hub".encode()), status=status))
        async with gate_of(route(old.topic(), port := free_port()), port=port) as gate:
            kept = await new.until_subscribed(old.topic())
            assert kept.wish.secret
            assert not old.wishes
            await gate.service.drain()
            await new.until_empty()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@story
async def test_a_topic_that_has_moved_is_followed_and_links_are_relative_to_where_it_is(status: int) -> None:
    async with Hub() as old, Hub() as new:
        old.serve("/topics/feed", answer(b"", (b"Location", f"{new.url}/a/b".encode()), status=status))
        new.serve("/a/b", answer(b"", (b"Link", b"<../hub>; rel=hub, <c>; rel=self")))
        async with gate_of(route(old.topic(), port := free_port()), port=port):
            await new.until_subscribed(f"{new.url}/a/c")


@pytest.mark.parametrize("status", [301, 302, 303])
@story
async def test_a_hub_that_would_make_a_get_of_it_is_not_followed(status: int) -> None:
    async with Hub() as hub:
        hub.plan(hub.topic(), refuses(status, (b"Location", f"{hub.url}/elsewhere".encode())))
        async with gate_of(route(hub.topic(), port := free_port()), port=port) as gate:
            assert str(status) in (await until_status(gate, has_failed)).trouble
            await hub.until_subscribed()
        assert not [asked for asked in hub.requests if asked.target == "/elsewhere"]


# Taken back


@story
async def test_a_gate_that_goes_down_unsubscribes_and_confirms_that_it_is_meant() -> None:
    async with subscribed() as (hub, gate, wish):
        draining = asyncio.create_task(gate.service.drain())
        assert (await hub.until_called("unsubscribe")).status == 200
        await draining
        (parting,) = hub.asked_to("unsubscribe")
        assert (parting.topic, parting.callback) == (wish.topic, wish.callback)
        assert not hub.subscriptions


@story
async def test_a_hub_may_confirm_the_end_before_it_answers() -> None:
    async with subscribed() as (hub, gate, _):
        hub.usually(verifies_before)
        await gate.service.drain()
        assert not hub.subscriptions


@story
async def test_what_is_to_be_kept_is_left_in_place_when_the_gate_goes_down(tmp_path: Path) -> None:
    async with subscribed(more=", keep: true", server=f'state_dir: "{tmp_path}"') as (hub, gate, _):
        await gate.service.drain()
        assert len(hub.subscriptions) == 1
        assert not hub.asked_to("unsubscribe")
    assert [each["at"] for each in remembered(tmp_path)] == ["/hooks/feed"]


@story
async def test_a_hub_that_does_not_confirm_the_end_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "PARTING", 0.2)
    async with subscribed() as (hub, gate, _):
        hub.usually(never_calls)
        async with asyncio.timeout(3):
            await gate.service.drain()
        assert len(hub.asked_to("unsubscribe")) == 1
    assert sum("did not call back" in each.getMessage() for each in caplog.records) == 1


@pytest.mark.parametrize("status", [404, 410, 500])
@story
async def test_a_hub_that_refuses_to_end_it_holds_nobody_up(status: int, caplog: pytest.LogCaptureFixture) -> None:
    async with subscribed() as (hub, gate, _):
        hub.usually(refuses(status))
        async with asyncio.timeout(3):
            await gate.service.drain()
        assert len(hub.asked_to("unsubscribe")) == 1
    warned = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(warned) == (status == 500), "one that does not know it is fine"


@story
async def test_a_subscription_that_is_still_pending_is_taken_back_too(tmp_path: Path) -> None:
    async with Hub() as hub:
        hub.plan(hub.topic(), never_calls)
        async with gate_of(
            route(hub.topic(), port := free_port()), port=port, server=f'state_dir: "{tmp_path}"'
        ) as gate:
            wish = await hub.until_asked_to("subscribe")
            await gate.service.drain()
            (parting,) = hub.asked_to("unsubscribe")
            assert parting.callback == wish.callback
    assert remembered(tmp_path) == []


@story
async def test_what_is_being_taken_back_is_not_confirmed_any_more(tmp_path: Path) -> None:
    async def verifies_the_older_wish_first(hub: Hub, call: Any, wish: Wish) -> None:
        replies.append(await hub.verify(hub.asked_to("subscribe")[0]))
        await call.send(answer(status=202))
        hub.later(lambda: hub.verify(wish))

    replies: list[Reply] = []
    async with Hub() as hub:
        hub.plan(hub.topic(), never_calls, verifies_the_older_wish_first)
        async with gate_of(
            route(hub.topic(), port := free_port()), port=port, server=f'state_dir: "{tmp_path}"'
        ) as gate:
            await hub.until_asked_to("subscribe")
            await gate.service.drain()
        assert [reply.status for reply in replies] == [404]
        assert not hub.subscriptions
    assert remembered(tmp_path) == []


@story
async def test_a_route_that_a_reload_removes_is_unsubscribed_and_its_callback_is_gone() -> None:
    port = free_port()
    async with Hub() as hub:
        stays, goes = (route(hub.topic(name), port, name=name) for name in ("stays", "goes"))
        async with gate_of(stays, goes, port=port) as gate:
            await hub.until_subscribed(count=2)
            (gone,) = hub.asked_to("subscribe", hub.topic("goes"))
            await reload(gate, stays)
            await hub.until_empty(hub.topic("goes"))
            assert (await hub.deliver(gone, b"1")).status in (404, 410)
            asked = f"hub.mode=unsubscribe&hub.challenge=c&hub.topic={hub.topic('goes')}"
            async with asyncio.timeout(PATIENCE):  # it is there until the hub has had its answer
                while (await ask_callback(gate, gone.callback, asked)).status != 404:
                    pass
            assert hub.callbacks() == [hub.asked_to("subscribe", hub.topic("stays"))[0].callback]
            assert len(hub.wishes) == 3


@story
async def test_a_route_that_a_reload_adds_is_subscribed_and_one_that_stays_is_left_alone() -> None:
    port = free_port()
    async with Hub() as hub:
        first, second = (route(hub.topic(name), port, name=name) for name in ("first", "second"))
        async with gate_of(first, port=port) as gate:
            await hub.until_subscribed(count=1)
            await reload(gate, "\n# moved" + first.replace("lease: 10m}", "lease: 10m}, keep: true"), second)
            await hub.until_subscribed(hub.topic("second"))
            async with gate.watch("/first/events") as viewer:
                await hub.publish(hub.topic("first"), b"1")
                assert (await viewer.event()).data == "1"
            assert [wish.topic for wish in hub.wishes] == [hub.topic("first"), hub.topic("second")]


@story
async def test_a_reload_with_another_topic_makes_a_new_subscription_and_takes_the_old_one_back() -> None:
    port = free_port()
    async with Hub() as hub, gate_of(route(hub.topic("old"), port), port=port) as gate:
        old = (await hub.until_subscribed()).wish
        async with gate.watch("/feed/events") as viewer:
            await reload(gate, route(hub.topic("new"), port))
            new = (await hub.until_subscribed(hub.topic("new"))).wish
            await hub.until_empty(hub.topic("old"))
            assert new.callback != old.callback
            assert new.secret != old.secret
            assert (await hub.deliver(old, b'"old"')).status == 410
            assert len(hub.wishes) == 3
            await viewer.rest()
        async with gate.watch("/feed/events") as viewer:
            await hub.publish(hub.topic("new"), b'"new"')
            assert (await viewer.event()).data == '"new"'


@story
async def test_a_route_that_comes_back_while_it_is_being_unsubscribed_is_subscribed_in_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "PARTING", 0.3)
    port = free_port()
    async with Hub() as hub, gate_of(route(hub.topic(), port), port=port) as gate:
        await hub.until_subscribed()
        hub.plan(hub.topic(), never_calls)
        await reload(gate)
        parting = await hub.until_asked_to("unsubscribe")
        await reload(gate, route(hub.topic(), port))
        await hub.until_called("subscribe", 2)
        if (await hub.verify(parting)).status != 200:
            async with asyncio.timeout(PATIENCE):
                while not any("did not call back" in each.getMessage() for each in caplog.records):
                    await asyncio.sleep(0.01)  # for the old one to give up
        async with gate.watch("/feed/events") as viewer:
            await viewer.opening()
            replies = await hub.publish(hub.topic(), b"1")
            assert 200 in [reply.status for reply in replies]
            assert (await viewer.event()).data == "1"


@story
async def test_a_route_that_goes_and_comes_back_faster_than_its_hub_can_follow_is_subscribed_in_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # DEFECT: `_leave` deletes from `_going` what may be a later leave's entry, which then is a KeyError of its own.
    monkeypatch.setattr(keeper, "PARTING", 0.3)
    port = free_port()
    async with Hub() as hub, gate_of(text := route(hub.topic(), port), port=port) as gate:
        await hub.until_subscribed()
        hub.plan(hub.topic(), never_calls)
        for routes in ((), (text,), (), (text,), (), (text,)):
            await reload(gate, *routes)
            await asyncio.sleep(0)
        await until_status(gate, is_active)
        async with gate.watch("/feed/events") as viewer:
            await viewer.opening()
            replies = await hub.publish(hub.topic(), b"1")
            assert 200 in [reply.status for reply in replies]
            assert (await viewer.event()).data == "1"
        await gate.service.drain()
        assert not hub.subscriptions
    gc.collect()
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []


# Remembered


def remembered(folder: Path) -> list[dict[str, Any]]:
    """What the gate knows across restarts: records, each with the path of its webhook as `at`."""
    document = json.loads((folder / "subscriptions.json").read_text())
    return [{"at": at, **record} for at, records in document.items() for record in records]


async def until_remembered(folder: Path, count: int = 1) -> None:
    """Wait until so many subscriptions are remembered as granted: the file is written a moment after the hub is answered."""
    async with asyncio.timeout(PATIENCE):
        while sum(each["until"] > 0 for each in remembered(folder)) < count:
            await asyncio.sleep(0.01)  # nobody tells when a file changes


@story
async def test_after_a_restart_without_a_farewell_the_same_subscription_goes_on(tmp_path: Path) -> None:
    port, server = free_port(), f'state_dir: "{tmp_path / "state"}"'
    async with Hub() as hub:
        text = route(hub.topic(), port)
        async with gate_of(text, port=port, server=server):
            first = (await hub.until_subscribed()).wish
            await until_remembered(tmp_path / "state")
        file = tmp_path / "state" / "subscriptions.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert [each.name for each in file.parent.iterdir()] == [file.name], "nothing half written"
        async with gate_of(text, port=port, server=server) as gate:
            second = await hub.until_asked_to("subscribe", 2)
            assert (second.callback, second.secret, second.topic) == (first.callback, first.secret, first.topic)
            await hub.until_called("subscribe", 2)
            async with gate.watch("/feed/events") as viewer:
                await hub.publish(hub.topic(), b"1")
                assert (await viewer.event()).data == "1"
            assert len(hub.subscriptions) == 1
            await gate.service.drain()
        assert not hub.subscriptions, "none is orphaned"
        assert remembered(file.parent) == []


@story
async def test_deliveries_are_taken_from_the_first_moment_after_a_restart(tmp_path: Path) -> None:
    port, server = free_port(), f'state_dir: "{tmp_path}"'
    async with Hub() as hub:
        text = route(hub.topic(), port)
        async with gate_of(text, port=port, server=server):
            await hub.until_subscribed()
            await until_remembered(tmp_path)
        hub.serve("/topics/feed", answer(status=500))
        async with gate_of(text, port=port, server=server) as gate, gate.watch("/feed/events") as viewer:
            await hub.publish(hub.topic(), b"1")
            assert (await viewer.event()).data == "1"


@story
async def test_after_kill_9_the_same_subscription_goes_on(tmp_path: Path) -> None:
    gate = GateProcess(EDGE, tmp_path / "ssegate.yaml", free_port(), free_port())
    async with Hub() as hub:
        gate.configure(text_of(route(hub.topic(), gate.port)), server=f'state_dir: "{tmp_path / "state"}"')
        await gate.start()
        try:
            first = (await hub.until_subscribed()).wish
            await gate.kill()
            await gate.start()
            second = await hub.until_asked_to("subscribe", 2)
            assert (second.callback, second.secret, second.topic) == (first.callback, first.secret, first.topic)
            await hub.until_called("subscribe", 2)
            async with gate.watch("/feed/events") as viewer:
                await viewer.opening()
                await hub.publish(hub.topic(), b"1")
                assert (await viewer.event()).data == "1"
            assert first.secret not in "".join(gate.said)
        finally:
            await gate.kill()


@story
async def test_a_definition_that_changed_while_the_gate_was_down_is_made_anew_and_the_old_one_taken_back(
    tmp_path: Path,
) -> None:
    port, server = free_port(), f'state_dir: "{tmp_path}"'
    async with Hub() as hub:
        async with gate_of(route(hub.topic("old"), port), port=port, server=server):
            old = (await hub.until_subscribed()).wish
            await until_remembered(tmp_path)
        async with gate_of(route(hub.topic("new"), port), port=port, server=server):
            new = (await hub.until_subscribed(hub.topic("new"))).wish
            await hub.until_empty(hub.topic("old"))
            assert new.callback != old.callback
            assert new.secret != old.secret
            async with asyncio.timeout(PATIENCE):
                while [each["topic"] for each in remembered(tmp_path)] != [hub.topic("new")]:
                    await asyncio.sleep(0.01)  # the file is written a moment after the hub is answered


@pytest.mark.parametrize("has_another", [True, False])
@story
async def test_a_route_that_went_while_the_gate_was_down_is_taken_back(tmp_path: Path, has_another: bool) -> None:
    port, server = free_port(), f'state_dir: "{tmp_path}"'
    async with Hub() as hub:
        goes, stays = (route(hub.topic(name), port, name=name) for name in ("goes", "stays"))
        async with gate_of(goes, *([stays] if has_another else []), port=port, server=server):
            await hub.until_subscribed(count=1 + has_another)
            await until_remembered(tmp_path, 1 + has_another)
        async with gate_of(*([stays] if has_another else []), port=port, server=server):
            await hub.until_empty(hub.topic("goes"))


@story
async def test_the_first_subscription_that_a_reload_brings_is_remembered_too(tmp_path: Path) -> None:
    port, server = free_port(), f'state_dir: "{tmp_path}"'
    async with Hub() as hub:
        async with gate_of(port=port, server=server) as gate:
            await reload(gate, route(hub.topic(), port), server=server)
            first = (await hub.until_subscribed()).wish
            await until_remembered(tmp_path)
        async with gate_of(route(hub.topic(), port), port=port, server=server):
            second = await hub.until_asked_to("subscribe", 2)
            assert second.callback == first.callback


@story
async def test_an_old_subscription_whose_hub_is_down_is_taken_back_at_a_later_start(tmp_path: Path) -> None:
    port, server = free_port(), f'state_dir: "{tmp_path}"'
    async with Hub() as hub, Hub() as other:
        async with gate_of(route(hub.topic(), port), port=port, server=server):
            await hub.until_subscribed()
            await until_remembered(tmp_path)
        hub.plan(hub.topic(), refuses(503))
        text = route(other.topic(), port)
        async with gate_of(text, port=port, server=server):
            await other.until_subscribed()
            await hub.until_asked_to("unsubscribe")
        async with gate_of(text, port=port, server=server):
            await hub.until_empty()


# The callback's form


@pytest.mark.parametrize("more", ["?key=1&x=%20", "/"])
@story
async def test_the_token_is_a_segment_of_the_path_whatever_the_callback_looks_like(more: str) -> None:
    port = free_port()
    async with Hub() as hub:
        text = route(hub.topic(), port).replace("/hooks/feed\n    subscribe", f"/hooks/feed{more}\n    subscribe")
        async with gate_of(text, port=port) as gate, gate.watch("/feed/events") as viewer:
            wish = (await hub.until_subscribed()).wish
            assert urlsplit(wish.callback).query == more.partition("?")[2]
            await hub.publish(hub.topic(), b"1")
            assert (await viewer.event()).data == "1"


@story
async def test_a_secret_of_200_bytes_is_a_fault_of_the_configuration() -> None:
    # "This parameter MUST be less than 200 bytes in length" (W3C WebSub, 5.1).
    text = route("http://127.0.0.1/feed", 80) + "    verify: {websub: {secret: SECRET}}\n"
    make_config(EDGE.yaml(0, text_of(text.replace("SECRET", "é" * 99))))
    with pytest.raises(ConfigError, match="200 bytes"):
        make_config(EDGE.yaml(0, text_of(text.replace("SECRET", "é" * 100))))


# What is not told


@story
async def test_neither_the_secret_nor_the_callback_is_ever_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def repeats_what_it_got(_: Hub, call: Any, wish: Wish) -> None:
        body = json.dumps(
            {"detail": "no", "input": {"hub.secret": wish.secret, "hub.callback": wish.callback}}
        ).encode()
        await call.send(answer(body, status=422))

    async with Hub() as hub:
        hub.plan(hub.topic(), repeats_what_it_got)
        async with gate_of(route(hub.topic(), port := free_port()), port=port) as gate:
            trouble = (await until_status(gate, has_failed)).trouble
            wish = (await hub.until_subscribed()).wish
            await hub.publish(hub.topic(), b"1", signature="sha256=00")
            await gate.service.drain()
        assert "422" in trouble
        token = wish.callback.rpartition("/")[2]
        for text in (trouble, caplog.text):
            assert wish.secret not in text
            assert token not in text
