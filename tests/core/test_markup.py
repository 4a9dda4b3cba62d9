"""Events as HTML: a value is always text, whatever it holds, and what the three libraries are sent, to the byte."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.core.detect import make_detector
from ssegate.core.event import Event, EventStreamDecoder, Update, encode_event
from ssegate.core.markup import Markup, escape, event_type, find, plain, render
from ssegate.core.template import Template
from ssegate.errors import OversizeError

GOLDEN = json.loads((Path(__file__).parent.parent / "vectors" / "hypermedia.json").read_text())["cases"]

ORDER = {"id": 17, "status": "paid", "lines": [{"sku": "a"}, {"sku": "b"}], "note": None, "urgent": True, "total": 1.5}


def made(template: str, facts: object = ORDER) -> str:
    return render(Template(template), facts)


# Golden outputs


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_the_libraries_get_what_their_manuals_show(case: dict[str, Any]) -> None:
    type_, text = Markup(case["template"], case.get("event")).write(case["state"])
    assert encode_event(Event(text, type_, "e-1")).decode() == case["stream"]


def datastar_lines(data: str) -> dict[str, list[str]]:
    """The arguments of a Datastar event, as its client reads them: a line each, up to the first space the name."""
    found: dict[str, list[str]] = {}
    for line in data.split("\n"):
        name, _, value = line.partition(" ")
        found.setdefault(name, []).append(value)
    return found


@given(st.text(max_size=30))
def test_no_value_forges_a_line_for_datastar(value: str) -> None:
    template = "selector #order\nelements <p>{status}</p>"
    _, text = Markup(template, "datastar-patch-elements").write({"status": value})
    (event,) = EventStreamDecoder().receive(encode_event(Event(text, "datastar-patch-elements", "e-1")))
    lines = datastar_lines(event.data)
    assert list(lines) == ["selector", "elements"]
    assert lines["selector"] == ["#order"]
    assert len(lines["elements"]) == 1


# What a name stands for


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", 17),
        ("lines.0.sku", "a"),
        ("lines.1.sku", "b"),
        ("lines.2.sku", None),
        ("lines.2", None),
        ("lines.sku", None),
        ("lines.-1", None),
        ("lines.٠", None),
        ("status.0", None),
        ("id.0", None),
        ("note", None),
        ("note.a", None),
        ("absent", None),
        ("absent.a.b.c", None),
        ("urgent", True),
    ],
)
def test_a_dotted_name_leads_into_the_document(name: str, value: object) -> None:
    assert find(ORDER, name) == value


@pytest.mark.parametrize("facts", [None, 1, "text", True, [], ["a"]])
def test_a_name_in_what_is_no_object_is_absent(facts: object) -> None:
    assert find(facts, "a") is None
    assert made("<p>{a}</p>", facts) == "<p></p>"


def test_a_list_is_looked_into_by_number() -> None:
    assert find([["a"], "b"], "0.0") == "a"
    assert find({"0": "member"}, "0") == "member"


def test_values_are_written_as_text_and_what_is_no_text_as_json() -> None:
    assert made("{id} {status} {urgent} {total} {note}|{absent}|") == "17 paid true 1.5 ||"
    assert made("{lines}") == "[{&quot;sku&quot;:&quot;a&quot;},{&quot;sku&quot;:&quot;b&quot;}]"
    assert made("{lines.0}") == "{&quot;sku&quot;:&quot;a&quot;}"
    assert made("{a}{b}{c}", {"a": False, "b": 0, "c": ""}) == "false0"


def test_doubled_braces_are_braces() -> None:
    assert made("{{id}} {{ {id} }}") == "{id} { 17 }"


def test_a_value_is_not_looked_at_for_names() -> None:
    assert made("{a}", {"a": "{id} {{id}}", "id": "secret"}) == "{id} {{id}}"


def test_the_template_itself_stays_as_it_is() -> None:
    template = "<a href='/x?a=1&b=2' title=\"\">\n\t&amp; é \u2028</a>\n"
    assert made(template) == template


# Values are harmless


@pytest.mark.parametrize(
    ("value", "escaped"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("&lt;", "&amp;lt;"),
        ('" onmouseover="x', "&quot; onmouseover=&quot;x"),
        ("' onmouseover='x", "&#39; onmouseover=&#39;x"),
        ("</template></turbo-stream>", "&lt;/template&gt;&lt;/turbo-stream&gt;"),
        ("a\nelements <b>", "a&#10;elements &lt;b&gt;"),
        ("a\r\nb\rc", "a&#13;&#10;b&#13;c"),
        ("<!--", "&lt;!--"),
        ("]]>", "]]&gt;"),
        ("a\0b", "a\ufffdb"),
        ("plain text, é 日本 👩‍🚀", "plain text, é 日本 👩‍🚀"),
        ("\u2028\u2029\u0085\v\f", "\u2028\u2029\u0085\v\f"),
        ("", ""),
    ],
)  # fmt: skip
def test_what_means_something_in_html_or_in_a_stream_is_escaped(value: str, escaped: str) -> None:
    assert escape(value) == escaped
    assert made("{v}", {"v": value}) == escaped


def test_members_names_are_escaped_too() -> None:
    assert made("{v}", {"v": {"<b>": "<i>"}}) == "{&quot;&lt;b&gt;&quot;:&quot;&lt;i&gt;&quot;}"


class Reading(HTMLParser):
    """What a page makes of a text: elements with attributes, and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


pieces = st.sampled_from(["<", ">", "&", '"', "'", "\n", "\r", "\0", "/", "p", "=", "-->", "&#", ";", "script", " "])
hostile = st.lists(pieces | st.text(max_size=3), max_size=12).map("".join)


@given(hostile, hostile)
def test_in_text_and_in_quoted_attributes_any_value_is_read_as_what_it_was(one: str, other: str) -> None:
    text = made("<p title=\"{one}\" class='{other}'>{one}</p>", {"one": one, "other": other})
    reading = Reading()
    reading.feed(text)
    reading.close()
    shown = {"one": one.replace("\0", "\ufffd"), "other": other.replace("\0", "\ufffd")}
    ((tag, attributes),) = reading.elements
    assert (tag, [name for name, _ in attributes]) == ("p", ["title", "class"])
    assert reading.text == shown["one"]
    assert [value for _, value in attributes] == [shown["one"], shown["other"]]


@given(hostile)
def test_a_value_survives_the_way_through_the_stream(value: str) -> None:
    text = made("<p>{v}</p>", {"v": value})
    (event,) = EventStreamDecoder().receive(encode_event(Event(text, id="e-1")))
    assert event.data == "".join("\ufffd" if "\ud800" <= each <= "\udfff" else each for each in text)
    assert event.data.count("\n") == 0


# Names of events


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{status}", "paid"),
        ("order-{id}", "order-17"),
        ("{urgent}", "true"),
        ("{total}", "1.5"),
        ("{note}", ""),
        ("{absent}", ""),
        ("{lines}", ""),
        ("{lines.0}", ""),
        ("datastar-patch-elements", "datastar-patch-elements"),
    ],
)
def test_an_event_s_name_is_made_of_plain_values(template: str, name: str) -> None:
    assert event_type(Template(template), ORDER) == name


@pytest.mark.parametrize("reserved", ["end", "reset", "fault", "recovered", "error"])
@pytest.mark.parametrize("dressed", ["{}", "\n{}", "{}\r\n", "\0{}\0"])
def test_a_name_of_the_gate_s_own_is_marked(reserved: str, dressed: str) -> None:
    assert event_type(Template("{name}"), {"name": dressed.format(reserved)}) == f"upstream-{reserved}"


def test_a_name_forges_no_field() -> None:
    type_ = event_type(Template("{name}"), {"name": "a\nid: 7\r\ndata: x\0"})
    assert type_ == "aid: 7data: x"
    encode_event(Event("1", type_, "e-1"))


def test_a_name_is_not_escaped() -> None:
    """It is compared by scripts, and put into no page."""
    assert event_type(Template("{name}"), {"name": "<&>"}) == "<&>"


def test_plain_values_are_text_numbers_and_booleans() -> None:
    assert [plain({"a": value}, "a") for value in ("x", 1, 1.5, True, False, None, [], {})] == [
        "x", "1", "1.5", "true", "false", "", "", "",
    ]  # fmt: skip


def test_without_a_name_events_are_unnamed() -> None:
    assert Markup("<p>{id}</p>").write(ORDER) == ("", "<p>17</p>")
    assert Markup("<p>{id}</p>", "order-{status}").write(ORDER) == ("order-paid", "<p>17</p>")


# States as HTML


def test_a_state_that_changed_is_told_as_html_and_that_is_the_state_for_newcomers() -> None:
    detector = make_detector("t", markup=Markup("<p>{n}</p>", "order-{n}"))
    assert list(detector.changes(b'{"n": 1}')) == [Update("t", "<p>1</p>", "order-1", "<p>1</p>")]
    assert list(detector.changes(b'{ "n":1 }')) == []
    assert [update.data for update in detector.changes(b'{"n": 2}')] == ["<p>2</p>"]


def test_states_that_look_the_same_are_one() -> None:
    detector = make_detector("t", markup=Markup("<p>{n}</p>"))
    assert len(list(detector.changes(b'{"n": 1, "at": 1}'))) == 1
    assert list(detector.changes(b'{"n": 1, "at": 2}')) == []
    assert len(list(detector.changes(b'{"n": 2, "at": 3}'))) == 1
    assert len(list(detector.changes(b'{"n": 1, "at": 4}'))) == 1


def test_the_same_html_with_another_name_is_another_event() -> None:
    detector = make_detector("t", markup=Markup("<p>{n}</p>", "{kind}"))
    assert len(list(detector.changes(b'{"n": 1, "kind": "a"}'))) == 1
    assert [update.type for update in detector.changes(b'{"n": 1, "kind": "b"}')] == ["b"]


def test_a_template_is_over_what_is_selected() -> None:
    detector = make_detector("t", select=lambda body: body["data"], markup=Markup("<p>{n}</p>"))
    assert [update.data for update in detector.changes(b'{"data": {"n": 1}}')] == ["<p>1</p>"]


def test_html_larger_than_an_event_is_trouble() -> None:
    detector = make_detector("t", markup=Markup("<p>{n}</p>"), max_event_size=30)
    with pytest.raises(OversizeError):
        list(detector.changes(b'{"n": "<<<<<<<<<<"}'))
