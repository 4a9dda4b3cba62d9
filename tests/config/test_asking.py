"""What a file may say of streams, tasks and feeds, of what they are sent as, and what goes together."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml

from ssegate.config import Config, Every, json_schema, parse_config
from ssegate.config.asking import Feed, Stream, Task
from ssegate.config.check import has_names, name_path
from ssegate.config.model import Route
from ssegate.errors import ConfigError

Fault = tuple[str, str, str]
"""The code, the place below `routes[0]`, and the message."""

STREAM = "stream: {get: /log}"
OWN = "stream: {post: /log}"
TASK = "task: {get: /job}"
STARTED = 'task: {get: "/job/{start.body.id}", start: {post: /job}}'
FEED = 'feed: {get: "/feed?after={cursor}", next: last}'
POLL = "poll: {get: /doc}"
WEBHOOK = "webhook: {at: /hook, verify: none, match: {id: body.id}}"
PROXY = "proxy: {}"

SCHEMA = jsonschema.Draft202012Validator(json_schema())


def route_of(*keys: str, path: str = "/a/{id}") -> str:
    """A route as a file has it, one line for each key."""
    return "".join([f'  - path: "{path}"\n', *(f"    {line}\n" for line in keys)])


def file_of(*routes: str, more: str = "") -> str:
    return f"version: 1\nupstreams: {{api: http://localhost:8000}}\nroutes:\n{''.join(routes)}{more}"


def parse(*routes: str, more: str = "", **environ: str) -> Config:
    return parse_config(file_of(*routes, more=more), source="f.yaml", environ=environ)


def read(*keys: str, **environ: str) -> Route:
    """The only route, made of these keys."""
    return parse(route_of(*keys), **environ).routes[0]


def problems(*routes: str, more: str = "", **environ: str) -> list[Any]:
    with pytest.raises(ConfigError) as caught:
        parse(*routes, more=more, **environ)
    return list(caught.value.problems)


def told(*keys: str, **environ: str) -> list[Fault]:
    """What is wrong with the only route."""
    found = problems(route_of(*keys), **environ)
    return [(each.code, each.where.removeprefix("routes[0]").removeprefix("."), each.message) for each in found]


def stream(keys: str, get: str = "get: /log", **environ: str) -> Stream:
    found = read(f"stream: {{{get}, {keys}}}", **environ).stream
    assert found is not None
    return found


def task(keys: str) -> Task:
    found = read(f"task: {{get: /job, {keys}}}").task
    assert found is not None
    return found


def feed(keys: str) -> Feed:
    found = read(f'feed: {{get: "/feed?after={{cursor}}", next: last, {keys}}}').feed
    assert found is not None
    return found


def is_taken_by_the_schema(*keys: str, more: str = "") -> bool:
    return bool(SCHEMA.is_valid(yaml.safe_load(file_of(route_of(*keys), more=more))))


# What is left out


def test_a_stream_is_of_events_and_shared_where_nothing_else_is_said() -> None:
    route = read(STREAM)
    found = route.stream
    assert found is not None
    assert (route.kind, route.asks, route.opened_by, has_names(route)) == ("stream", found, ("GET",), False)
    assert (found.upstream, found.method, found.path, found.is_shared) == ("api", "GET", "/log", True)
    assert (found.format, found.forward, found.linger, found.first, found.batch) == ("sse", (), 30, "kept", 0)
    assert (found.data, found.event, found.id, found.done, found.when) == (None, None, None, None, None)
    assert found.reconnect is None


def test_a_task_has_every_default() -> None:
    route = read(TASK)
    found = route.task
    assert found is not None
    assert (route.kind, route.asks, route.opened_by, has_names(route)) == ("task", found, ("GET",), False)
    assert (found.upstream, found.get, found.start, found.is_shared) == ("api", "/job", None, True)
    assert (found.every, found.forward, found.linger, found.give_up) == (Every(1, 10), (), 30, None)
    assert (found.progress, found.done, found.failed, found.result) == (None, None, None, None)


def test_a_feed_begins_now_and_keeps_what_it_had() -> None:
    route = read(FEED)
    found = route.feed
    assert found is not None
    assert (route.kind, route.asks, route.opened_by, has_names(route)) == ("feed", found, ("GET",), False)
    assert (found.upstream, found.get, found.next.text) == ("api", "/feed?after={cursor}", "last")
    assert (found.items, found.start, found.every, found.long) == (None, "now", Every(5, 5), 0)
    assert (found.event, found.first, found.linger, found.forward, found.forgotten) == (None, "kept", 30, (), (410,))


def test_a_route_says_nothing_of_methods_and_templates_where_it_is_silent() -> None:
    route = read(STREAM)
    assert (route.methods, route.emit.template, route.emit.event, route.emit.data) == (None, None, None, None)


def test_what_is_kept_and_taken_has_a_size_where_nothing_is_said() -> None:
    config = parse(route_of(STREAM))
    assert config.limits.stream_body == config.routes[0].history.size == 16 * 1024 * 1024


# Values that are good


@pytest.mark.parametrize("format_", ["sse", "ndjson", "json-seq", "lines", "bytes", "websocket"])
def test_a_stream_is_made_of_one_of_six_things(format_: str) -> None:
    assert stream(f"format: {format_}").format == format_
    assert is_taken_by_the_schema(f"stream: {{get: /log, format: {format_}}}")


@pytest.mark.parametrize("first", ["nothing", "last", "kept"])
def test_a_newcomer_gets_one_of_three_things(first: str) -> None:
    assert stream(f"first: {first}").first == feed(f"first: {first}").first == first


@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete"])
def test_a_stream_is_asked_for_by_any_method(method: str) -> None:
    route = read(f'stream: {{{method}: "/log/{{id}}"}}')
    assert route.stream is not None
    assert (route.stream.method, route.stream.path) == (method.upper(), "/log/{id}")
    assert route.stream.is_shared is (method == "get")
    assert has_names(route) is (method != "get")
    assert route.opened_by == (("GET",) if method == "get" else ("POST",))


def test_the_keys_of_a_stream_are_read() -> None:
    found = stream(
        "upstream: api, format: ndjson, forward: [Authorization, x-tenant], data: text, event: 'log-{level}', id: n,"
        " done: end, when: \"level != 'debug'\", reconnect: true, linger: 0s, first: last, batch: 100ms"
    )
    assert (found.upstream, found.forward, found.event) == ("api", ("authorization", "x-tenant"), "log-{level}")
    assert found.data is not None
    assert found.id is not None
    assert found.done is not None
    assert found.when is not None
    assert found.data({"text": "a"}) == "a"
    assert (found.id({"n": 5}), found.done({"end": True})) == (5, True)
    assert [found.when({"level": level}) for level in ("debug", "info")] == [False, True]
    assert (found.reconnect, found.linger, found.first, found.batch) == (True, 0, "last", 0.1)


def test_the_keys_of_a_task_are_read() -> None:
    found = task(
        "upstream: api, start: {put: '/jobs/{id}'}, every: {min: 500ms, max: 5s}, forward: [cookie],"
        " progress: '{percent: p}', done: \"s == 'ok'\", failed: \"s == 'no'\", result: url, give_up: 2h, linger: 1m"
    )
    assert found.start is not None
    assert (found.upstream, found.start.method, found.start.path) == ("api", "PUT", "/jobs/{id}")
    assert (found.every, found.forward, found.give_up, found.linger) == (Every(0.5, 5), ("cookie",), 7200, 60)
    assert found.progress is not None
    assert found.done is not None
    assert found.failed is not None
    assert found.result is not None
    status = {"p": 5, "s": "ok", "url": "/x"}
    assert (found.progress(status), found.result(status)) == ({"percent": 5}, "/x")
    assert (found.done(status), found.failed(status)) == (True, False)


def test_the_keys_of_a_feed_are_read() -> None:
    found = feed(
        "upstream: api, items: data, start: beginning, every: {min: 1s, max: 1m}, long: 60s, event: '{type}',"
        " first: nothing, linger: 0s, forward: [authorization], forgotten: [410, 422]"
    )
    assert found.items is not None
    assert found.items({"data": [1]}) == [1]
    assert (found.upstream, found.start, found.every, found.long) == ("api", "beginning", Every(1, 60), 60)
    assert (found.event, found.first, found.linger) == ("{type}", "nothing", 0)
    assert (found.forward, found.forgotten) == (("authorization",), (410, 422))


def test_a_line_is_looked_at_as_a_whole() -> None:
    found = stream("format: lines, data: '@', when: \"starts_with(@, 'a')\", done: \"@ == 'end'\", event: 'line'")
    assert found.data is not None
    assert found.when is not None
    assert found.done is not None
    assert (found.data("abc"), found.when("abc"), found.when("bc"), found.done("end")) == ("abc", True, False, True)


@pytest.mark.parametrize("literal", ["`true`", "`false`", "null"])
def test_a_truth_is_written_as_jmespath_has_it(literal: str) -> None:
    assert stream(f'done: "end == {literal}"').done is not None


@pytest.mark.parametrize("start", ["now", "beginning", "2024-01-01T00:00:00Z", "0"])
def test_a_feed_begins_now_or_at_the_beginning_or_at_a_cursor(start: str) -> None:
    assert feed(f'start: "{start}"').start == start


@pytest.mark.parametrize(
    "get",
    [
        "{start.headers.location}",
        "{start.headers.x-status-url}",
        "{start.body.links.self}",
        "/jobs/{start.body.id}",
        "/jobs/{id}?token={start.headers.x-token}",
    ],
)
def test_the_status_of_a_job_is_where_the_answer_to_its_start_says(get: str) -> None:
    route = read(f'task: {{get: "{get}", start: {{post: /jobs}}}}')
    assert route.task is not None
    assert (route.task.get, route.task.is_shared, has_names(route)) == (get, False, True)
    assert is_taken_by_the_schema(f'task: {{get: "{get}", start: {{post: /jobs}}}}')


def test_a_stream_may_say_to_its_upstream_where_it_stopped() -> None:
    assert stream("format: lines", get='get: "/log?from={cursor}"').path == "/log?from={cursor}"


def test_what_forwards_the_viewers_headers_is_a_stream_for_each_request() -> None:
    route = read("stream: {get: /log, forward: [cookie]}")
    assert has_names(route)
    assert route.opened_by == ("GET",)


@pytest.mark.parametrize(
    ("keys", "opened_by"),
    [
        ((STREAM,), ("GET",)),
        ((OWN,), ("POST",)),
        (("stream: {delete: /log}",), ("POST",)),
        ((OWN, "methods: [GET]"), ("GET",)),
        ((OWN, "methods: [PUT, POST]"), ("PUT", "POST")),
        (("stream: {get: /log, forward: [cookie]}", "methods: [GET, POST]"), ("GET", "POST")),
        ((STREAM, "methods: [GET]"), ("GET",)),
        ((TASK,), ("GET",)),
        ((STARTED,), ("POST",)),
        ((STARTED, "methods: [DELETE, PATCH]"), ("DELETE", "PATCH")),
        (('task: {get: "/job/{start.body.id}", start: {get: /job}}',), ("GET",)),
        ((FEED,), ("GET",)),
        ((POLL, "methods: [GET]"), ("GET",)),
    ],
)
def test_a_stream_is_opened_by_the_methods_that_are_written_or_by_what_fits(
    keys: tuple[str, ...], opened_by: tuple[str, ...]
) -> None:
    assert read(*keys).opened_by == opened_by


MARKUP = "<turbo-stream action='append'>\n  <template>{n}</template>\n</turbo-stream>"


@pytest.mark.parametrize("source", [POLL, STREAM, OWN, TASK, STARTED, FEED, WEBHOOK])
def test_every_route_of_events_may_send_html(source: str) -> None:
    text = yaml.safe_dump(MARKUP, default_style='"').strip()
    assert read(source, f"emit: {{template: {text}}}").emit.template == MARKUP
    assert is_taken_by_the_schema(source, f"emit: {{template: {text}}}")


@pytest.mark.parametrize(
    ("source", "event"),
    [(POLL, "card-{n}"), (STREAM, "card-{n}"), (OWN, "card"), (TASK, "card-{n}"), (WEBHOOK, "card-{body.n}")],
)
def test_html_may_be_of_a_named_event(source: str, event: str) -> None:
    emit = read(source, f'emit: {{template: "<b>{{n}}</b>", event: "{event}"}}').emit
    assert (emit.template, emit.event) == ("<b>{n}</b>", event)


def test_braces_in_html_are_written_twice() -> None:
    assert read(POLL, 'emit: {template: "<style>b {{color: red}}</style>"}').emit.template is not None


@pytest.mark.parametrize("source", [FEED, WEBHOOK])
def test_html_may_be_made_of_a_part(source: str) -> None:
    emit = read(source, 'emit: {template: "<b>{n}</b>", data: body}').emit
    assert emit.data is not None
    assert emit.data({"body": 1}) == 1


def test_the_events_of_a_stream_may_be_named_in_emit() -> None:
    assert read(STREAM, 'emit: {event: "{type}"}').emit.event == "{type}"


@pytest.mark.parametrize(("size", "bytes_"), [("1B", 1), ("64KiB", 65536), ("2GiB", 2 * 1024**3)])
def test_a_history_has_a_size_of_its_own_or_that_of_the_defaults(size: str, bytes_: int) -> None:
    config = parse(
        route_of(STREAM, "history: {events: 5}", path="/a"),
        route_of(STREAM, "history: {size: 7B}", path="/b"),
        more=f"defaults: {{history: {{size: {size}}}}}\nlimits: {{stream_body: {size}}}\n",
    )
    assert [route.history.size for route in config.routes] == [bytes_, 7]
    assert [route.history.events for route in config.routes] == [5, 1000]
    assert config.limits.stream_body == bytes_


def test_values_may_come_from_the_environment() -> None:
    keys = ("stream:", "  get: ${PATH}", "  format: ${FORMAT}", "  linger: ${LINGER}", "  reconnect: ${AGAIN}")
    found = read(*keys, FORMAT="lines", LINGER="5s", AGAIN="false", PATH="/log").stream
    assert found is not None
    assert (found.path, found.format, found.linger, found.reconnect) == ("/log", "lines", 5, False)
    assert is_taken_by_the_schema("stream: {get: '${PATH}', format: '${FORMAT}', batch: '${BATCH}'}")
    assert is_taken_by_the_schema("task: {get: '${PATH}', every: '${EVERY}', give_up: '${TIME}'}")


# Values that are not


def of_stream(keys: str, get: str = "get: /log") -> str:
    return f"stream: {{{get}, {keys}}}"


def of_task(keys: str) -> str:
    return f"task: {{get: /job, {keys}}}"


def of_feed(keys: str) -> str:
    return f'feed: {{get: "/feed?after={{cursor}}", next: last, {keys}}}'


ONE_METHOD = "write one of get, post, put, patch, delete, with the path"
FIRST = "is not known here; write nothing, last or kept"
FORMATS = "is not known here; write sse, ndjson, json-seq, lines, bytes or websocket"
METHODS = "is not known here; write GET, POST, PUT, PATCH or DELETE"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        # a request
        ("stream: 5", ("type", "stream", "a number, not a mapping")),
        ("stream: {}", ("value", "stream", ONE_METHOD)),
        ("stream: {format: lines}", ("value", "stream", ONE_METHOD)),
        ("stream: {get: /a, post: /b}", ("value", "stream", ONE_METHOD)),
        ("stream: {get: log}", ("template", "stream.get", "a URL template is a path: let it begin with `/`")),
        ("stream: {post: //log}", ("template", "stream.post", "`//` at the beginning would name a host: write one `/`")),
        ("stream: {get: 5}", ("type", "stream.get", "a number, not text; put it in quotes")),
        # a stream
        (of_stream("format: xml"), ("value", "stream.format", f'"xml" {FORMATS}')),
        (of_stream("forward: cookie"), ("type", "stream.forward", "text, not a list")),
        (of_stream("forward: [Last-Event-ID]"), ("value", "stream.forward[0]", '"Last-Event-ID" cannot be forwarded; the gate sets it itself')),
        (of_stream("forward: [cookie, host]"), ("value", "stream.forward[1]", '"host" cannot be forwarded; the gate sets it itself')),
        (of_stream("data: 'a['"), ("expression", "stream.data", '"a[" is not JMESPath: it ends too early, at character 3')),
        (of_stream("event: '{'"), ("template", "stream.event", "`{` without its partner: write `{name}`, or `{{` for the brace")),
        (of_stream('event: "a\\nb"'), ("value", "stream.event", "holds a line end or NUL; write one line")),
        (of_stream("id: 'a b'"), ("expression", "stream.id", '"a b" is not JMESPath: `b` is not expected at character 3')),
        (of_stream("done: 'nope(a)'"), ("expression", "stream.done", '"nope(a)": `nope()` does not exist in JMESPath')),
        (of_stream("done: 'end == true'"), ("expression", "stream.done", '"end == true": `true` is a member\'s name in JMESPath; write `` `true` ``')),
        (of_stream("when: ''"), ("value", "stream.when", "empty; write some text")),
        (of_stream("reconnect: yes"), ("type", "stream.reconnect", '"yes" is not a boolean; write true or false')),
        (of_stream("linger: 5"), ("duration", "stream.linger", "5 is not a duration; write 5s")),
        (of_stream("first: all"), ("value", "stream.first", f'"all" {FIRST}')),
        (of_stream("batch: -1ms"), ("duration", "stream.batch", '"-1ms" is not a duration; write 500ms, 2s or 10m')),
        # a task
        ("task: {}", ("missing", "task", "`get` is missing")),
        ("task: {get: job}", ("template", "task.get", "a URL template is a path: let it begin with `/`")),
        ('task: {get: "{start.body}", start: {post: /a}}', ("template", "task.get", "a URL template is a path: let it begin with `/`")),
        ('task: {get: "{start.headers.location}/x", start: {post: /a}}', ("template", "task.get", "a URL template is a path: let it begin with `/`")),
        (of_task("start: /jobs"), ("type", "task.start", "text, not a mapping")),
        (of_task("start: {}"), ("value", "task.start", ONE_METHOD)),
        (of_task("start: {post: /a, put: /b}"), ("value", "task.start", ONE_METHOD)),
        (of_task("start: {post: a}"), ("template", "task.start.post", "a URL template is a path: let it begin with `/`")),
        (of_task("every: soon"), ("duration", "task.every", '"soon" is not a duration; write 500ms, 2s or {min: 2s, max: 30s}')),
        (of_task("every: {min: 5s, max: 1s}"), ("value", "task.every", "`min` is longer than `max`; swap them")),
        (of_task("forward: [range]"), ("value", "task.forward[0]", '"range" cannot be forwarded; the gate sets it itself')),
        (of_task("progress: '['"), ("expression", "task.progress", '"[" is not JMESPath: it ends too early, at character 2')),
        (of_task("done: '['"), ("expression", "task.done", '"[" is not JMESPath: it ends too early, at character 2')),
        (of_task("done: 'a || (b && false == c)'"), ("expression", "task.done", '"a || (b && false == c)": `false` is a member\'s name in JMESPath; write `` `false` ``')),
        (of_task("failed: '['"), ("expression", "task.failed", '"[" is not JMESPath: it ends too early, at character 2')),
        (of_task("result: '['"), ("expression", "task.result", '"[" is not JMESPath: it ends too early, at character 2')),
        (of_task("give_up: 0s"), ("duration", "task.give_up", '"0s" is too short; write a duration above zero')),
        (of_task("linger: long"), ("duration", "task.linger", '"long" is not a duration; write 500ms, 2s or 10m')),
        # a feed
        ('feed: {get: "/feed?after={cursor}"}', ("missing", "feed", "`next` is missing")),
        ("feed: {next: last}", ("missing", "feed", "`get` is missing")),
        ('feed: {get: "feed?after={cursor}", next: last}', ("template", "feed.get", "a URL template is a path: let it begin with `/`")),
        ('feed: {get: "/feed?after={cursor}", next: "["}', ("expression", "feed.next", '"[" is not JMESPath: it ends too early, at character 2')),
        (of_feed("items: '['"), ("expression", "feed.items", '"[" is not JMESPath: it ends too early, at character 2')),
        (of_feed("start: 5"), ("type", "feed.start", "a number, not text; put it in quotes")),
        (of_feed("start: ''"), ("value", "feed.start", "empty; write some text")),
        (of_feed('start: "a\\nb"'), ("value", "feed.start", "holds a line end or NUL; write one line")),
        (of_feed("every: 5"), ("duration", "feed.every", "5 is not a duration; write 5s")),
        (of_feed("long: ever"), ("duration", "feed.long", '"ever" is not a duration; write 500ms, 2s or 10m')),
        (of_feed("event: '}'"), ("template", "feed.event", "`}` without its partner: write `{name}`, or `}}` for the brace")),
        (of_feed("first: some"), ("value", "feed.first", f'"some" {FIRST}')),
        (of_feed("linger: -1s"), ("duration", "feed.linger", '"-1s" is not a duration; write 500ms, 2s or 10m')),
        (of_feed("forward: [content-length]"), ("value", "feed.forward[0]", '"content-length" cannot be forwarded; the gate sets it itself')),
        (of_feed("forgotten: 410"), ("type", "feed.forgotten", "a number, not a list")),
        (of_feed("forgotten: [410, 200]"), ("value", "feed.forgotten[1]", "200 cannot mean that a resource is gone; write statuses such as [404, 410]")),
    ],
)  # fmt: skip
def test_a_value_that_is_wrong_is_told_at_its_place(keys: str, expected: Fault) -> None:
    assert told(keys) == [expected]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ((OWN, "methods: POST"), ("type", "methods", "text, not a list")),
        ((OWN, "methods: []"), ("type", "methods", "empty; write at least one")),
        ((OWN, "methods: [POST, post]"), ("value", "methods[1]", f'"post" {METHODS}')),
        ((OWN, "methods: [HEAD]"), ("value", "methods[0]", f'"HEAD" {METHODS}')),
        ((POLL, "emit: {template: 5}"), ("type", "emit.template", "a number, not text; put it in quotes")),
        ((POLL, "emit: {template: ''}"), ("value", "emit.template", "empty; write some text")),
        ((POLL, 'emit: {template: "a\\r\\nb"}'), ("value", "emit.template", "holds CR or NUL; write lines that end with LF alone")),
        ((POLL, 'emit: {template: "a\\0b"}'), ("value", "emit.template", "holds CR or NUL; write lines that end with LF alone")),
        ((POLL, 'emit: {template: "<b>{</b>"}'), ("template", "emit.template", "`{` without its partner: write `{name}`, or `{{` for the brace")),
        ((POLL, 'emit: {template: "{a b}"}'), ("template", "emit.template", "`a b` is not a name; write letters, digits and `_`, with `.` between, such as `{query.status}`")),
        ((STREAM, "emit: {event: fault}"), ("value", "emit.event", "\"fault\" is a name of the gate's own; take another")),
        ((STREAM, "history: {size: 5}"), ("size", "history.size", "5 is not a size; write 5B")),
        ((STREAM, "history: {size: 0B}"), ("size", "history.size", '"0B" is too small; write a size above zero')),
        ((STREAM, "history: {size: 1MB}"), ("size", "history.size", '"1MB" is not a size; write 1MiB')),
    ],
)  # fmt: skip
def test_a_value_beside_the_source_that_is_wrong_is_told_at_its_place(keys: tuple[str, ...], expected: Fault) -> None:
    assert told(*keys) == [expected]


@pytest.mark.parametrize(
    ("value", "message"),
    [("5", "5 is not a size; write 5B"), ("0KiB", '"0KiB" is too small; write a size above zero')],
)
def test_a_limit_of_bodies_that_is_none_is_told(value: str, message: str) -> None:
    (problem,) = problems(route_of(STREAM), more=f"limits: {{stream_body: {value}}}\n")
    assert (problem.code, problem.where, problem.message) == ("size", "limits.stream_body", message)


def test_what_the_environment_gives_is_not_quoted() -> None:
    secret = "s3cret"
    for keys in ("get: '${X}'", "get: /log, format: '${X}'", "get: /log, data: '${X}['", "get: /log, event: '{${X} }'"):
        ((_, _, message),) = told(f"stream: {{{keys}}}", X=secret)
        assert secret not in message


@pytest.mark.parametrize(
    ("keys", "where", "misspelt", "hint"),
    [
        ("stream: {get: /log, frmat: lines}", "stream", "frmat", "did you mean `format`?"),
        ("stream: {get: /log, reconect: true}", "stream", "reconect", "did you mean `reconnect`?"),
        ("stream: {gte: /log}", "stream", "gte", "did you mean `get`?"),
        ("stream: {get: /log, conditional: true}", "stream", "conditional", ""),
        ("task: {get: /job, progres: p}", "task", "progres", "did you mean `progress`?"),
        ("task: {get: /job, giveup: 1h}", "task", "giveup", "did you mean `give_up`?"),
        ("task: {get: /job, strat: {post: /job}}", "task", "strat", "did you mean `start`?"),
        ("task: {get: /job, start: {pots: /job}}", "task.start", "pots", "did you mean `post`?"),
        ("task: {get: /job, start: {post: /job, body: x}}", "task.start", "body", ""),
        ("task: {get: /job, every: {mim: 1s, max: 5s}}", "task.every", "mim", "did you mean `min`?"),
        ('feed: {get: "/feed?after={cursor}", nxt: last}', "feed", "nxt", "did you mean `next`?"),
        (of_feed("item: data"), "feed", "item", "did you mean `items`?"),
        (of_feed("forgoten: [410]"), "feed", "forgoten", "did you mean `forgotten`?"),
        (of_feed("gone: [410]"), "feed", "gone", ""),
        ("straem: {get: /log}", "", "straem", "did you mean `stream`?"),
        ("taks: {get: /job}", "", "taks", "did you mean `task`?"),
        ("fed: {get: /x}", "", "fed", "did you mean `feed`?"),
    ],
)
def test_a_key_that_is_misspelt_is_told_with_the_nearest(keys: str, where: str, misspelt: str, hint: str) -> None:
    (problem,) = problems(route_of(keys))
    assert (problem.code, problem.where) == ("unknown-key", f"routes[0]{where and '.' + where}")
    assert (problem.message, problem.hint) == (f"`{misspelt}` is not a known key", hint)
    assert file_of(route_of(keys)).split("\n")[problem.line - 1][problem.column - 1 :].startswith(misspelt)


@pytest.mark.parametrize(
    ("keys", "more", "where", "misspelt", "hint"),
    [
        ((OWN, "method: [PUT]"), "", "routes[0]", "method", "did you mean `methods`?"),
        ((POLL, "emit: {templat: x}"), "", "routes[0].emit", "templat", "did you mean `template`?"),
        ((STREAM, "history: {sise: 1MiB}"), "", "routes[0].history", "sise", "did you mean `size`?"),
        ((STREAM,), "limits: {streambody: 1MiB}\n", "limits", "streambody", "did you mean `stream_body`?"),
    ],
)
def test_the_new_keys_elsewhere_are_the_nearest_too(
    keys: tuple[str, ...], more: str, where: str, misspelt: str, hint: str
) -> None:
    (problem,) = problems(route_of(*keys), more=more)
    assert (problem.code, problem.where, problem.hint) == ("unknown-key", where, hint)
    assert problem.message == f"`{misspelt}` is not a known key"


# What does not go together


NEEDS_A_STREAM_OF_ITS_OWN = (
    "`methods` is for routes whose requests open a stream of their own (`stream` and `task`); leave it out"
)
IS_SHARED = "all viewers share what is asked here, so `GET` is enough; leave `methods` out"
NAMES_A_TEMPLATE = "`event` names what a `template` makes; leave it out"
FOR_POLLS = "is for poll routes; leave it out"
NEEDS_JSON = "a `template` reads JSON; it needs `body: json`"
BELONGS_IN_THE_QUERY = "`{cursor}` has no value at first; make it a pair of the query, `after={cursor}`"
A_PAIR_OR_A_START = BELONGS_IN_THE_QUERY + ", or let `start` be a cursor"
HAS_NO_MEMBERS = "a line is text and has no members; the line itself is `@`, or write `format: ndjson`"
HAS_NO_CURSOR = "`{cursor}` is missing: without it each page would be the first; write it where the backend takes it"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        # sources
        ((), ("missing", "", "the route has no source; write one of poll, stream, task, feed, webhook, topics and proxy")),
        ((STREAM, POLL), ("value", "stream", "the route has `poll` already; keep one of them")),
        ((STREAM, TASK), ("value", "task", "the route has `stream` already; keep one of them")),
        ((TASK, FEED), ("value", "feed", "the route has `task` already; keep one of them")),
        ((FEED, WEBHOOK), ("value", "webhook", "the route has `feed` already; keep one of them")),
        ((STREAM, PROXY), ("value", "proxy", "the route has `stream` already; keep one of them")),
        # methods
        ((POLL, "methods: [POST]"), ("value", "methods", NEEDS_A_STREAM_OF_ITS_OWN)),
        ((FEED, "methods: [GET, POST]"), ("value", "methods", NEEDS_A_STREAM_OF_ITS_OWN)),
        ((WEBHOOK, "methods: [POST]"), ("value", "methods", NEEDS_A_STREAM_OF_ITS_OWN)),
        ((PROXY, "methods: [POST]"), ("value", "methods", "`methods` means nothing on a proxy route; leave it out")),
        ((STREAM, "methods: [POST]"), ("value", "methods", IS_SHARED)),
        ((TASK, "methods: [GET, POST]"), ("value", "methods", IS_SHARED)),
        # upstreams
        (("stream: {get: /log, upstream: ip}",), ("reference", "stream.upstream", "`ip` is no upstream; write one of `api`")),
        (("task: {get: /job, upstream: ip}",), ("reference", "task.upstream", "`ip` is no upstream; write one of `api`")),
        ((of_feed("upstream: ip"),), ("reference", "feed.upstream", "`ip` is no upstream; write one of `api`")),
        # a stream
        (("stream: {post: /ws, format: websocket}",), ("value", "stream.post", "a WebSocket is opened with `get`")),
        (("stream: {post: /log, reconnect: true}",), ("value", "stream.reconnect", "a POST is not sent twice; leave `reconnect` out")),
        (("stream: {delete: /log, reconnect: true}",), ("value", "stream.reconnect", "a DELETE is not sent twice; leave `reconnect` out")),
        *(
            ((f"stream: {{get: /log, format: bytes, {name}: x}}",), ("value", f"stream.{name}", f"`{name}` reads records; `bytes` has none"))
            for name in ("data", "event", "id", "done", "when")
        ),
        *(
            ((f"stream: {{get: /log, format: lines, {name}: a.b}}",), ("expression", f"stream.{name}", HAS_NO_MEMBERS))
            for name in ("data", "id", "done", "when")
        ),
        (("stream: {get: /log, event: a}", "emit: {event: b}"), ("value", "emit.event", "the stream has an `event` already; keep one of them")),
        # a task
        ((of_task('start: {post: "/a/{start.body.id}"}'),), ("template", "task.start.post", "`{start.body.id}` is not a parameter of the path")),
        # a feed
        (("feed: {get: /feed, next: last}",), ("template", "feed.get", HAS_NO_CURSOR)),
        (('feed: {get: "/feed/{cursor}", next: last}',), ("template", "feed.get", A_PAIR_OR_A_START)),
        (('feed: {get: "/feed/{cursor}", next: last, start: beginning}',), ("template", "feed.get", A_PAIR_OR_A_START)),
        # names in URLs
        (('stream: {get: "/log/{idd}"}',), ("template", "stream.get", "`{idd}` is not a parameter of the path")),
        (('stream: {put: "/log?s={query.s}"}',), ("template", "stream.put", "`{query.s}` is not declared; write it below `query` with a pattern")),
        (('stream: {get: "/log/{env.NOT}"}',), ("template", "stream.get", "`{env.NOT}`: the environment variable NOT is not set")),
        (('task: {get: "/job?after={cursor}"}',), ("template", "task.get", "`{cursor}` is not a parameter of the path")),
        (('task: {get: "/job/{star.body.id}", start: {post: /a}}',), ("template", "task.get", "`{star.body.id}` is not a parameter of the path")),
        (('feed: {get: "/feed/{idd}?after={cursor}", next: last}',), ("template", "feed.get", "`{idd}` is not a parameter of the path")),
        # emit
        ((STREAM, "emit: {as: patch}"), ("value", "emit.as", f"`as` {FOR_POLLS}")),
        ((TASK, "emit: {as: items}"), ("value", "emit.as", f"`as` {FOR_POLLS}")),
        ((FEED, "emit: {as: merge}"), ("value", "emit.as", f"`as` {FOR_POLLS}")),
        ((WEBHOOK, "emit: {as: merge}"), ("value", "emit.as", f"`as` {FOR_POLLS}")),
        ((STREAM, "emit: {names: {snapshot: a}}"), ("value", "emit.names", f"`names` {FOR_POLLS}")),
        ((STREAM, "emit: {data: a}"), ("value", "emit.data", "`data` is for webhook and feed routes; leave it out")),
        ((TASK, "emit: {data: a}"), ("value", "emit.data", "`data` is for webhook and feed routes; leave it out")),
        ((POLL, "emit: {data: a}"), ("value", "emit.data", "`data` is for webhook and feed routes; leave it out")),
        ((FEED, "emit: {event: a}"), ("value", "emit.event", "`event` is for poll, webhook, stream and task routes; leave it out")),
        ((POLL, "emit: {event: a}"), ("value", "emit.event", NAMES_A_TEMPLATE)),
        ((TASK, "emit: {event: a}"), ("value", "emit.event", NAMES_A_TEMPLATE)),
        ((POLL, "emit: {as: patch, template: x}"), ("value", "emit.template", "`as: patch` and a `template` do not go together; a template makes each event of the whole state")),
        ((POLL, "emit: {names: {snapshot: a}, template: x}"), ("value", "emit.names", "beside a `template`, `event` names the events")),
        (("poll: {get: /doc, body: text}", "emit: {template: x}"), ("value", "emit.template", NEEDS_JSON)),
        (("poll: {get: /doc, body: bytes}", "emit: {template: x}"), ("value", "emit.template", NEEDS_JSON)),
        ((PROXY, "emit: {}"), ("value", "emit", "`emit` means nothing on a proxy route; leave it out")),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told(keys: tuple[str, ...], expected: Fault) -> None:
    assert told(*keys) == [expected]


@pytest.mark.parametrize("source", [STREAM, OWN, TASK, STARTED, FEED])
def test_the_rest_of_a_path_is_for_proxies_only(source: str) -> None:
    (problem,) = problems(route_of(source, path="/{rest:path}"))
    assert (problem.code, problem.where) == ("template", "routes[0].path")


def test_the_place_that_is_told_is_the_key_or_the_value_that_is_wrong() -> None:
    def at(*keys: str) -> str:
        (problem,) = problems(route_of(*keys))
        return file_of(route_of(*keys)).split("\n")[problem.line - 1][problem.column - 1 :]

    assert at("stream: {get: /log, format: xml}") == "xml}"
    assert at("stream: {post: /ws, format: websocket}") == "post: /ws, format: websocket}"
    assert at("stream: {post: /log, reconnect: true}") == "reconnect: true}"
    assert at(OWN, "methods: [POST, HEAD]") == "HEAD]"
    assert at(STREAM, "methods: [POST]") == "methods: [POST]"
    assert at("feed: {get: /feed, next: last}") == "/feed, next: last}"
    assert at('task: {get: /job, start: {post: "/{x}"}}') == '"/{x}"}}'
    assert at("stream: {get: /a, post: /b}") == "{get: /a, post: /b}"
    assert at("task: {every: 1s}") == "task: {every: 1s}"
    assert at(POLL, "emit: {as: patch, template: x}") == "template: x}"


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        (('stream: {get: "/log/{idd}"}',), "did you mean `id`?"),
        (('stream: {get: "/log?from={cursr}"}',), "did you mean `cursor`?"),
        (('feed: {get: "/feed/{idd}?after={cursor}", next: last}',), "did you mean `id`?"),
        (("stream: {get: /log, upstream: apj}",), "did you mean `api`?"),
        ((OWN, "methods: [POTS]"), "did you mean `POST`?"),
    ],
)
def test_a_name_that_is_near_is_proposed(keys: tuple[str, ...], hint: str) -> None:
    assert [problem.hint for problem in problems(route_of(*keys))] == [hint]


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        (("stream: {get: /log, format: byte, data: x}",), ["stream.format"]),
        (("stream: {post: /log, format: websoket}",), ["stream.format"]),
        (("stream: {post: log}", "methods: [POST]"), ["stream.post"]),
        (("stream: {get: /log, frmat: bytes, data: x}",), ["stream"]),
        (("stream: 5", "emit: {event: x}"), ["stream"]),
        (("feed: {get: feed, next: last}",), ["feed.get"]),
        (("task: {get: job, start: {post: /a}}",), ["task.get"]),
        ((OWN, "methods: [POTS]"), ["methods[0]"]),
        (("poll: {get: /doc, body: txt}", "emit: {template: x}"), ["poll.body"]),
        ((POLL, "emit: {as: ptch, template: x}"), ["emit.as"]),
    ],
)
def test_a_fault_is_told_and_not_what_follows_from_it(keys: tuple[str, ...], where: list[str]) -> None:
    assert [place for _, place, _ in told(*keys)] == where


def test_one_fault_does_not_hide_another_in_the_same_mapping() -> None:
    found = told('feed: {get: feed, next: "[", evry: 1s, linger: soon, forgotten: [200]}', "methods: [POST]")
    assert sorted(place for _, place, _ in found) == [
        "feed",
        "feed.forgotten[0]",
        "feed.get",
        "feed.linger",
        "feed.next",
        "methods",
    ]


def test_a_request_that_is_wrong_does_not_hide_what_else_is() -> None:
    assert [place for _, place, _ in told("stream: {get: log, format: bytes, data: x}")] == [
        "stream.get",
        "stream.data",
    ]


@pytest.mark.parametrize(
    "get", ["/job/{start.body.id}", "{start.headers.location}", "/job/{start.body.id}/{start.body.n}"]
)
def test_a_start_that_is_missing_is_told_once(get: str) -> None:
    message = "`{start.…}` is the answer to `start`, which is missing"
    assert told(f'task: {{get: "{get}"}}') == [("template", "task.get", message)]


@pytest.mark.parametrize(("start", "where"), [("{}", "task.start"), ("{post: job}", "task.start.post")])
def test_a_start_that_is_broken_is_not_missing_as_well(start: str, where: str) -> None:
    assert [place for _, place, _ in told(f'task: {{get: "/job/{{start.body.id}}", start: {start}}}')] == [where]


def test_a_cursor_that_is_misspelt_is_told_once() -> None:
    (problem,) = problems(route_of('feed: {get: "/feed?after={cursr}", next: last}'))
    assert problem.hint == "did you mean `cursor`?"


def test_the_emit_of_a_proxy_route_is_told_once() -> None:
    assert [place for _, place, _ in told(PROXY, "emit: {template: x}")] == ["emit"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ('stream: {get: "/log/{cursor}", format: lines}', ("template", "stream.get", BELONGS_IN_THE_QUERY)),
        ('stream: {post: "/log?from=a{cursor}", format: lines}', ("template", "stream.post", BELONGS_IN_THE_QUERY)),
        ('stream: {get: "/log?{cursor}"}', ("template", "stream.get", BELONGS_IN_THE_QUERY)),
        ('feed: {get: "/feed?after=id:{cursor}", next: last}', ("template", "feed.get", A_PAIR_OR_A_START)),
    ],
)
def test_a_cursor_stands_where_it_can_be_left_out(keys: str, expected: Fault) -> None:
    assert told(keys) == [expected]


@pytest.mark.parametrize(
    "get", ["/feed?after={cursor}", "/feed?limit=5&after={cursor}", "/feed/{id}?after={cursor}&x={id}"]
)
def test_a_cursor_may_be_any_pair_of_the_query(get: str) -> None:
    assert read(f'feed: {{get: "{get}", next: last}}').feed
    assert read(f'stream: {{get: "{get}"}}').stream


@pytest.mark.parametrize("get", ["/feed/{cursor}", "/feed?after=id:{cursor}"])
def test_a_cursor_that_is_there_from_the_start_may_stand_anywhere(get: str) -> None:
    assert read(f'feed: {{get: "{get}", next: last, start: "0"}}').feed


@pytest.mark.parametrize("of", [of_stream, of_feed])
def test_the_gates_own_names_are_for_nobodys_events(of: Any) -> None:
    for name in ("error", "end", "reset", "fault", "recovered"):
        ((_, _, message),) = told(of(f"event: {name}"))
        assert message == f'"{name}" is a name of the gate\'s own; take another'


# Names of streams


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/chat", "/chat/s/{stream}"),
        ("/chat/", "/chat/s/{stream}"),
        ("/", "/s/{stream}"),
        ("/chat/{room}", "/chat/{room}/s/{stream}"),
        ("/chat/{stream}", "/chat/{stream}/s/{stream_}"),
        ("/{stream}/{stream_}", "/{stream}/{stream_}/s/{stream__}"),
    ],
)
def test_the_streams_of_single_requests_have_their_names_below_the_path(path: str, names: str) -> None:
    assert name_path(path) == names


OWN_ONES = [OWN, "stream: {get: /log, forward: [cookie]}", STARTED]


@pytest.mark.parametrize("own", OWN_ONES)
@pytest.mark.parametrize(
    ("path", "other"),
    [
        ("/x", "/x/s/{name}"),
        ("/x/", "/x/s/{name}"),
        ("/", "/s/{name}"),
        ("/x/{stream}", "/x/{a}/s/{b}"),
    ],
)
@pytest.mark.parametrize("source", [POLL, OWN, PROXY])
def test_what_would_answer_for_a_streams_name_is_told_at_both_lines(
    own: str, path: str, other: str, source: str
) -> None:
    found = problems(route_of(own, path=path), route_of(source, path=other))
    message = "matches the same requests as routes[%d] on line %d; one of them has to go"
    assert [(each.code, each.where, each.message) for each in found] == [
        ("route-conflict", "routes[0].path", message % (1, 6)),
        ("route-conflict", "routes[1].path", message % (0, 4)),
    ]


@pytest.mark.parametrize("own", OWN_ONES)
@pytest.mark.parametrize("other", ["/x/s/{name}/more", "/x/s", "/x/t/{name}", "/x/s/first"])
def test_other_paths_beside_the_names_of_streams_are_fine(own: str, other: str) -> None:
    assert len(parse(route_of(own, path="/x"), route_of(POLL, path=other)).routes) == 2


@pytest.mark.parametrize("shared", [STREAM, TASK, FEED, POLL])
def test_what_viewers_share_has_no_names_that_could_be_in_the_way(shared: str) -> None:
    assert len(parse(route_of(shared, path="/x"), route_of(POLL, path="/x/s/{name}")).routes) == 2


def test_two_routes_of_one_path_are_kept_apart_by_methods_that_are_written() -> None:
    routes = (route_of(OWN, "methods: [POST]", path="/x"), route_of(POLL, "methods: [GET]", path="/x"))
    assert [route.opened_by for route in parse(*routes).routes] == [("POST",), ("GET",)]


def test_two_routes_of_one_path_have_no_two_places_for_the_names_of_their_streams() -> None:
    found = problems(route_of(OWN, "methods: [POST]", path="/x"), route_of(OWN, "methods: [PUT]", path="/x"))
    assert [(each.code, each.line) for each in found] == [("route-conflict", 4), ("route-conflict", 7)]


def test_two_routes_of_one_path_that_are_opened_alike_are_told_at_both_lines() -> None:
    found = problems(route_of(OWN, "methods: [POST, PUT]", path="/x"), route_of(STARTED, "methods: [PUT]", path="/x"))
    assert [(each.code, each.line) for each in found] == [("route-conflict", 4), ("route-conflict", 7)]


@pytest.mark.parametrize("own", [OWN, STARTED])
def test_two_routes_of_one_path_are_kept_apart_by_the_methods_that_open_them(own: str) -> None:
    assert len(parse(route_of(own, path="/x"), route_of(POLL, path="/x")).routes) == 2


# Editors


@pytest.mark.parametrize(
    "keys",
    [
        (STREAM,),
        (OWN, "methods: [POST, PUT]"),
        (of_stream("format: ndjson, data: a, event: b, id: c, done: d, when: e, reconnect: false"),),
        (of_stream("linger: 0s, first: nothing, batch: 100ms, forward: [cookie], upstream: api"),),
        (STARTED,),
        (of_task("every: {min: 500ms, max: 5s}, progress: a, done: b, failed: c, result: d, give_up: 2h, linger: 1m"),),
        (FEED,),
        (of_feed("items: a, start: now, every: 1s, long: 1m, event: b, first: last, linger: 0s, forgotten: [410]"),),
        (POLL, "emit: {template: x, event: y}"),
        (STREAM, "history: {size: 1MiB}"),
    ],
)
def test_an_editor_takes_what_the_program_takes(keys: tuple[str, ...]) -> None:
    assert read(*keys)
    assert is_taken_by_the_schema(*keys)


@pytest.mark.parametrize(
    "keys",
    [
        ("stream: 5",),
        ("stream: {get: log}",),
        (of_stream("format: xml"),),
        (of_stream("first: all"),),
        (of_stream("batch: 5"),),
        (of_stream("reconnect: 'yes'"),),
        (of_stream("forward: cookie"),),
        (of_stream("frmat: lines"),),
        ("task: {every: 1s}",),
        ('task: {get: "{strat.headers.location}"}',),
        (of_task("every: {min: 1s}"),),
        (of_task("start: {body: x}"),),
        (of_task("give_up: long"),),
        ("feed: {get: /feed}",),
        (of_feed("forgotten: [200]"),),
        (of_feed("start: 5"),),
        (of_feed("gone: [410]"),),
        (OWN, "methods: [post]"),
        (OWN, "methods: []"),
        (POLL, "emit: {template: 5}"),
        (STREAM, "history: {size: 5}"),
    ],
)
def test_an_editor_refuses_what_the_program_refuses(keys: tuple[str, ...]) -> None:
    assert told(*keys)
    assert not is_taken_by_the_schema(*keys)


def test_an_editor_knows_the_limit_of_bodies() -> None:
    assert is_taken_by_the_schema(STREAM, more="limits: {stream_body: 1MiB}\n")
    assert not is_taken_by_the_schema(STREAM, more="limits: {stream_body: 5}\n")


def test_an_editor_is_told_the_defaults_as_a_file_has_them() -> None:
    defs = SCHEMA.schema["$defs"]
    assert defs["Stream"]["properties"]["format"]["default"] == "sse"
    assert defs["Stream"]["properties"]["batch"]["default"] == "0s"
    assert defs["Stream"]["properties"]["first"]["default"] == "kept"
    assert defs["Task"]["properties"]["linger"]["default"] == "30s"
    assert defs["Feed"]["properties"]["every"]["default"] == "5s"
    assert defs["Feed"]["properties"]["start"]["default"] == "now"
    assert defs["Feed"]["properties"]["forgotten"]["default"] == [410]
    assert defs["History"]["properties"]["size"]["default"] == "16MiB"
    assert defs["Limits"]["properties"]["stream_body"]["default"] == "16MiB"
