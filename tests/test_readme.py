"""What the manual shows is true: its files pass the check, its commands exist, and it leaves no key and no metric out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from ssegate.admin.metrics import Metrics
from ssegate.cli import COMMANDS, main
from ssegate.cli.advice import advise
from ssegate.config import parse_config
from ssegate.config.asking import METHODS
from ssegate.config.model import Config
from ssegate.config.types import Keys, Model
from ssegate.service import Service

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLE = (ROOT / "config.example.yaml").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "".join(blocks("sh")).splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


# Configuration


@pytest.mark.parametrize("text", blocks("yaml"), ids=lambda text: re.search(r"path: (\S+)", text)[1])  # type: ignore[index]  # each has one
def test_a_yaml_in_the_readme_is_a_complete_file_and_right(text: str) -> None:
    config = parse_config(text, source="README.md", environ={})
    assert config.routes


@pytest.mark.parametrize("text", blocks("yaml"), ids=lambda text: re.search(r"path: (\S+)", text)[1])  # type: ignore[index]  # each has one
def test_a_yaml_in_the_readme_says_who_may_read_what_comes_by_itself(text: str) -> None:
    advice = advise(parse_config(text, source="README.md", environ={}))
    assert [each.message for each in advice if each.code in ("open-route", "unused-guard", "short-secret")] == []


def test_the_five_lines_are_five() -> None:
    assert len(blocks("yaml")[0].splitlines()) == 5
    assert len(blocks("js")[0].splitlines()) == 3


def test_the_example_passes_the_check_without_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(ROOT / "config.example.yaml")]) == 0
    out = capsys.readouterr()
    assert "warning" not in out.out + out.err


def models(kind: Any) -> Iterator[type[Model]]:
    """The models that a type consists of."""
    if isinstance(kind, Keys):
        yield kind.model
    elif isinstance(kind, type) and issubclass(kind, Model):
        yield kind
    else:
        for part in get_args(kind):
            yield from models(part)


def keys(model: type[Model], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        yield path
        for part in (field.annotation, *field.metadata):
            for inner in models(part):
                yield from keys(inner, f"{path}.")


KEYS = sorted(set(keys(Config)))


def test_the_keys_are_found() -> None:
    assert {"routes.poll.every.min", "upstreams.auth.basic.user", "routes.webhook.verify.hmac.prefix"} <= set(KEYS)


def written(value: object, path: str = "") -> Iterator[str]:
    """The keys a file sets, without the names that are for the user to choose."""
    if isinstance(value, list):
        for item in value:
            yield from written(item, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = path if path in ("upstreams", "auth") else f"{path}.{key}".removeprefix(".")
            yield inner
            yield from written(item, inner + "." if inner == path else inner)


SHOWN = {path.replace("..", ".") for path in written(yaml.safe_load(EXAMPLE))}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_shown_in_the_example(key: str) -> None:
    name = key.rpartition(".")[2]
    # These exclude what stands beside them or want a file that is not there, so they are comments.
    commented = (
        "upstreams.tls.ca",
        "upstreams.auth.bearer",
        "server.tls.cert",
        "server.tls.key",
        "auth.jwt.keys.url",
        "auth.jwt.keys.file",
        "auth.forward.headers",
        "auth.forward.claims.headers",
    )
    is_commented = key in commented and f"# {name}:" in EXAMPLE
    # Of the methods of a request one is shown; the others stand in its place.
    call = key.rpartition(".")[0]
    is_method = name in METHODS and any(f"{call}.{method}" in SHOWN for method in METHODS)
    assert key in SHOWN or is_commented or is_method


# Commands


def test_there_are_commands() -> None:
    assert len(commands()) > 10


@pytest.mark.parametrize("command", commands())
def test_a_command_in_the_readme_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *arguments = shlex.split(command)
    match program:
        case "ssegate":
            # argparse reads all of it before it comes to --help.
            with pytest.raises(SystemExit) as left:
                main([*arguments, "--help"])
            assert left.value.code == 0
        case "python":
            assert arguments[0] == "-m"
            assert (ROOT / (arguments[1].replace(".", "/") + ".py")).is_file()
        case "pip":
            assert arguments in (["install", "."], ["install", ".[http3]"])
        case "uvicorn" | "hypercorn":
            assert arguments[0] == "ssegate.asgi:app"
        case "docker":
            assert (ROOT / "Dockerfile").is_file()
        case "curl":
            assert arguments[0] in ("-N", "-Nk", "-sS")
        case _:
            assert (ROOT / program).is_file(), program


def test_every_command_is_in_the_readme() -> None:
    names = [module.__name__.rpartition(".")[2].rstrip("_").replace("_", "-") for module in COMMANDS]
    missing = [name for name in names if f"`ssegate {name}`" not in README]
    assert missing == []


# The rest


def test_the_image_can_read_tokens() -> None:
    assert '".[jwt${EXTRAS:+,$EXTRAS}]"' in (ROOT / "Dockerfile").read_text("utf-8")


def test_every_metric_is_in_the_readme() -> None:
    service = Service(parse_config(blocks("yaml")[0], source="README.md", environ={}))
    text = Metrics(service.gate.statistics, service._public).render().decode()
    names = {name for name in re.findall(r"^# HELP (\S+)", text, re.MULTILINE) if not name.endswith("_created")}
    assert len(names) > 10
    assert {name for name in names if f"`{name}`" not in README} == set()


def anchors() -> set[str]:
    """How a page links to the headings of the manual."""
    headings = re.findall(r"^##+ (.+)$", README, re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_to_a_file_or_a_heading_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert {"docs/demo.png", "#who-may-subscribe"} <= set(links)
    assert [link for link in links if link not in anchors() and not (ROOT / link).exists()] == []


def test_the_version_has_its_entry_in_the_changelog() -> None:
    from ssegate import __version__

    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")
