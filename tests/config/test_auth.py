"""Guards: what may be written of them, and what routes may say of the viewers they let in."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssegate.config import Config, parse_config
from ssegate.config.auth import Forward, Guard, HeaderClaims, Jwt
from ssegate.config.guards import algorithms_of
from ssegate.errors import ConfigError, Problem

KEY = Path(__file__).parent / "key.pem"

GUARDS = """
auth:
  keys: {keys: {values: {acme: k3y}}}
  nameless: {forward: {url: http://h/who}}
  asked: {forward: {url: http://h/who, identity: x-user, headers: [X-Groups]}}
  user: {jwt: {issuer: x, audience: y, keys: {secret: s}}}
"""
HEAD = "version: 1\nupstreams: {api: http://h}\n"


def parse(text: str, source: str = "f.yaml", **environ: str) -> Config:
    return parse_config(HEAD + text, source=source, environ=environ)


def problems(text: str, source: str = "f.yaml", **environ: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text, source, **environ)
    return caught.value.problems


def told(text: str, **environ: str) -> list[tuple[str, str, str]]:
    return [(each.code, each.where, each.message) for each in problems(text, **environ)]


def guard(text: str, source: str = "f.yaml", **environ: str) -> Guard:
    return parse(f"auth: {{g: {text}}}\nroutes: []\n", source, **environ).auth["g"]


def jwt(text: str, source: str = "f.yaml", **environ: str) -> Jwt:
    found = guard(f"{{jwt: {{issuer: x, audience: y, {text}}}}}", source, **environ).jwt
    assert found is not None
    return found


def forward(text: str) -> Forward:
    found = guard(f"{{forward: {{url: http://h/who{text}}}}}").forward
    assert found is not None
    return found


def routes(*routes: str, guards: str = GUARDS, more: str = "") -> str:
    return guards + more + "\nroutes:\n" + "".join(f"  - {{{each}}}\n" for each in routes)


# Guards


def test_a_guard_that_asks_has_its_defaults() -> None:
    settings = forward("")
    assert (settings.send, settings.identity, settings.claims) == (("authorization", "cookie"), None, None)
    assert (settings.cache, settings.recheck) == (30, 60)


def test_claims_of_headers_may_be_written_short() -> None:
    assert forward(", headers: [X-Groups]") == forward(", claims: {headers: [x-groups]}")
    assert forward(", headers: [X-Groups]").claims == HeaderClaims(headers=("x-groups",))
    assert forward(", claims: json").claims == "json"


def test_a_guard_that_reads_tokens_has_its_defaults() -> None:
    settings = jwt("keys: {secret: s}")
    assert (settings.audience, settings.from_, settings.at_expiry) == (("y",), ("header", "ticket"), "end")
    assert (settings.require, settings.identity({"sub": "u1"})) == (None, "u1")


def test_only_algorithms_of_the_kind_of_the_keys_count() -> None:
    assert algorithms_of(jwt("keys: {secret: s}")) == ("HS256",)
    assert algorithms_of(jwt("keys: http://h/jwks")) == ("RS256", "ES256", "EdDSA")
    assert algorithms_of(jwt("keys: {secret: [a, b]}, algorithms: [HS512]")) == ("HS512",)


def test_where_keys_are_may_be_written_short() -> None:
    assert jwt("keys: https://h/jwks.json").keys == jwt("keys: {url: https://h/jwks.json}").keys
    assert jwt(f"keys: 'file:{KEY}'").keys == jwt(f"keys: {{file: '{KEY}'}}").keys
    assert jwt("keys: '${K}'", K="https://h/jwks.json").keys.url == "https://h/jwks.json"


@pytest.mark.parametrize("keys", ["file:key.pem", "{file: key.pem}", "'file:${NAME}.pem'"])
def test_a_key_file_is_found_beside_the_configuration(keys: str) -> None:
    assert jwt(f"keys: {keys}", str(KEY.parent / "f.yaml"), NAME="key").keys.file == KEY


def test_secrets_of_guards_are_not_in_what_is_printed_of_a_configuration() -> None:
    text = "auth: {a: {keys: {values: {acme: hunter2}}}, b: {jwt: {issuer: x, audience: y, keys: {secret: hunter2}}}}\nroutes: []"
    assert "hunter2" not in repr(parse(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", ("value", "", "write one of forward, jwt and keys")),
        ("{keys: {values: {a: x}}, forward: {url: http://h/}}", ("value", "", "write one of forward, jwt and keys")),
        ("hunter2", ("type", "", "text, not a mapping")),
        # forward
        ("{forward: {url: /who}}", ("value", ".forward.url", '"/who" is not a URL of the web; write https://host/path, without user and `#`')),
        ("{forward: {url: http://h/, send: [host]}}", ("value", ".forward.send[0]", '"host" cannot be sent along; the gate sets it itself')),
        (
            "{forward: {url: http://h/, send: [x-forwarded-for]}}",
            ("value", ".forward.send[0]", '"x-forwarded-for" cannot be sent along; the gate sets it itself'),
        ),
        ("{forward: {url: http://h/, claims: xml}}", ("value", ".forward.claims", '"xml" is not known here; write json, or {headers: [x-groups]}')),
        ("{forward: {url: http://h/, claims: {headers: ['a b']}}}", ("value", ".forward.claims.headers[0]", '"a b" is not the name of a header')),
        ("{forward: {url: http://h/, headers: ['a b']}}", ("value", ".forward.headers[0]", '"a b" is not the name of a header')),
        ("{forward: {url: http://h/, headers: [a], claims: json}}", ("value", ".forward", "`claims` and `headers` say the same; keep one of them")),
        ("{forward: {url: http://h/, recheck: 0s}}", ("duration", ".forward.recheck", '"0s" is too short; write a duration above zero')),
        # tokens
        ("{jwt: {issuer: x, audience: [], keys: http://h/}}", ("type", ".jwt.audience", "a list, not text")),
        ("{jwt: {issuer: x, audience: y, keys: hunter2}}", ("value", ".jwt.keys", "names no keys; write the URL of a JWKS, file:/path, or {secret: …}")),
        ("{jwt: {issuer: x, audience: y, keys: {}}}", ("value", ".jwt.keys", "write one of url, file and secret")),
        ("{jwt: {issuer: x, audience: y, keys: {url: http://h/, secret: s}}}", ("value", ".jwt.keys", "write one of url, file and secret")),
        (
            "{jwt: {issuer: x, audience: y, keys: http://h/, algorithms: [RS256, HS256]}}",
            ("value", ".jwt.algorithms[1]", "HS256 is for a `secret`; leave it out, or write RS256, ES256, EdDSA"),
        ),
        (
            "{jwt: {issuer: x, audience: y, keys: {secret: s}, algorithms: [ES256]}}",
            ("value", ".jwt.algorithms[0]", "ES256 is for the keys of a url or file; with a `secret` write HS256, HS384 or HS512"),
        ),
        ("{jwt: {issuer: x, audience: y, keys: http://h/, require: }}", ("type", ".jwt.require", "empty; write text")),
        (
            "{jwt: {issuer: x, audience: y, keys: http://h/, from: [body]}}",
            ("value", ".jwt.from[0]", '"body" is no place for a token; write header, "header:NAME", "cookie:NAME" or ticket'),
        ),
        ("{jwt: {issuer: x, audience: y, keys: file:none.pem}}", ("keys", ".jwt.keys", '"none.pem" cannot be read: no such file or directory')),
        (
            "{jwt: {issuer: x, audience: y, keys: {file: '${SECRET}'}}}",
            ("keys", ".jwt.keys.file", "what `${…}` gave here cannot be read: no such file or directory"),
        ),
        # keys
        ("{keys: {values: {}}}", ("type", ".keys.values", "empty; write at least one")),
        ("{keys: {values: {a: 5}}}", ("type", ".keys.values.a", "a number, not text; put it in quotes")),
        (
            "{keys: {values: {a: hunter2, b: [x, hunter2]}}}",
            ("value", ".keys.values.b", "`a` has the same key, which would not tell who shows it; give each a key of its own"),
        ),
    ],
)  # fmt: skip
def test_a_guard_that_is_wrong_is_told(text: str, expected: tuple[str, str, str]) -> None:
    code, where, message = expected
    assert told(f"auth: {{g: {text}}}\nroutes: []\n", SECRET="hunter2") == [(code, f"auth.g{where}", message)]


def test_no_guard_is_called_none() -> None:
    message = "`auth: none` says that everybody may read, so no guard is called that; give it another name"
    assert told("auth: {none: {keys: {values: {a: x}}}}\nroutes: []\n") == [("value", "auth.none", message)]


def test_a_file_that_holds_no_key_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("hunter2")
    text = "auth:\n  g:\n    jwt: {issuer: x, audience: y, keys: file:key.pem}\nroutes: []\n"
    (problem,) = problems(text, str(tmp_path / "f.yaml"))
    assert (problem.code, problem.where, problem.line) == ("keys", "auth.g.jwt.keys", 5)
    assert problem.message == '"key.pem" is not a JWKS and not a PEM public key'


def test_tokens_need_a_library_and_the_message_says_how_to_come_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssegate.config.guards.find_spec", lambda name: None)
    text = f"auth: {{g: {{jwt: {{issuer: x, audience: y, keys: 'file:{KEY}'}}}}}}\nroutes: []\n"
    message = "tokens need PyJWT, which is not installed; run: pip install 'ssegate[jwt]'"
    assert told(text) == [("missing", "auth.g.jwt", message)]
    assert parse("auth: {g: {keys: {values: {a: x}}}}\nroutes: []\n").auth


# Which guard stands before a route


def test_defaults_stand_before_routes_with_events_that_say_nothing() -> None:
    config = parse(
        routes(
            "path: /a, poll: {get: /a}",
            "path: /b, poll: {get: /b}, auth: [asked, keys]",
            "path: /c, poll: {get: /c}, auth: none",
            "path: /live, topics: [/a, /b]",
            "path: /p, proxy: {}",
            "path: /q, proxy: {}, auth: keys, allow: claims.x",
            more="defaults: {auth: user}",
        )
    )
    assert [route.auth for route in config.routes] == [("user",), ("asked", "keys"), (), ("user",), None, ("keys",)]


def test_a_route_that_says_nothing_is_not_the_same_as_one_that_is_public() -> None:
    silent, public = parse(routes("path: /a, poll: {get: /a}", "path: /b, auth: none, poll: {get: /b}")).routes
    assert (silent.auth, public.auth) == (None, ())


def test_a_rule_needs_no_guard() -> None:
    allow = parse(routes("path: /a, poll: {get: /a}, allow: headers.x", guards="")).routes[0].allow
    assert allow is not None
    assert allow({"headers": {"x": "1"}}) == "1"


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ("usr", ("reference", "", "`usr` is no guard; write one of `keys`, `nameless`, `asked`, `user`")),
        ("[user, usr]", ("reference", "[1]", "`usr` is no guard; write one of `keys`, `nameless`, `asked`, `user`")),
        ("'${SECRET}'", ("reference", "", "what `${…}` gave here is no guard; write one of `keys`, `nameless`, `asked`, `user`")),
        ("[user, keys, user]", ("value", "[2]", "`user` stands here twice; leave one out")),
        ("[user, none]", ("value", "", "`none` lets everybody in, so it stands alone; write it alone, or leave it out")),
        ("[]", ("value", "", "empty; write the name of a guard, or none")),
        ("", ("type", "", "empty; write the name of a guard, or none")),
        ("true", ("type", "", "true or false, not text; put it in quotes")),
    ],
)  # fmt: skip
def test_a_name_that_is_no_guard_is_told(auth: str, expected: tuple[str, str, str]) -> None:
    code, place, message = expected
    on_route = told(routes(f"path: /a, poll: {{get: /a}}, auth: {auth}"), SECRET="hunter2")
    assert on_route == [(code, f"routes[0].auth{place}", message)]
    in_defaults = told(routes("path: /a, poll: {get: /a}", more=f"defaults: {{auth: {auth}}}"), SECRET="hunter2")
    assert in_defaults == [(code, f"defaults.auth{place}", message)]


def test_the_nearest_guard_is_proposed() -> None:
    assert problems(routes("path: /a, poll: {get: /a}, auth: usr"))[0].hint == "did you mean `user`?"


def test_without_guards_the_message_says_where_they_are_written() -> None:
    message = "`user` is no guard; there is none; write `auth` at the top"
    assert told(routes("path: /a, poll: {get: /a}, auth: user", guards="")) == [
        ("reference", "routes[0].auth", message)
    ]


# What routes may name of viewers


@pytest.mark.parametrize(
    "route",
    [
        "path: /a, auth: user, poll: {get: '/{identity}/{claims.org.id}?x={claims.x}'}",
        "path: /a, auth: [user, asked], poll: {get: '/{identity}'}",
        "path: /a, auth: [user, asked], poll: {get: '/{claims.x-groups}'}",
        "path: /a, auth: keys, stream: {get: '/{identity}'}",
        "path: /a, auth: user, feed: {get: '/{identity}?after={cursor}', next: n}",
        "path: /a, auth: user, task: {start: {post: '/{identity}'}, get: '/{claims.x}/{start.body.id}'}",
        "path: /a, auth: user, webhook: {at: /h, verify: none, match: {identity: body.to, claims.org: body.org}}",
        "path: '/a/{identity}', poll: {get: '/{identity}'}",
        "path: '/a/{identity}', auth: none, poll: {get: '/{identity}'}",
        "path: /a, poll: {get: '/?t={query.ticket}'}, query: {ticket: x}",
    ],
)
def test_what_is_known_of_a_viewer_may_be_named(route: str) -> None:
    assert parse(routes(route)).routes


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("path: /a, poll: {get: '/{identity}'}", ("poll.get", "`{identity}`: no guard finds out who the viewer is; name one by `auth`")),
        ("path: /a, auth: none, poll: {get: '/{claims.x}'}", ("poll.get", "`{claims.x}`: no guard finds out who the viewer is; name one by `auth`")),
        (
            "path: /a, auth: [user, nameless], poll: {get: '/{identity}'}",
            ("poll.get", "`{identity}`: guard `nameless` names nobody; let its `forward` say in which header: `identity`"),
        ),
        (
            "path: /a, auth: nameless, stream: {get: '/{claims.x}'}",
            ("stream.get", "`{claims.x}`: guard `nameless` has no claims; let its `forward` say where they are: `claims`"),
        ),
        (
            "path: /a, auth: keys, task: {start: {post: '/{claims.x}'}, get: '/{start.body.id}'}",
            ("task.start.post", "`{claims.x}`: guard `keys` knows keys, which have no claims; leave it out"),
        ),
        (
            "path: /a, auth: asked, poll: {get: '/{claims.x-group}'}",
            ("poll.get", "`{claims.x-group}`: guard `asked` takes no such claim out of its answer; add it to `claims`"),
        ),
        ("path: /a, auth: user, poll: {get: '/{claims}'}", ("poll.get", "`{claims}` is not a parameter of the path")),
        ("path: /a, auth: user, poll: {get: '/{idenity}'}", ("poll.get", "`{idenity}` is not a parameter of the path")),
        (
            "path: /a, auth: nameless, poll: {get: '/${NAMED}'}",
            ("poll.get", "what it names of the viewer: guard `nameless` names nobody; let its `forward` say in which header: `identity`"),
        ),
        ("path: '/a/{identity}', auth: user, poll: {get: '/{identity}'}", ("path", "`{identity}` is who the viewer is; give the parameter another name")),
        (
            "path: /a, auth: user, poll: {get: /a}, query: {ticket: x}",
            ("query.ticket", "`ticket` is taken out of the query as what opens a stream once; take another name"),
        ),
        (
            "path: /a, webhook: {at: /h, verify: none, match: {identity: body.to}}",
            ("webhook.match.identity", "`identity`: no guard finds out who the viewer is; name one by `auth`"),
        ),
        (
            "path: /a, auth: keys, webhook: {at: /h, verify: none, match: {claims.x: body.to}}",
            ("webhook.match.claims.x", "`claims.x`: guard `keys` knows keys, which have no claims; leave it out"),
        ),
        ("path: /a, auth: user, webhook: {at: /h, verify: none, match: {claims.: body.to}}", ("webhook.match.claims.", "`claims.` is not a parameter of the path")),
    ],
)  # fmt: skip
def test_what_no_guard_tells_of_a_viewer_is_told(route: str, expected: tuple[str, str]) -> None:
    where, message = expected
    found = told(routes(route), NAMED="{identity}")
    assert [(where, message) for _, where, message in found] == [(f"routes[0].{where}", message)]


def test_the_nearest_name_is_proposed() -> None:
    wrong = ("poll: {get: '/{idenity}'}", "webhook: {at: /h, verify: none, match: {idntity: body.to}}")
    for source in wrong:
        assert problems(routes(f"path: /a, auth: user, {source}"))[0].hint == "did you mean `identity`?"
    asked = problems(routes("path: /a, auth: asked, poll: {get: '/{claims.x-group}'}"))
    assert asked[0].hint == "did you mean `x-groups`?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (routes("path: /a, auth: usr, poll: {get: '/{identity}'}"), ["routes[0].auth"]),
        (routes("path: /a, auth: [], poll: {get: '/{identity}'}"), ["routes[0].auth"]),
        (routes("path: /a, poll: {get: '/{identity}'}", more="defaults: {auth: usr}"), ["defaults.auth"]),
        (routes("path: /a, auth: g, poll: {get: '/{identity}'}", guards="auth: {g: {forward: {}}}"), ["auth.g.forward"]),
        (routes("path: /a, auth: g, poll: {get: '/{identity}'}", guards="auth: 5"), ["auth"]),
        (routes("path: /live, topics: ['/b']", "path: b, poll: {get: /b}"), ["routes[1].path"]),
    ],
)  # fmt: skip
def test_a_fault_is_told_and_not_what_follows_from_it(text: str, expected: list[str]) -> None:
    assert [where for _, where, _ in told(text)] == expected


# What upstreams are told of viewers


def upstream(headers: str) -> str:
    return f"version: 1\nupstreams: {{api: {{url: http://h, headers: {headers}}}}}\nroutes: []\n"


def test_a_header_that_names_the_viewer_is_a_template_and_others_are_not() -> None:
    headers = '{A: "{identity}", B: "{env.SET}/{claims.org.id}", C: "{x} {", D: "{{}}", E: "${SET}", F: "${G}"}'
    api = parse_config(upstream(headers), source="f", environ={"SET": "s", "G": "x-{identity}"}).upstreams["api"]
    assert api.personal_headers == {"A": "{identity}", "B": "{env.SET}/{claims.org.id}", "F": "x-{identity}"}
    assert api.plain_headers == {"C": "{x} {", "D": "{{}}", "E": "s"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hunter2 {identity} {x}", "names the viewer, so it is a template"),
        ("hunter2 {identity} {", "names the viewer, so it is a template"),
        ("hunter2 {claims.}", "names the viewer, so it is a template"),
        ("hunter2 {claims.x} {query.x}", "names the viewer, so it is a template"),
        ("hunter2 {claims.x} {env.NOT}", "the environment variable NOT that it names is not set"),
        ("${TEXT}", "a variable that it names is not set"),
    ],
)
def test_a_template_of_a_header_that_is_broken_is_told_and_not_quoted(value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(upstream(f'{{X: "{value}"}}'), source="f", environ={"TEXT": "{identity}{env.hunter2}"})
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("template", "upstreams.api.headers.X")
    assert problem.message.startswith(message)
    assert "hunter2" not in problem.message


# Routes that join topics

JOINED = (
    "path: '/x/{id}', poll: {get: '/{id}'}",
    "path: /w, webhook: {at: /h, verify: none}",
    "path: /s, stream: {get: /s}",
)


def test_routes_whose_topics_are_shared_may_be_joined() -> None:
    config = parse(routes("path: /live, topics: ['/x/{id}', /w, /s], retry: 1s, heartbeat: 2s, max_age: 1h", *JOINED))
    assert (config.routes[0].kind, config.routes[0].opened_by) == ("topics", ("GET",))


def test_of_routes_with_the_same_path_the_one_with_events_is_joined() -> None:
    assert parse(
        routes("path: /a, proxy: {}", "path: /a, negotiate: true, poll: {get: /a}", "path: /live, topics: [/a]")
    )


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("path: /live, topics: []", ("topics", "empty; write at least one")),
        ("path: /live, topics: /s", ("topics", "text, not a list")),
        ("path: '/live/{id}', topics: [/s]", ("path", "a joined route's path has no parameters: the topics themselves are named in the query; leave them out")),
        ("path: /live, topics: [/s], query: {a: b}", ("query", "`query` means nothing on a route that joins topics; leave it out")),
        ("path: /live, topics: [/s], negotiate: true", ("negotiate", "`negotiate` means nothing on a route that joins topics; leave it out")),
        ("path: /live, topics: [/s], methods: [POST]", ("methods", "`methods` means nothing on a route that joins topics; leave it out")),
        ("path: /live, topics: [/s], emit: {event: x}", ("emit", "`emit` means nothing on a route that joins topics; leave it out")),
        ("path: /live, topics: [/s], history: {events: 5}", ("history", "`history` means nothing on a route that joins topics; leave it out")),
        ("path: /live, topics: [/s], params: {x: y}", ("params.x", "`x` is not a parameter of the path")),
        ("path: /live, topics: [/s], poll: {get: /a}", ("topics", "the route has `poll` already; keep one of them")),
        ("path: /live, topics: [/s], proxy: {}", ("proxy", "the route has `topics` already; keep one of them")),
        ("path: /live, topics: [/s, /s]", ("topics[1]", "`/s` stands here twice; leave one out")),
        ("path: /live, topics: ['/x/{no}']", ("topics[0]", "`/x/{no}` is the path of no route; write one of `/x/{id}`, `/w`, `/s`, as it stands there")),
        ("path: /live, topics: ['/${SECRET}']", ("topics[0]", "what `${…}` gave here is the path of no route; write one of `/x/{id}`, `/w`, `/s`, as it stands there")),
        ("path: /live, topics: [/live]", ("topics[0]", "`/live` is this route itself; name others")),
        ("path: /live, topics: [/p]", ("topics[0]", "`/p` passes requests to the upstream and has no topics; name a route with events")),
        ("path: /live, topics: [/l]", ("topics[0]", "`/l` joins topics itself; name the routes that it joins")),
        ("path: /live, topics: [/own]", ("topics[0]", "`/own` opens a stream of its own for each request, which nobody joins; leave it out")),
        ("path: /live, topics: [/job]", ("topics[0]", "`/job` opens a stream of its own for each request, which nobody joins; leave it out")),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_told(route: str, expected: tuple[str, str]) -> None:
    others = (
        "path: /p, proxy: {}",
        "path: /l, topics: [/s]",
        "path: /own, stream: {post: /own}",
        "path: /job, task: {start: {post: /job}, get: '/{start.body.id}'}",
    )
    where, message = expected
    found = told(routes(route, *JOINED, *others), SECRET="hunter2")
    assert [(where, message) for _, where, message in found] == [(f"routes[0].{where}", message)]


def test_the_nearest_path_is_proposed() -> None:
    (problem,) = problems(routes("path: /live, topics: ['/x/{idd}']", *JOINED))
    assert problem.hint == "did you mean `/x/{id}`?"
