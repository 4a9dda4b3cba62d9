"""An issuer's keys: when they are fetched, who waits for that, and what goes on while they cannot be had."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ssegate.auth.keyring import FetchedKeyring, Keyring, make_keyring
from ssegate.config.auth import SigningKeys
from ssegate.config.keyset import MAX_BYTES, KeyFault
from tests.e2e.gate import story
from tests.guards import GARBAGE, JwksServer, huge
from tests.ports import free_port
from tests.tokens import Issuer, jwks
from tests.upstream.scripted import Call, ScriptedUpstream, answer, chunked

OLD, NEW = Issuer("EdDSA", "old"), Issuer("EdDSA", "new")
NOW = 1000.0


@asynccontextmanager
async def keyring(url: str) -> AsyncIterator[FetchedKeyring]:
    ring = FetchedKeyring("user", url)
    try:
        yield ring
    finally:
        await ring.aclose()


TOOK = 5.0
"""Seconds that a fetch takes at most that fails: from then on it is counted until the next."""


async def until_idle(ring: FetchedKeyring, now: float) -> None:
    """Wait for the fetch that is under way; there is one."""
    assert ring.may_learn(now), "nothing is under way"
    await ring.learn(now)


def ids(ring: Keyring) -> list[str | None]:
    return [] if ring.keys is None else [key.id for key in ring.keys.keys]


def records(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(each.levelno, each.getMessage()) for each in caplog.records if each.name == "ssegate.auth.keyring"]


# When


@story
async def test_keys_are_fetched_before_anybody_asks() -> None:
    async with JwksServer(OLD) as issuer, keyring(issuer.url) as ring:
        assert (ring.keys, ring.generation) == (None, 0)
        ring.begin(NOW)
        await until_idle(ring, NOW)
        assert (ids(ring), ring.generation, ring.outcomes, ring.trouble) == (["old"], 1, {"200": 1}, "")
        (asked,) = issuer.requests
        assert (asked.method, asked.target, asked.get("accept")) == (
            "GET",
            "/.well-known/jwks.json",
            "application/json",
        )


@pytest.mark.parametrize(
    ("cache_control", "seconds"),
    [
        (None, 300),
        (b"max-age=600", 600),
        (b"public, Max-Age=600, must-revalidate", 600),
        (b'max-age="600"', 600),
        (b"max-age=0", 30),
        (b"max-age=5", 30),
        (b"no-store", 30),
        (b"no-cache, max-age=600", 30),
        (b"s-maxage=600", 300),
        (b"max-age=999999999", 86400),
        (b"max-age=99999999999999999999", 86400),
        (b"max-age=-1", 300),
        (b"max-age=x", 300),
        (b"\xff", 300),
    ],
)
@story
async def test_keys_are_fresh_for_as_long_as_the_issuer_says(cache_control: bytes | None, seconds: float) -> None:
    headers = [] if cache_control is None else [(b"Cache-Control", cache_control)]
    async with JwksServer() as issuer, keyring(issuer.url) as ring:
        issuer.publish(OLD, headers=headers)
        ring.look(NOW)
        await until_idle(ring, NOW)
        ring.look(NOW + seconds - 0.1)
        assert not ring.may_learn(NOW), "nothing is under way"
        ring.look(NOW + seconds)
        await until_idle(ring, NOW + seconds)
        assert issuer.fetches == 2


@story
async def test_while_stale_keys_are_fetched_anew_those_that_are_known_go_on() -> None:
    async with JwksServer(OLD) as issuer, keyring(issuer.url) as ring:
        ring.begin(NOW)
        await until_idle(ring, NOW)
        issuer.publish(NEW)
        release = issuer.hold()
        for _ in range(100):
            ring.look(NOW + 300)
        await issuer.until_fetched(2)
        assert ids(ring) == ["old"]
        release.set()
        await until_idle(ring, NOW + 300)
        assert (ids(ring), ring.generation, issuer.fetches) == (["new"], 2, 2)


@story
async def test_a_set_that_has_not_changed_is_no_new_generation() -> None:
    """What was found good by it stays known."""
    async with JwksServer(OLD, NEW) as issuer, keyring(issuer.url) as ring:
        ring.begin(NOW)
        await until_idle(ring, NOW)
        for number in (1, 2):
            ring.look(NOW + 300 * number)
            await until_idle(ring, NOW + 300 * number)
        assert (issuer.fetches, ring.generation) == (3, 1)


@pytest.mark.parametrize(("before", "after"), [((OLD,), (OLD, NEW)), ((OLD, NEW), (NEW,)), ((OLD,), (NEW,))])
@story
async def test_a_key_more_or_less_is_a_new_generation(before: tuple[Issuer, ...], after: tuple[Issuer, ...]) -> None:
    async with JwksServer(*before) as issuer, keyring(issuer.url) as ring:
        ring.begin(NOW)
        await until_idle(ring, NOW)
        issuer.publish(*after)
        ring.look(NOW + 300)
        await until_idle(ring, NOW + 300)
        assert (ids(ring), ring.generation) == ([each.kid for each in after], 2)


@story
async def test_a_key_that_has_another_id_now_is_found_by_it() -> None:
    async with JwksServer(Issuer("EdDSA", "a", key="one")) as issuer, keyring(issuer.url) as ring:
        ring.begin(NOW)
        await until_idle(ring, NOW)
        issuer.publish(Issuer("EdDSA", "b", key="one"))
        ring.look(NOW + 300)
        await until_idle(ring, NOW + 300)
        assert ids(ring) == ["b"]


# Keys that are not known


@story
async def test_for_unknown_keys_they_are_fetched_twice_a_minute_at_most() -> None:
    async with JwksServer(OLD) as issuer, keyring(issuer.url) as ring:
        ring.begin(NOW)
        await until_idle(ring, NOW)
        assert not ring.may_learn(NOW + 29.9), "they have just come"
        assert ring.may_learn(NOW + 30)
        issuer.publish(OLD, NEW)
        await ring.learn(NOW + 30)
        assert (ids(ring), issuer.fetches) == (["old", "new"], 2)
        assert not ring.may_learn(NOW + 59.9)
        assert ring.may_learn(NOW + 60)


@story
async def test_all_who_wait_for_an_unknown_key_wait_for_one_fetch() -> None:
    async with JwksServer(OLD) as issuer, keyring(issuer.url) as ring:
        ring.begin(NOW)
        await until_idle(ring, NOW)
        issuer.publish(NEW)
        release = issuer.hold()
        waiting = [asyncio.create_task(ring.learn(NOW + 30)) for _ in range(200)]
        await issuer.until_fetched(2)
        waiting[0].cancel()  # whoever leaves takes nobody's answer along
        release.set()
        await asyncio.wait(waiting)
        assert (issuer.fetches, ids(ring)) == (2, ["new"])


@story
async def test_after_a_fetch_that_failed_the_next_unknown_key_waits_as_long() -> None:
    async with JwksServer(OLD) as issuer, keyring(issuer.url) as ring:
        ring.begin(NOW)
        await until_idle(ring, NOW)
        issuer.fail(503)
        await ring.learn(NOW + 30)
        assert not ring.may_learn(NOW + 59.9)
        assert ring.may_learn(NOW + 60)
        assert ids(ring) == ["old"]


# When they cannot be had


@story
async def test_keys_are_kept_while_the_issuer_is_down_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with JwksServer(OLD) as issuer, keyring(issuer.url) as ring:
        ring.begin(NOW)
        await until_idle(ring, NOW)
        await issuer.go_down()
        now = NOW + 300
        for pause in (1, 2, 4, 8, 16, 30, 30):
            ring.look(now)
            await until_idle(ring, now)
            sent = ring.outcomes["failed"]
            ring.look(now + pause - 0.1)
            assert ring.outcomes["failed"] == sent
            now += pause + TOOK
        assert (ids(ring), ring.generation, ring.outcomes) == (["old"], 1, {"200": 1, "failed": 7})
        ((level, text),) = records(caplog)
        assert level == logging.WARNING
        assert text.startswith(f"guard user: GET {issuer.url}: ")
        assert text.endswith("; those that are known go on, and it is tried again")
        await issuer.come_back()
        ring.look(now)
        await until_idle(ring, now)
        assert (ids(ring), ring.trouble) == (["old"], "")
        assert records(caplog)[1:] == [(logging.INFO, "guard user: the issuer's keys are here again")]
        await issuer.go_down()
        now += 300
        ring.look(now)
        await until_idle(ring, now)
        assert len(records(caplog)) == 3, "the next time is another time"
        ring.look(now + 1 + TOOK)
        await until_idle(ring, now + 1 + TOOK)


@story
async def test_an_issuer_that_was_never_there_is_asked_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    issuer = JwksServer(OLD, port=port)
    async with keyring(issuer.url) as ring:
        ring.begin(NOW)
        await until_idle(ring, NOW)
        assert (ring.keys, ring.outcomes) == (None, {"failed": 1})
        assert ring.trouble
        ((_, text),) = records(caplog)
        assert text.endswith("; nobody is let in by it, and it is tried again")
        assert not ring.may_learn(NOW + 0.9)
        assert ring.may_learn(NOW + 1 + TOOK)
        async with issuer:
            await ring.learn(NOW + 1 + TOOK)
            assert (ids(ring), ring.trouble) == (["old"], "")


@pytest.mark.parametrize("what", GARBAGE)
@story
async def test_garbage_does_not_take_the_place_of_keys(what: str) -> None:
    async with JwksServer(OLD) as issuer, keyring(issuer.url) as ring:
        ring.begin(NOW)
        await until_idle(ring, NOW)
        issuer.serve(GARBAGE[what])
        ring.look(NOW + 300)
        await until_idle(ring, NOW + 300)
        assert (ids(ring), ring.generation, ring.outcomes) == (["old"], 1, {"200": 2})
        assert ring.trouble.startswith(f"GET {issuer.url}: ")


async def cut(call: Call) -> None:
    await call.send(answer(jwks(NEW)[:20], length=500))
    call.close()


async def reset(call: Call) -> None:
    call.reset()


@pytest.mark.parametrize(
    "step",
    [
        answer(jwks(NEW), status=201),
        answer(jwks(NEW), status=404),
        answer(jwks(NEW), status=500),
        answer(jwks(NEW), (b"Location", b"http://127.0.0.1:9/keys"), status=302),
        answer(jwks(NEW), (b"Location", b"//attacker.example/keys"), status=307),
        answer(jwks(NEW), (b"Location", b"file:///etc/passwd"), status=301),
        answer(jwks(NEW), (b"Location", b"/.well-known/jwks.json"), status=302),
        answer(huge(MAX_BYTES + 1)),
        chunked(huge(MAX_BYTES + 1)),
        answer(jwks(NEW), (b"Content-Encoding", b"gzip")),
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"nonsense\r\n\r\n",
        cut,
        reset,
    ],
    ids=[
        "201", "404", "500", "to another port", "to another host", "to a file", "to itself", "huge", "huge in chunks", "no gzip", "204",
        "304", "no HTTP", "cut", "reset",
    ],
)  # fmt: skip
@story
async def test_whatever_else_is_answered_is_no_set_of_keys(step: object) -> None:
    async with JwksServer(OLD) as issuer, keyring(issuer.url) as ring:
        ring.begin(NOW)
        await until_idle(ring, NOW)
        issuer.answer_with(step)  # type: ignore[arg-type]
        ring.look(NOW + 300)
        await until_idle(ring, NOW + 300)
        assert (ids(ring), ring.generation) == (["old"], 1)
        assert ring.trouble
        assert "new" not in ring.trouble, "nothing of it is quoted"


@story
async def test_what_is_larger_than_a_set_may_be_is_not_read_to_its_end() -> None:
    async with JwksServer() as issuer, keyring(issuer.url) as ring:
        issuer.serve(huge())
        await ring.learn(NOW)
        assert (ring.keys, ring.outcomes) == (None, {"failed": 1})


@story
async def test_a_redirect_on_the_same_origin_is_followed_and_no_other() -> None:
    async with ScriptedUpstream(answer(jwks(NEW))) as elsewhere:
        moved = (b"Location", f"{elsewhere.url}/keys".encode())

        async def handle(call: Call) -> None:
            near = answer(b"", (b"Location", b"/far"), status=302)
            steps = {"/near": near, "/far": answer(jwks(OLD)), "/away": answer(b"", moved, status=302)}
            await call.send(steps[call.asked.target])

        async with ScriptedUpstream(handle) as issuer:
            async with keyring(f"{issuer.url}/near") as ring:
                await ring.learn(NOW)
                assert ids(ring) == ["old"]
            async with keyring(f"{issuer.url}/away") as ring:
                await ring.learn(NOW)
                assert (ring.keys, ring.outcomes) == (None, {"302": 1})
        assert elsewhere.requests == []


@story
async def test_a_query_in_the_url_is_sent_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with JwksServer() as issuer, keyring(f"{issuer.url}?key=hunter2") as ring:
        await ring.learn(NOW)
        assert issuer.requests[0].target == "/.well-known/jwks.json?key=hunter2"
        assert "hunter2" not in ring.trouble + caplog.text


@story
async def test_an_issuer_that_is_slow_is_waited_for_by_nobody_who_has_keys() -> None:
    async with JwksServer(OLD) as issuer, keyring(issuer.url) as ring:
        ring.begin(NOW)
        await until_idle(ring, NOW)
        issuer.hold()
        ring.look(NOW + 300)
        await issuer.until_fetched(2)
        ring.look(NOW + 100_000)
        assert (ids(ring), issuer.fetches) == (["old"], 2)


@story
async def test_a_fetch_that_is_under_way_ends_with_the_keyring() -> None:
    async with JwksServer(OLD) as issuer:
        release = issuer.hold()
        async with keyring(issuer.url) as ring:
            waiting = asyncio.create_task(ring.learn(NOW))
            await issuer.until_fetched()
        async with asyncio.timeout(10):
            await waiting
        assert ring.keys is None
        release.set()
        await issuer.wait_for(lambda: issuer.open == 0, "the end of the connection")


@story
async def test_one_connection_is_enough() -> None:
    async with JwksServer(OLD) as issuer, keyring(issuer.url) as ring:
        for number in range(5):
            await ring.learn(NOW + 30 * number)
        assert (issuer.fetches, issuer.connections) == (5, 1)


# Those that are at hand


@story
async def test_keys_of_files_and_secrets_are_there_and_never_learned(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(jwks(OLD))
    for settings, count in (({"file": str(file)}, 1), ({"secret": ("one", "two")}, 2)):
        ring = make_keyring("user", SigningKeys.model_validate(settings))
        assert ring.keys is not None
        assert len(ring.keys.keys) == count
        ring.begin(NOW)
        ring.look(NOW)
        assert not ring.may_learn(NOW + 1e9)
        await ring.learn(NOW)
        await ring.aclose()
        assert (ring.outcomes, ring.trouble, ring.generation) == ({}, "", 0)


def test_a_file_without_keys_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeyFault, match="cannot be read"):
        make_keyring("user", SigningKeys.model_validate({"file": str(tmp_path / "none.json")}))
