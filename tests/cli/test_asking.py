"""What `routes`, `match` and the banner tell of streams, tasks and feeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ssegate.cli import main
from ssegate.cli.banner import Addresses, banner_json, banner_text
from ssegate.cli.loading import load
from ssegate.config import Address

GOLDEN = Path(__file__).parent / "golden"

NAME = "/chat/s/3q2-7wAAAAAAAAAAAAAAAA"
"""The path of a stream that `/chat` has opened."""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSEGATE_CONFIG", raising=False)
    shutil.copy(GOLDEN / "asking.yaml", tmp_path / "ssegate.yaml")
    return tmp_path


def golden(name: str, printed: str) -> None:
    assert printed == (GOLDEN / name).read_text()


def without_proxy(directory: Path) -> None:
    """The same file, in which nothing takes what the others leave."""
    file = directory / "ssegate.yaml"
    file.write_text(file.read_text().partition("  - path: /{rest:path}")[0])


class Matched:
    """What `ssegate match` says of a request."""

    def __init__(self, code: int, printed: str) -> None:
        self.code = code
        lines = printed.splitlines()
        heads = [number for number, line in enumerate(lines) if line.startswith(("  ✓", "  ·"))]
        self.answering = [self._block(lines, number) for number in heads if lines[number].startswith("  ✓")]
        """Who answers, and what comes of it; each as its lines."""
        self.others = {lines[number].split()[2]: lines[number + 1].strip() for number in heads}
        """Why the others do not, by their paths."""
        self.last = lines[-1].strip()

    def _block(self, lines: list[str], start: int) -> list[str]:
        block = [lines[start].removeprefix("  ✓ ")]
        for line in lines[start + 1 :]:
            if not line.startswith("      "):
                break
            block.append(line.strip())
        return block


def match(capsys: pytest.CaptureFixture[str], *arguments: str) -> Matched:
    code = main(["match", *arguments])
    return Matched(code, capsys.readouterr().out)


# What there is


def test_the_file_is_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    assert capsys.readouterr().out == "ssegate.yaml: 10 routes, all well\n"


def test_routes_shows_what_each_asks_for_and_what_it_is_made_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routes"]) == 0
    golden("asking-routes.txt", capsys.readouterr().out)


def test_routes_as_json_has_the_same_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routes", "--json"]) == 0
    golden("asking-routes.json", capsys.readouterr().out)


def test_the_names_of_streams_are_no_routes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routes", "--json"]) == 0
    paths = [route["path"] for route in json.loads(capsys.readouterr().out)]
    assert sorted(paths) == sorted(route.path for route in load(None).routes)


def test_the_banner_counts_every_kind() -> None:
    addresses = Addresses(Address("127.0.0.1", 8080))
    assert "  routes      1 poll, 4 stream, 2 task, 2 feed, 1 proxy\n" in banner_text(load(None), addresses)
    counted = json.loads(banner_json(load(None), addresses))["routes"]
    assert list(counted.items()) == [("poll", 1), ("stream", 4), ("task", 2), ("feed", 2), ("proxy", 1)]


def test_the_secrets_of_paths_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["routes"],
        ["routes", "--json"],
        ["match", "PUT", "/jobs"],
        ["match", "GET", "/builds/7/log?follow=1"],
    ):
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert "s3cret" not in printed
        assert "=***" in printed


# Who answers


def test_match_finds_a_stream_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["match", "GET", NAME]) == 0
    golden("asking-match-name.txt", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("request_", "answering"),
    [
        (
            ["GET", "/builds/7/log?follow=1"],
            [
                "stream  /builds/{id}/log (ssegate.yaml:7)",
                "It answers.",
                "id = 7",
                "query.follow = 1",
                "upstream: GET http://127.0.0.1:8000/builds/7/log?api_key=***&follow=1",
            ],
        ),
        (
            ["GET", "/news"],
            ["stream  /news (ssegate.yaml:17)", "It answers.", "upstream: GET http://127.0.0.1:8001/base/events"],
        ),
        (
            ["post", "/chat"],
            ["stream  /chat (ssegate.yaml:19)", "It answers.", "upstream: POST http://127.0.0.1:8000/generate"],
        ),
        (
            ["GET", "/mine", "--accept", "text/event-stream"],
            [
                "stream  /mine (ssegate.yaml:21)",
                "It answers.",
                "upstream: GET http://127.0.0.1:8000/mine with the viewer's authorization",
            ],
        ),
        (
            ["GET", "/jobs/17/progress"],
            [
                "task    /jobs/{id}/progress (ssegate.yaml:24)",
                "It answers.",
                "id = 17",
                "upstream: GET http://127.0.0.1:8000/jobs/17",
            ],
        ),
        (
            ["PUT", "/jobs"],
            ["task    /jobs (ssegate.yaml:26)", "It answers.", "upstream: POST http://127.0.0.1:8000/jobs?token=***"],
        ),
        (
            ["HEAD", "/audit"],
            [
                "feed    /audit (ssegate.yaml:29)",
                "It answers.",
                "upstream: GET http://127.0.0.1:8000/audit with the viewer's cookie",
            ],
        ),
        (
            ["GET", "/cards", "--accept", "application/x-ndjson"],
            ["feed    /cards (ssegate.yaml:31)", "It answers.", "upstream: GET http://127.0.0.1:8000/cards"],
        ),
        (
            ["GET", NAME.replace("/chat", "/jobs")],
            [
                "task    /jobs/s/{stream} (ssegate.yaml:26)",
                "It answers.",
                "stream = 3q2-7wAAAAAAAAAAAAAAAA",
                "a stream that a request has opened is found again here by its name",
            ],
        ),
    ],
)
def test_match_tells_what_is_asked_of_the_upstream(
    request_: list[str], answering: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    matched = match(capsys, *request_)
    assert matched.code == 0
    assert matched.answering == [answering]


@pytest.mark.parametrize("path", ["/news", "/chat", NAME])
def test_match_tells_that_an_answer_in_no_other_form_is_to_be_had(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    method = "POST" if path == "/chat" else "GET"
    ((*_, refusal),) = match(capsys, method, path, "--accept", "text/html").answering
    assert refusal == (
        "406: its Accept names none of text/event-stream, application/x-ndjson, application/json-seq, application/json."
    )


@pytest.mark.parametrize(
    ("method", "path", "route", "reason"),
    [
        ("GET", "/chat", "/chat", "Its methods are OPTIONS, POST, not GET."),
        ("POST", "/news", "/news", "Its methods are GET, HEAD, OPTIONS, not POST."),
        ("POST", "/jobs/17/progress", "/jobs/{id}/progress", "Its methods are GET, HEAD, OPTIONS, not POST."),
        ("GET", "/jobs", "/jobs", "Its methods are OPTIONS, POST, PUT, not GET."),
        ("POST", NAME, "/chat/s/{stream}", "Its methods are GET, HEAD, OPTIONS, not POST."),
        ("GET", "/mine", "/mine", "It answers only if Accept names text/event-stream."),
        ("GET", "/chat/s/guess", "/chat/s/{stream}", "`stream` is 'guess', which does not match [A-Za-z0-9_-]{22}."),
        ("GET", "/builds/x/log", "/builds/{id}/log", "`id` is 'x', which does not match [0-9]+."),
    ],
)
def test_match_tells_why_a_stream_does_not_answer(
    method: str, path: str, route: str, reason: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matched = match(capsys, method, path)
    assert matched.answering[0][0].startswith("proxy ")  # behind it
    assert matched.others[route] == reason
    without_proxy(directory)
    alone = match(capsys, method, path)
    assert (alone.code, alone.answering, alone.others[route]) == (1, [], reason)


def test_without_anybody_else_the_wrong_method_is_405(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_proxy(directory)
    assert match(capsys, "GET", "/jobs").last == "405: nobody answers GET here; allowed: OPTIONS, POST, PUT."
    assert match(capsys, "GET", "/chat/s/guess").last == "404: no route answers."
