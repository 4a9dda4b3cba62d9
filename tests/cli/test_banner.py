"""The command that the banner suggests: one that opens a stream."""

from __future__ import annotations

import pytest

from ssegate.cli.banner import place_of, try_command
from ssegate.config import Address, Config, parse_config

LOCAL = Address("127.0.0.1", 8080)


def config(route: str, source: str = "ssegate.yaml") -> Config:
    text = f"version: 1\nupstreams: {{api: http://localhost}}\nroutes:\n  - {{{route}}}\n"
    return parse_config(text, source=source, environ={})


@pytest.mark.parametrize(
    ("route", "command"),
    [
        ('path: "/a/{id}", poll: {get: /}', "curl -N http://localhost:8080/a/1"),
        ('path: "/a/{id}", params: {id: "[a-z]+"}, poll: {get: /}', "curl -N http://localhost:8080/a/a"),
        ('path: /a, query: {s: "paid|open"}, poll: {get: /}', "curl -N 'http://localhost:8080/a?s=paid'"),
        ("path: /a, negotiate: true, poll: {get: /}", "curl -N -H 'Accept: text/event-stream' http://localhost:8080/a"),
        ("path: /a, webhook: {at: /hooks, verify: none}", "curl -N http://localhost:8080/a"),
        ('path: "/a/{id}", params: {id: "[A-Z]{7}"}, poll: {get: /}', ""),
        ('path: "/{rest:path}", proxy: {}', ""),
    ],
)
def test_the_suggested_command_is_one_that_the_route_answers(route: str, command: str) -> None:
    assert try_command(config(route), LOCAL) == command


@pytest.mark.parametrize(
    ("host", "shown"),
    [("0.0.0.0", "localhost"), ("::", "localhost"), ("10.1.2.3", "10.1.2.3"), ("fd00::1", "[fd00::1]")],
)
def test_an_address_that_means_every_interface_is_called_localhost(host: str, shown: str) -> None:
    command = try_command(config("path: /a, poll: {get: /}"), Address(host, 80))
    assert command.replace("'", "") == f"curl -N http://{shown}:80/a"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("ssegate.yaml", "./ssegate.yaml"),
        ("conf/gate.yaml", "./conf/gate.yaml"),
        ("../gate.yaml", "../gate.yaml"),
        ("/etc/ssegate/ssegate.yaml", "/etc/ssegate/ssegate.yaml"),
        ("(command line)", "(command line)"),
    ],
)
def test_the_file_is_named_as_it_was_found(source: str, shown: str) -> None:
    assert place_of(config("path: /a, poll: {get: /}", source)) == shown
