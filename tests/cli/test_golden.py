"""What the commands print, letter for letter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ssegate.cli import main
from ssegate.cli.banner import Addresses, banner_json, banner_text
from ssegate.cli.loading import load
from ssegate.config import Address, Config

GOLDEN = Path(__file__).parent / "golden"

GOOD = Addresses(Address("0.0.0.0", 8080), admin=Address("127.0.0.1", 9901))
WITH_TLS = Addresses(Address("0.0.0.0", 8080), Address("0.0.0.0", 8443), Address("127.0.0.1", 9901))

QUICK = [
    "quick", "localhost:8000", "--poll", "/orders/{id}/events=/orders/{id}?price=$5@2s", "--poll", "/stock=/stock",
    "--as", "patch", "--cors", "https://app.example.com", "--listen", "127.0.0.1:9000",
]  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSEGATE_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def good(directory: Path) -> Path:
    shutil.copy(GOLDEN / "good.yaml", directory / "ssegate.yaml")
    return directory


def with_tls(directory: Path, more: str = "") -> Config:
    """The good file with a second listener."""
    file = directory / "ssegate.yaml"
    file.write_text(file.read_text().replace('"0.0.0.0:8080"', f'"0.0.0.0:8080", tls: {{self_signed: true}}{more}'))
    return load(None)


def golden(name: str, printed: str) -> None:
    assert printed == (GOLDEN / name).read_text()


def test_check_tells_every_problem_with_its_place(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(GOLDEN / "wrong.yaml", directory / "ssegate.yaml")
    assert main(["check"]) == 78
    golden("check.txt", capsys.readouterr().out)


def test_check_writes_workflow_commands_for_github(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(GOLDEN / "wrong.yaml", directory / "ssegate.yaml")
    assert main(["check", "--format", "github"]) == 78
    golden("check-github.txt", capsys.readouterr().out)


def test_check_of_a_good_file_is_one_line(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("ssegate.yaml: 5 routes, all well\n", "")


def test_the_banner_says_where_everything_is(good: Path) -> None:
    golden("banner.txt", banner_text(load(None), GOOD) + "\n")
    golden("banner-tls.txt", banner_text(with_tls(good), WITH_TLS) + "\n")


def test_the_banner_for_programs_has_the_same_facts_in_one_line(good: Path) -> None:
    line = banner_json(load(None), GOOD)
    assert "\n" not in line
    assert json.loads(line) == {
        "ssegate": "0.1.0",
        "config": "./ssegate.yaml",
        "listening": [{"url": "http://0.0.0.0:8080", "protocols": ["HTTP/1.1", "h2c"]}],
        "admin": "http://127.0.0.1:9901",
        "upstreams": {"api": "http://127.0.0.1:8000"},
        "routes": {"poll": 3, "webhook": 1, "proxy": 1},
        "try": "curl -N http://localhost:8080/orders/1/events",
    }


def test_the_banner_for_programs_has_both_listeners(good: Path) -> None:
    plain = {"url": "http://0.0.0.0:8080", "protocols": ["HTTP/1.1", "h2c"]}
    tls = {"url": "https://0.0.0.0:8443", "protocols": ["h2", "HTTP/1.1"]}
    assert json.loads(banner_json(with_tls(good), WITH_TLS))["listening"] == [plain, tls]


def test_the_banner_names_http3_where_it_is_served(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssegate.config.listening.find_spec", lambda name: object())
    config = with_tls(good, ", edge: hypercorn, http3: true")
    assert "   https://0.0.0.0:8443 (h2, HTTP/1.1, h3)\n" in banner_text(config, WITH_TLS)
    assert json.loads(banner_json(config, WITH_TLS))["listening"][1]["protocols"] == ["h2", "HTTP/1.1", "h3"]


def test_routes_shows_a_table_with_the_most_specific_first(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routes"]) == 0
    golden("routes.txt", capsys.readouterr().out)


def test_routes_as_json_has_the_same_order(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routes", "--json"]) == 0
    golden("routes.json", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("match-poll", ["GET", "/orders/17/events?status=open"], 0),
        ("match-negotiated", ["GET", "/orders/17", "--accept", "text/event-stream"], 0),
        ("match-proxy", ["post", "/orders/17"], 0),
        ("match-broken-query", ["GET", "/orders/events?status=sold"], 1),
        ("match-delivery", ["POST", "/hooks/repos"], 0),
        ("match-refused", ["GET", "/orders/17/events", "--accept", "text/html"], 0),
    ],
)
def test_match_tells_who_answers_and_why_not_the_others(
    name: str, arguments: list[str], code: int, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["match", *arguments]) == code
    golden(f"{name}.txt", capsys.readouterr().out)


def test_quick_prints_the_yaml_it_stands_for(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--print"]) == 0
    golden("quick.yaml", capsys.readouterr().out)


def test_the_yaml_of_quick_passes_check(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(GOLDEN / "quick.yaml", directory / "ssegate.yaml")
    assert main(["check"]) == 0
    assert capsys.readouterr().out == "ssegate.yaml: 3 routes, all well\n"


def test_schema_is_a_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "routes" in schema["properties"]
