"""A server that speaks as OpenAI's does (PyPI `fakellm`), read through the gate by OpenAI's own client and by other people's."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse

from tests.clients.children import PATIENCE, Child, Line
from tests.clients.cutting import Cuts, CuttingProxy
from tests.clients.gate import Gate
from tests.clients.peers import HERE, client, fakellm, find_node, openai_client
from tests.clients.stepping import SteppingProxy, body_of

REPLY = 'One  two\nthree "four" <five> – sechs 七 👩‍🚀 data: eight.'
PIECES = [word if number == 0 else f" {word}" for number, word in enumerate(REPLY.split(" "))]
"""As the server sends it: each word with the space before it; one piece is a space alone."""

LONG = " ".join(str(number) for number in range(1, 61))

RULES = {
    "rules": [
        {"name": "reply", "when": {"messages_contain": "tell"}, "respond": {"content": REPLY}},
        {"name": "long", "when": {"messages_contain": "count"}, "respond": {"content": LONG}},
        {"name": "busy", "when": {"messages_contain": "busy"}, "respond": {"status": 429, "error": "too many"}},
    ]
}

CONFIG = """
upstreams: {api: "%s"}
defaults: {retry: 100ms}
routes:
  - path: /chat
    methods: [POST]
    stream:
      post: /v1/chat/completions
      format: sse
      data: "choices[0].delta.content"
      done: "@ == '[DONE]'"
      forward: [authorization]
  - path: "/{rest:path}"
    proxy: {}
"""

KEY = {"authorization": "Bearer sk-test"}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Its port."""
    folder = tmp_path_factory.mktemp("fakellm")
    (folder / "rules.yaml").write_text(json.dumps(RULES, ensure_ascii=False))
    with Child(fakellm(), folder / "log", env={"FAKELLM_CONFIG": str(folder / "rules.yaml")}) as server:
        yield server.next()["port"]


@pytest.fixture(scope="module")
def whole_proxy(llm: int) -> Iterator[SteppingProxy]:
    with SteppingProxy(llm) as proxy:
        yield proxy


@pytest.fixture
def proxy(whole_proxy: SteppingProxy) -> SteppingProxy:
    """Before the server; lets nothing through yet."""
    whole_proxy.hold()
    return whole_proxy


@pytest.fixture(scope="module")
def gate(whole_proxy: SteppingProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """Before that."""
    with Gate(tmp_path_factory.mktemp("gate"), CONFIG % whole_proxy.url) as gate:
        yield gate


def ask(gate: Gate, question: str, way: str, folder: Path) -> Child:
    return Child(openai_client(f"{gate.url}/v1", question, way), folder / "openai.log")


def asked(llm: int) -> int:
    """How many questions the server has been asked."""
    count: int = httpx.get(f"http://127.0.0.1:{llm}/_fakellm/stats").json()["total_requests"]
    return count


# Passed on


def test_openais_client_gets_each_chunk_before_the_next_is_sent(
    proxy: SteppingProxy, gate: Gate, tmp_path: Path
) -> None:
    wanted = [(None, None), *((piece, None) for piece in PIECES), (None, "stop")]
    with ask(gate, "tell", "chunks", tmp_path) as child:
        for content, finish in wanted:
            proxy.step()
            line = child.next()
            assert (line["content"], line["finish"]) == (content, finish)
        proxy.step()
        assert child.next() == {"over": True}


def test_openais_client_gets_the_servers_answer_byte_for_byte(proxy: SteppingProxy, gate: Gate, tmp_path: Path) -> None:
    received = b""
    with ask(gate, "tell", "raw", tmp_path) as child:
        proxy.step()
        head = child.next()
        for number in range(len(PIECES) + 3):
            if number:
                proxy.step()
            while received.count(b"\n\n") <= number:
                received += base64.b64decode(child.next()["bytes"])
        assert child.next() == {"over": True}
    assert received == body_of(proxy.answer)
    assert received.endswith(b"data: [DONE]\n\n")
    assert head["status"] == 200
    lines = proxy.answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    sent = dict(line.split(": ", 1) for line in lines)
    assert "x-fakellm-conversation-id" in sent
    assert head["headers"].items() >= sent.items()


def test_openais_client_understands_an_error_that_is_passed_on(
    proxy: SteppingProxy, gate: Gate, tmp_path: Path
) -> None:
    proxy.flow()
    with ask(gate, "busy", "whole", tmp_path) as child:
        line = child.next()
        assert (line["error"], line["status"]) == ("RateLimitError", 429)
        assert "too many" in line["message"]


# As a stream


def question(text: str, **more: object) -> dict[str, Any]:
    return {"model": "gpt-test", "messages": [{"role": "user", "content": text}], "stream": True, **more}


def read(events: Iterator[ServerSentEvent], count: int, proxy: SteppingProxy) -> list[ServerSentEvent]:
    """Some events, each before the next is sent."""
    found = []
    for _ in range(count):
        proxy.step()
        found.append(next(events))
    return found


def test_an_answer_that_is_lost_in_the_middle_goes_on_under_its_name(
    llm: int, proxy: SteppingProxy, gate: Gate
) -> None:
    before = asked(llm)
    with httpx.Client(base_url=gate.url, timeout=PATIENCE, headers=KEY) as http:
        proxy.step()  # of the first chunk nothing is told: it has no content
        with connect_sse(http, "POST", "/chat", json=question("tell")) as source:
            source.response.raise_for_status()
            name = source.response.headers["ssegate-stream"]
            found = read(source.iter_sse(), 4, proxy)
        proxy.flow()
        cursor = {"last-event-id": found[-1].id}
        with connect_sse(http, "GET", name, headers=cursor) as source:
            assert source.response.headers["ssegate-resumed"] == "yes"
            found += source.iter_sse()
        assert http.get(name, headers=cursor | {"authorization": "Bearer sk-other"}).status_code == 404
        assert http.get(name, headers={"last-event-id": found[-1].id}).status_code == 204
    *texts, end = found
    assert {event.event for event in texts} == {"message"}
    assert "".join(event.data for event in texts) == REPLY
    assert [event.data for event in texts] == PIECES
    assert (end.event, json.loads(end.data)) == ("end", {"reason": "done"})
    assert asked(llm) == before + 1


@pytest.mark.node
@pytest.mark.usefixtures("node_packages")
def test_an_eventsource_reads_an_answer_by_its_name_and_ends_by_itself(
    proxy: SteppingProxy, gate: Gate, tmp_path: Path
) -> None:
    proxy.flow()
    with httpx.Client() as http, connect_sse(http, "POST", f"{gate.url}/chat", json=question("tell")) as source:
        name = source.response.headers["ssegate-stream"]
        first = next(source.iter_sse())
    assert first.data == PIECES[0]
    with Child(client("eventsource", gate.url + name), tmp_path / "log") as child:
        lines = child.until(lambda line: line.get("closed", False))
    events = [line for line in lines if "type" in line]
    assert [line["data"] for line in events[:-1]] == PIECES
    assert (events[0]["id"], events[-1]["type"]) == (first.id, "end")


def is_end(line: Line) -> bool:
    return "over" in line


@pytest.mark.node
@pytest.mark.usefixtures("node_packages")
def test_fetch_event_source_posts_again_when_it_is_cut_off_and_the_question_is_asked_once(
    llm: int, proxy: SteppingProxy, gate: Gate, tmp_path: Path
) -> None:
    before = asked(llm)
    proxy.step()
    proxy.step()
    options = {"method": "POST", "headers": {"content-type": "application/json"}, "body": json.dumps(question("count"))}
    with CuttingProxy(gate.port, seed=7) as cutting:
        command: list[str | Path] = [find_node(), HERE / "resuming.mjs", "fetch-event-source", f"{cutting.url}/chat"]
        with Child([*command, json.dumps(options)], tmp_path / "log") as child:
            lines = child.until(lambda line: "type" in line)
            cutting.cut(Cuts(3, between_writes=True, longest=600))
            proxy.flow()
            lines += child.until(is_end)
            assert cutting.is_spent.is_set()
    texts = [line["data"] for line in lines if line.get("type") == "message"]
    assert "".join(texts) == LONG
    assert len(texts) == 60
    assert asked(llm) == before + 1


def test_an_answer_that_is_no_stream_is_said_to_be_none(proxy: SteppingProxy, gate: Gate) -> None:
    proxy.flow()
    answer = httpx.post(f"{gate.url}/chat", json=question("tell", stream=False), timeout=PATIENCE)
    assert (answer.status_code, answer.headers["content-type"]) == (502, "application/problem+json")
    assert "text/event-stream" in answer.json()["detail"]
