"""Which route answers."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ssegate.core.routing import (
    Entry,
    PathPattern,
    Router,
    accepted_query,
    conflicts,
    names_event_stream,
    parse_query,
    split_path,
)
from ssegate.core.shape import EVENT_STREAM, choose

READ = frozenset({"GET", "HEAD", "OPTIONS"})
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
STREAM = "text/event-stream"


def entry(text: str, *, methods: frozenset[str] | None = None, negotiate: bool = False, **params: str) -> Entry[str]:
    """Build an entry whose target is its path."""
    patterns = {name: re.compile(pattern) for name, pattern in params.items()}
    name = f"{text} negotiated" if negotiate else text
    return Entry(PathPattern(text, allow_rest=True), name, patterns, negotiate=negotiate, methods=methods)


def router(*entries: Entry[str] | str) -> Router[str]:
    return Router([entry(each) if isinstance(each, str) else each for each in entries])


def answering(routes: Router[str], path: bytes, method: str = "GET", accept: str | None = None) -> str | None:
    found = routes.match(method, path, accept)
    return found and found.target


# Patterns


def test_a_pattern_tells_its_parameters():
    pattern = PathPattern("/orders/{id}/items/{item_2}")
    assert pattern.parameters == ("id", "item_2")
    assert not pattern.has_rest
    assert pattern == PathPattern("/orders/{id}/items/{item_2}")
    rest = PathPattern("/{tenant}/{rest:path}", allow_rest=True)
    assert rest.parameters == ("tenant", "rest")
    assert rest.has_rest
    assert rest != pattern


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "begin with `/`"),
        ("orders", "begin with `/`"),
        ("{id}", "begin with `/`"),
        ("/a?b=1", "no query"),
        ("/a#b", "no fragment"),
        ("/a//b", "empty segment"),
        ("//a", "empty segment"),
        ("/a//", "empty segment"),
        ("/a/x{id}", "whole segment"),
        ("/a/{id}.json", "whole segment"),
        ("/a/{id}{id2}", "whole segment"),
        ("/a/{id", "whole segment"),
        ("/a/id}", "whole segment"),
        ("/a/{}", "parameter's name"),
        ("/a/{1d}", "parameter's name"),
        ("/a/{a-b}", "parameter's name"),
        ("/a/{a.b}", "parameter's name"),
        ("/a/{:path}", "parameter's name"),
        ("/a/{id:[0-9]+}", "stands in `params`"),
        ("/a/{id}/b/{id}", "stands twice"),
        ("/{rest:path}/a", "last segment"),
        ("/{rest:path}/", "last segment"),
        ("/a/./b", "dot segment"),
        ("/a/..", "dot segment"),
        ("/a/%2E%2e", "dot segment"),
        ("/a/%252e", "dot segment"),
        ("/a%2fb", "hides a separator"),
        ("/a%5Cb", "hides a separator"),
        ("/a%00b", "hides a separator"),
        ("/a%ffb", "no text"),
        ("/a%zz", "write `%25`"),
        ("/100%", "write `%25`"),
        ("/a b", "space"),
        ("/a\\b", "space"),
        ("/a\nb", "space"),
        ("/a;v=1", "`;`"),
    ],
)
def test_what_is_no_pattern_is_refused_with_the_fact(text, fact):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message differs by case and is compared below
        PathPattern(text, allow_rest=True)
    assert fact in str(error.value)


def test_a_rest_stands_only_where_it_is_allowed():
    with pytest.raises(ValueError, match="proxy routes only"):
        PathPattern("/a/{rest:path}")


def test_a_pattern_of_a_parameter_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="`ix` is not a parameter"):
        entry("/orders/{id}", ix="[0-9]+")


# Specificity


def test_a_literal_stands_before_a_parameter_before_the_rest_segment_by_segment():
    paths = ["/{rest:path}", "/{a}/{b}", "/{a}/x", "/o/{rest:path}", "/o/{b}", "/o/x", "/o/x/{rest:path}", "/{a}/x/{c}"]
    for routes in (router(*paths), router(*reversed(paths))):
        assert answering(routes, b"/o/x") == "/o/x"
        assert answering(routes, b"/o/y") == "/o/{b}"
        assert answering(routes, b"/o/y/z") == "/o/{rest:path}"
        assert answering(routes, b"/o/x/z") == "/o/x/{rest:path}"
        assert answering(routes, b"/p/x") == "/{a}/x"
        assert answering(routes, b"/p/y") == "/{a}/{b}"
        assert answering(routes, b"/p/x/z") == "/{a}/x/{c}"
        assert answering(routes, b"/p") == "/{rest:path}"
        assert answering(routes, b"/") == "/{rest:path}"


def test_a_literal_that_leads_nowhere_is_left_again():
    routes = router("/a/b/c", "/{x}/b/d", "/{x}/{y}/e")
    assert answering(routes, b"/a/b/d") == "/{x}/b/d"
    assert answering(routes, b"/a/b/e") == "/{x}/{y}/e"
    assert answering(routes, b"/a/b/f") is None


def test_a_slash_at_the_end_counts():
    routes = router("/orders", "/items/", "/files/{rest:path}")
    assert answering(routes, b"/orders") == "/orders"
    assert answering(routes, b"/orders/") is None
    assert answering(routes, b"/items") is None
    assert answering(routes, b"/items/") == "/items/"
    assert answering(routes, b"/files") is None
    assert answering(routes, b"/files/") == "/files/{rest:path}"


def test_a_parameter_that_breaks_its_pattern_leaves_the_request_to_the_next():
    routes = router(entry("/orders/{id}", id="[0-9]{1,3}"), entry("/{kind}/{id}", kind="orders|items"), "/{rest:path}")
    assert answering(routes, b"/orders/123") == "/orders/{id}"
    assert answering(routes, b"/orders/1234") == "/{kind}/{id}"
    assert answering(routes, b"/orders/12%0a3") is None
    assert answering(routes, b"/users/12") == "/{rest:path}"
    assert answering(router(entry("/orders/{id}", id="[0-9]+")), b"/orders/x") is None


def test_a_method_that_a_route_has_not_falls_through_to_the_next():
    routes = router(entry("/orders/{id}", methods=READ), "/{rest:path}")
    assert answering(routes, b"/orders/17", "GET") == "/orders/{id}"
    assert answering(routes, b"/orders/17", "POST") == "/{rest:path}"
    assert answering(routes, b"/orders/17", "get") == "/{rest:path}"


def test_two_routes_of_one_path_share_it_by_their_methods():
    routes = router(
        entry("/chat", methods=READ), Entry(PathPattern("/chat"), "post", methods=frozenset({"POST", "OPTIONS"}))
    )
    assert answering(routes, b"/chat", "GET") == "/chat"
    assert answering(routes, b"/chat", "POST") == "post"


def test_the_methods_of_a_path_are_told_for_405():
    routes = router(
        entry("/orders/{id}", methods=READ), entry("/orders/new", methods=frozenset({"POST"})), "/files/{x}"
    )
    assert routes.match("DELETE", b"/orders/17", None) is None
    assert routes.allowed(b"/orders/17") == READ
    assert routes.allowed(b"/orders/new") == READ | {"POST"}
    assert routes.allowed(b"/users") == frozenset()
    assert routes.allowed(b"/orders/..") == frozenset()
    assert routes.allowed(b"no path") == frozenset()


def test_a_router_without_entries_answers_nothing():
    assert router().match("GET", b"/", None) is None
    assert router().match("GET", b"/a/b%20c", None) is None
    assert router().allowed(b"/") == frozenset()


# Accept


def test_a_negotiated_route_answers_only_who_names_the_event_stream():
    for order in (1, -1):
        both = [entry("/orders/{id}", methods=READ, negotiate=True), entry("/orders/{id}")]
        routes = router(*both[::order])
        assert answering(routes, b"/orders/17", accept=STREAM) == "/orders/{id} negotiated"
        assert (
            answering(routes, b"/orders/17", accept="text/html, Text/Event-Stream;q=0.5") == "/orders/{id} negotiated"
        )
        for accept in (None, "", "*/*", "text/*", BROWSER, "text/event-stream;q=0", "application/json"):
            assert answering(routes, b"/orders/17", accept=accept) == "/orders/{id}"


def test_a_negotiated_route_alone_is_allowed_but_not_found_without_the_accept():
    routes = router(entry("/orders/{id}", methods=READ, negotiate=True))
    assert answering(routes, b"/orders/17", accept="*/*") is None
    assert routes.allowed(b"/orders/17") == READ


@pytest.mark.parametrize(
    ("accept", "accepts", "names"),
    [
        (None, True, False),
        ("", True, False),
        (" ", True, False),
        ("*/*", True, False),
        ("text/*", True, False),
        ("text/event-stream", True, True),
        ("TEXT/EVENT-STREAM", True, True),
        (" text/event-stream ; charset=utf-8", True, True),
        ("text/event-stream, text/html, application/json", True, True),
        ("application/json,text/event-stream;q=0.001", True, True),
        ("text/event-stream;q=0", False, False),
        ("text/event-stream;q=0.000, */*", False, False),
        ("text/event-stream; Q=0", False, False),
        ("text/event-stream;q=0, text/event-stream", True, True),
        ("text/event-stream;q=none", True, True),
        ("text/event-stream;q=nan", True, True),
        ("*/*;q=0", False, False),
        ("text/*;q=0, */*", False, False),
        ("text/*, */*;q=0", True, False),
        ("application/json", False, False),
        ("application/x-text/event-stream", False, False),
        ("text/event-streams", False, False),
        (BROWSER, True, False),
        (",;,=", False, False),
    ],
)
def test_accept_is_read_as_rfc_9110_says(accept, accepts, names):
    assert (choose(accept, [EVENT_STREAM]) is not None) is accepts
    assert names_event_stream(accept) is names


@given(st.text() | st.lists(st.sampled_from(["text/event-stream", "*/*", "q=0", ";", ",", '"', " "])).map("".join))
def test_who_names_the_event_stream_accepts_it_whatever_the_header(accept):
    assert choose(accept, [EVENT_STREAM]) is not None or not names_event_stream(accept)


# What a path means


def test_parameters_come_decoded_and_the_rest_as_it_came():
    routes = router("/orders/{id}", "/files/{tenant}/{rest:path}")
    assert routes.match("GET", b"/orders/caf%C3%a9%20%2B+1", None) == ("/orders/{id}", {"id": "café ++1"})
    found = routes.match("GET", b"/files/t%31/a%20b/c/%zz", None)
    assert found is not None
    assert found.params == {"tenant": "t1", "rest": "a%20b/c/%zz"}


def test_an_encoded_letter_is_that_letter():
    routes = router("/admin", "/caf%c3%a9", "/naïve", "/{rest:path}")
    assert answering(routes, b"/%61dmi%6E") == "/admin"
    assert answering(routes, b"/Admin") == "/{rest:path}"
    assert answering(routes, b"/caf%C3%A9") == "/caf%c3%a9"
    assert answering(routes, b"/na%C3%AFve") == "/naïve"
    assert answering(routes, b"/%2561dmin") == "/{rest:path}"


NEVER_A_PARAMETER = [
    b".", b"..", b"%2e", b"%2e%2E", b".%2e", b"%252e%252e", b"a%2fb", b"a%2Fb", b"a%252fb", b"a%5cb", b"a%00b", b"%0a", b"a%7f",
    b"a%C2%85", b"a%ff", b"%c3", b"%ed%a0%80", b"%zz", b"%", b"a%2", b"a" * 257, b"%61" * 257,
]  # fmt: skip


@pytest.mark.parametrize("value", NEVER_A_PARAMETER)
def test_what_a_parameter_never_is_does_not_slip_past_the_route_to_a_proxy(value):
    path = b"/orders/" + value + b"/events"
    for routes in (
        router("/orders/{id}/events"),
        router(entry("/orders/{id}/events", methods=READ), "/{rest:path}"),
        router(entry("/orders/{id}/events", methods=READ, id=".*"), "/orders/{rest:path}"),
    ):
        assert answering(routes, path) is None


def test_a_parameter_is_never_empty_and_may_have_256_characters():
    routes = router("/orders/{id}/events")
    assert answering(routes, b"/orders//events") is None
    assert answering(routes, b"/orders/" + b"a" * 256 + b"/events") == "/orders/{id}/events"
    assert answering(routes, b"/orders/" + b"%c3%a9" * 256 + b"/events") is not None
    assert answering(routes, b"/orders/...%25/events") == "/orders/{id}/events"


@pytest.mark.parametrize(
    "path",
    [b"", b"a", b"*", b"http://h/a", b"/a b", b"/a\\b", b"/a#b", b"/a?b", b"/\xc3\xa9", b"/a\0", b"/a\r\n", b"/\x7f"],
)
def test_a_target_that_is_no_path_matches_nothing(path):
    assert answering(router("/{a}", "/{rest:path}"), path) is None
    assert split_path(path) is None


def test_a_path_is_split_and_decoded():
    assert split_path(b"/") == ("",)
    assert split_path(b"/a/%62//c%2Fd/") == ("a", "b", "", "c/d", "")
    assert split_path(b"/%ff/%zz") == ("\udcff", "\udcffzz")


SLIPPING = [
    b"/public/../admin", b"/public/%2e%2e/admin", b"/public/.%2E/admin", b"/public/x/../../admin", b"/public/..%2fadmin",
    b"/public/%2e%2e%2fadmin", b"/public%2f..%2fadmin", b"/public/..%5cadmin", b"/public/..;/admin", b"/public/..;a=b/admin",
    b"/./admin", b"/%2e/admin", b"//admin", b"/.//admin", b"/public//../../admin", b"/admin/.", b"/admin;x=1", b"/;x/admin", b"/%2fadmin",
    b"/admin/x/..", b"/admin%2f", b"/admin%2fx", b"/admin//", b"/%61dmin//x",
]  # fmt: skip


@pytest.mark.parametrize("path", SLIPPING)
def test_no_spelling_of_a_path_slips_past_a_more_specific_route(path):
    routes = router("/admin", "/admin/{rest:path}", "/public/{rest:path}", "/{rest:path}")
    assert answering(routes, path) in (None, "/admin/{rest:path}")


@pytest.mark.parametrize(
    "path",
    [
        *SLIPPING,
        b"/api/v4/projects/group%2Fproject",
        b"/a//b",
        b"/map;lat=1;lon=2",
        b"/a/./b/../c",
        b"/100%",
        b"/.well-known/x",
        b"//",
    ],
)
def test_with_one_proxy_for_all_any_spelling_passes_as_it_came(path):
    found = router("/{rest:path}").match("GET", path, None)
    assert found == ("/{rest:path}", {"rest": path[1:].decode()})


def test_a_tenant_in_the_path_is_not_changed_by_dots_further_on():
    routes = router("/{tenant}/{rest:path}")
    assert answering(routes, b"/one/a/../b") == "/{tenant}/{rest:path}"
    assert answering(routes, b"/one/../two/b") is None
    assert answering(routes, b"/one/a%2f..%2f..%2ftwo/b") is None


def test_a_semicolon_may_be_part_of_a_parameter():
    found = router("/orders/{id}", "/{rest:path}").match("GET", b"/orders/17;x", None)
    assert found == ("/orders/{id}", {"id": "17;x"})


def test_hidden_files_are_nothing_special():
    routes = router("/.well-known/{name}", "/{rest:path}")
    assert answering(routes, b"/.well-known/security.txt") == "/.well-known/{name}"
    assert answering(routes, b"/.git/config") == "/{rest:path}"
    assert answering(routes, b"/..a") == "/{rest:path}"


# Against a plain model

PIECES = ["a", "b", "c", "ab"]
pattern_texts = st.lists(
    st.sampled_from([*PIECES, "{}"]), min_size=1, max_size=4
).flatmap(lambda pieces: st.sampled_from(["", "/", "/{rest:path}"]).map(lambda end: as_pattern(pieces) + end))  # fmt: skip


def as_pattern(pieces: list[str]) -> str:
    return "/" + "/".join(f"{{p{place}}}" if piece == "{}" else piece for place, piece in enumerate(pieces))


entries = st.builds(
    lambda text, methods, negotiate, strict: entry(
        text, methods=methods, negotiate=negotiate, **({"p0": "a|ab"} if strict and "{p0}" in text else {})
    ),
    pattern_texts,
    st.sampled_from([None, READ, frozenset({"POST"})]),
    st.booleans(),
    st.booleans(),
)


def expected(candidates: list[Entry[str]], method: str, path: str, accept: str | None) -> Entry[str] | None:
    """The same rules as a search through all: every pattern as a regular expression, the most specific first."""

    def matches(each: Entry[str]) -> bool:
        regex = re.sub(r"\\\{(\w+):path\\\}", r"(?P<\1>.*)", re.escape(each.pattern.text))
        found = re.fullmatch(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", regex), path)
        return (
            found is not None
            and (each.methods is None or method in each.methods)
            and (accept == STREAM or not each.negotiate)
            and all(pattern.fullmatch(found[name]) for name, pattern in each.params.items())
        )

    return min(
        (each for each in candidates if matches(each)),
        key=lambda each: (each.pattern.specificity, not each.negotiate),
        default=None,
    )


@given(
    st.lists(entries, max_size=12),
    st.lists(st.sampled_from(PIECES), max_size=5),
    st.sampled_from(["", "/"]),
    st.sampled_from(["GET", "POST", "PUT"]),
    st.sampled_from([None, STREAM]),
)
def test_the_tree_finds_what_a_search_through_all_would_find(candidates, pieces, end, method, accept):
    assume(not conflicts(candidates))
    path = "/" + "/".join(pieces) + (end if pieces else "")
    routes = Router(candidates)
    wanted = expected(candidates, method, path, accept)
    found = routes.match(method, path.encode(), accept)
    assert (found and found.target) == (wanted and wanted.target)
    told = [each.target for each in routes.explain(method, path.encode(), accept) if each.matched]
    assert told == ([wanted.target] if wanted else [])
    known = {each for candidate in candidates for each in candidate.methods or ()}
    answered = any(expected(candidates, method, path, accept) for accept in (None, STREAM))
    assert (method in routes.allowed(path.encode())) == (method in known and answered)


ODD_PIECES = [
    "a",
    "b",
    "c",
    "",
    ".",
    "..",
    "%2e",
    "%2E%2e",
    ".%2e",
    "a%2fb",
    "%2f",
    "%5c",
    "..%2f",
    "..;",
    "a;x",
    ";",
    "%61",
    "a%20",
    "..%5c..",
]


def follow(path: str) -> str:
    """Merge slashes and follow dots, as many a server does."""
    kept: list[str] = []
    pieces = [piece for piece in path.split("/") if piece not in ("", ".")]
    for piece in pieces:
        if piece == "..":
            del kept[-1:]
        else:
            kept.append(piece)
    end = "/" if kept and path.rsplit("/", 1)[-1] in ("", ".", "..") else ""
    return "/" + "/".join(kept) + end


SERVERS = {
    "decodes, then follows": lambda path: follow(unquote(path)),
    "decodes with backslashes, then follows": lambda path: follow(unquote(path).replace("\\", "/")),
    "drops what follows a semicolon, decodes, follows": lambda path: follow(unquote(re.sub(";[^/]*", "", path))),
    "follows encoded dots without decoding": lambda path: unquote(
        follow(re.sub("%2e", ".", path, flags=re.IGNORECASE))
    ),
}


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
@given(
    st.lists(pattern_texts, max_size=8, unique=True),
    st.lists(st.sampled_from(ODD_PIECES), min_size=1, max_size=6),
)
@example(["/a", "/{p0}/{rest:path}"], ["b", "..%2f", "a"])
def test_the_route_is_the_one_of_the_path_that_the_upstream_sees(server, texts, pieces):
    candidates = [entry(text) for text in [*texts, "/{rest:path}"]]
    assume(not conflicts(candidates))
    routes = Router(candidates)
    found = answering(routes, ("/" + "/".join(pieces)).encode())
    if found is not None:
        seen = quote(server("/" + "/".join(pieces)), safe="/;")
        assume("%5C" not in seen)  # what such a server would leave as it is
        assert answering(routes, seen.encode()) == found


@given(
    st.binary(max_size=40)
    | st.lists(st.sampled_from(["/", "%", "2", "e", "f", ".", ";", "\\", "a", "0"])).map(lambda s: "".join(s).encode())
)
def test_no_target_makes_the_router_fail_and_no_parameter_is_dangerous(path):
    routes = router("/{a}", "/{a}/x", entry("/x/{b}", methods=READ), "/{a}/{b}/{rest:path}")
    for target in (path, b"/" + path):
        routes.explain("GET", target, None)
        found = routes.match("GET", target, None)
        for name, value in found.params.items() if found else ():
            if name != "rest":
                assert 0 < len(value) <= 256
                assert value not in (".", "..")
                assert not re.search(r"[/\\\x00-\x1f\x7f-\x9f]", unquote(unquote(value)))


def test_a_very_long_target_costs_little():
    routes = router("/a/{id}/events", "/{rest:path}")
    for target in (b"/a" * 4000, b"/%25" + b"25" * 4000, b"/a" * 200 + b"/..;//%2f" * 16):
        assert answering(routes, target) == "/{rest:path}"
    for target in (b"/a/;/.." * 1100, b"/%2f.;a" * 1100, b"//" * 4000, b"/a" * 4000 + b"/..;//%2f" * 16):
        assert answering(routes, target) is None


# Conflicts


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        (entry("/a/{id}"), entry("/a/{name}"), True),
        (entry("/a/{id}", id="[0-9]+"), entry("/a/{id}", id="[a-z]+"), True),
        (entry("/a"), entry("/%61"), True),
        (entry("/{rest:path}"), entry("/{all:path}"), True),
        (entry("/a/{id}", negotiate=True), entry("/a/{id}", negotiate=True), True),
        (entry("/a/{id}", negotiate=True), entry("/a/{id}"), False),
        (entry("/a", methods=READ), entry("/a"), True),
        (entry("/a", methods=READ), entry("/a", methods=frozenset({"HEAD"})), True),
        (entry("/a", methods=READ), entry("/a", methods=frozenset({"POST", "OPTIONS"})), False),
        (entry("/a"), entry("/a/"), False),
        (entry("/a"), entry("/A"), False),
        (entry("/a/b"), entry("/a/{b}"), False),
        (entry("/a/{b}"), entry("/a/{b:path}"), False),
    ],
)
def test_two_entries_for_the_same_requests_conflict(first, second, conflict):
    assert conflicts([first, second]) == ([(0, 1)] if conflict else [])
    assert conflicts([entry("/other"), second, first]) == ([(1, 2)] if conflict else [])


def test_each_pair_that_conflicts_is_told():
    assert conflicts([entry("/a"), entry("/b"), entry("/a"), entry("/b"), entry("/a")]) == [
        (0, 2),
        (0, 4),
        (1, 3),
        (2, 4),
    ]
    assert conflicts([]) == []


# Explanations


def test_it_is_explained_which_route_answers_and_why_the_others_do_not():
    routes = router(
        "/{rest:path}",
        entry("/orders/{id}", methods=READ, negotiate=True),
        entry("/orders/{id}/events", methods=READ, id="[0-9]+"),
        entry("/orders", methods=READ),
    )
    assert routes.explain("GET", b"/orders/17/events", None) == [
        ("/orders", False, "The path is longer than /orders."),
        ("/orders/{id} negotiated", False, "The path is longer than /orders/{id}."),
        ("/orders/{id}/events", True, "It answers."),
        ("/{rest:path}", False, "It matches, but a more specific route answers."),
    ]
    assert [each[1:] for each in routes.explain("GET", b"/orders/x/events", None)][2:] == [
        (False, "`id` is 'x', which does not match [0-9]+."),
        (True, "It answers."),
    ]
    assert [each[1:] for each in routes.explain("GET", b"/orders/17", "*/*")] == [
        (False, "The path is longer than /orders."),
        (False, "It answers only if Accept names text/event-stream."),
        (False, "The path is shorter than /orders/{id}/events."),
        (True, "It answers."),
    ]
    assert [each.reason for each in routes.explain("PUT", b"/orders", None)] == [
        "Its methods are GET, HEAD, OPTIONS, not PUT.",
        "The path is shorter than /orders/{id}.",
        "The path is shorter than /orders/{id}/events.",
        "It answers.",
    ]
    assert routes.explain("GET", b"/users", None)[0].reason == "The path has 'users' where /orders has 'orders'."
    assert (
        routes.explain("GET", b"/orders/", None)[1].reason
        == "The path has an empty segment where /orders/{id} has {id}."
    )


def test_it_is_explained_why_nobody_answers():
    routes = router(entry("/orders/{id}", methods=READ), "/admin/{rest:path}", "/{rest:path}")
    assert [each[1:] for each in routes.explain("GET", b"/orders/%2e%2e%00", None)] == [
        (False, "'..\\x00' is nothing that a parameter may be."),
        (False, "The path has 'orders' where /admin/{rest:path} has 'admin'."),
        (
            False,
            "It matches, but a more specific route has a parameter where this path has what none may be, so nobody answers.",
        ),
    ]
    assert routes.explain("GET", b"/x/../admin/y", None)[-1].reason == (
        "It matches, but an upstream could read this path as that of another route, so nobody answers."
    )
    assert {each.reason for each in routes.explain("GET", b"/a\\b", None)} == {
        "No route takes such a path: it does not begin with `/`, has a character that none has, or is too odd."
    }


def test_a_query_that_breaks_its_pattern_is_explained():
    routes = Router([Entry(PathPattern("/orders"), "orders", query={"status": re.compile("open|paid")})])
    assert routes.explain("GET", b"/orders", None, b"status=open&x=1") == [("orders", True, "It answers.")]
    assert routes.explain("GET", b"/orders", None, b"status=openly") == [
        ("orders", False, "It is the one, but the query's `status` does not match open|paid: 404.")
    ]


# Queries


@pytest.mark.parametrize(
    ("raw", "fields"),
    [
        (b"", []),
        (b"a=1&b=2&a=3", [("a", "1"), ("b", "2"), ("a", "3")]),
        (b"a+b=c+d%2Be", [("a b", "c d+e")]),
        (b"a&b=&=c&&d=e=f", [("a", ""), ("b", ""), ("", "c"), ("d", "e=f")]),
        (b"a=%zz%2&b=%", [("a", "%zz%2"), ("b", "%")]),
        (b"a=%ff%C3%A9\xc3\xa9\xff", [("a", "\ufffdéé\ufffd")]),
        (b"a;b=1", [("a;b", "1")]),
    ],
)
def test_a_query_is_read_forgivingly(raw, fields):
    assert parse_query(raw) == fields


def test_at_most_128_fields_are_looked_at():
    assert len(parse_query(b"a=1&" * 100_000)) == 128
    assert parse_query(b"&".join(b"%d=x&" % n for n in range(200)))[-1] == ("63", "x")


@given(st.binary())
def test_no_query_makes_the_reading_fail(raw):
    parse_query(raw)


def test_only_query_parameters_with_a_pattern_are_accepted():
    patterns = {"status": re.compile("open|paid|all"), "q": re.compile(".*", re.DOTALL)}
    assert accepted_query(patterns, [("status", "open"), ("x", "1"), ("q", "a/b")]) == {"status": "open", "q": "a/b"}
    assert accepted_query(patterns, [("status", "open"), ("status", "paid")]) == {"status": "paid"}
    assert accepted_query(patterns, []) == {}
    assert accepted_query({}, [("status", "bogus")]) == {}


@pytest.mark.parametrize(
    "fields", [[("status", "bogus")], [("status", "")], [("status", "bogus"), ("status", "open")], [("q", "a\nb")]]
)
def test_a_query_parameter_that_breaks_its_pattern_is_refused(fields):
    patterns = {"status": re.compile("open|paid|all"), "q": re.compile(".*", re.DOTALL)}
    assert accepted_query(patterns, fields) is None
