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
        ("path: /a, stream: {get: /}", "curl -N http://localhost:8080/a"),
        ("path: /a, stream: {get: /, forward: [cookie]}", "curl -N http://localhost:8080/a"),
        (
            "path: /a, stream: {post: /}",
            "curl -N -X POST -H 'Content-Type: application/json' -d '{}' http://localhost:8080/a",
        ),
        (
            "path: /a, methods: [PUT, PATCH], stream: {post: /}",
            "curl -N -X PUT -H 'Content-Type: application/json' -d '{}' http://localhost:8080/a",
        ),
        ("path: /a, methods: [POST, GET], stream: {post: /}", "curl -N http://localhost:8080/a"),
        (
            "path: /a, negotiate: true, stream: {post: /}",
            "curl -N -H 'Accept: text/event-stream' -X POST -H 'Content-Type: application/json' -d '{}' http://localhost:8080/a",
        ),
        ('path: "/a/{id}", task: {get: "/{id}"}', "curl -N http://localhost:8080/a/1"),
        (
            'path: /a, task: {get: "{start.headers.location}", start: {post: /}}',
            "curl -N -X POST -H 'Content-Type: application/json' -d '{}' http://localhost:8080/a",
        ),
        ('path: /a, feed: {get: "/?after={cursor}", next: last}', "curl -N http://localhost:8080/a"),
        ('path: "/a/{id}", params: {id: "[A-Z]{7}"}, poll: {get: /}', ""),
        ('path: "/{rest:path}", proxy: {}', ""),
    ],
)
def test_the_suggested_command_is_one_that_the_route_answers(route: str, command: str) -> None:
    assert try_command(config(route), LOCAL) == command


@pytest.mark.parametrize(
    ("routes", "path"),
    [
        (["{path: /s, stream: {post: /}}", "{path: /p, poll: {get: /}}"], "/p"),
        (["{path: /t, task: {get: /}}", "{path: /s, stream: {get: /}}"], "/s"),
        (['{path: /f, feed: {get: "/?after={cursor}", next: n}}', "{path: /t, task: {get: /}}"], "/t"),
        (["{path: /w, webhook: {at: /h, verify: none}}", '{path: /f, feed: {get: "/?after={cursor}", next: n}}'], "/f"),
        (['{path: /p, query: {x: "[A-Z]{7}"}, poll: {get: /}}', "{path: /s, stream: {get: /}}"], "/s"),
    ],
)
def test_the_simplest_kind_that_can_be_tried_is_suggested(routes: list[str], path: str) -> None:
    listed = "".join(f"  - {route}\n" for route in routes)
    text = f"version: 1\nupstreams: {{api: http://localhost}}\nroutes:\n{listed}"
    command = try_command(parse_config(text, source="f", environ={}), LOCAL)
    assert command.endswith(f"http://localhost:8080{path}")


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
