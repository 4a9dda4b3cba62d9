"""What the status of a job says: each answer on its own, in a row, and at its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.config.values import read_expression
from ssegate.core.event import Kind, Update
from ssegate.core.markup import Markup
from ssegate.core.task import TaskReader, TaskRules
from ssegate.errors import OversizeError, UndecodableError

OK, ACCEPTED = 200, 202


def reader_of(*, max_event_size: int = 1000, markup: Markup | None = None, **expressions: str) -> TaskReader:
    """A reader with these JMESPath expressions, such as a configuration has them."""
    found = {name: read_expression(text) for name, text in expressions.items()}
    return TaskReader("t", TaskRules(max_event_size, markup=markup, **found))


def read(reader: TaskReader, value: Any, status: int = OK) -> list[tuple[str, Any]]:
    """What is told of a status document: types, and data as values."""
    return told(reader.read(status, json.dumps(value).encode()))


def told(updates: Sequence[Update]) -> list[tuple[str, Any]]:
    return [(update.type, json.loads(update.data)) for update in updates]


def end(reason: str, result: Any = None) -> tuple[str, Any]:
    return ("end", {"reason": reason, "result": result})


# Progress


def test_progress_is_told_when_it_is_another_one() -> None:
    reader = reader_of(progress="percent", done="state == 'done'")
    steps = [read(reader, {"percent": percent, "at": number}) for number, percent in enumerate([1, 1, 2, 2, 2, 1])]
    assert steps == [[("", 1)], [], [("", 2)], [], [], [("", 1)]]


def test_without_an_expression_the_whole_status_is_the_progress() -> None:
    reader = reader_of(done="state == 'done'")
    assert read(reader, {"a": 1, "b": None}) == [("", {"a": 1, "b": None})]
    assert read(reader, {"a": 1, "b": None}) == []
    assert read(reader, {"a": 2}) == [("", {"a": 2})]


def test_progress_that_is_null_is_nothing_to_say() -> None:
    reader = reader_of(progress="percent", done="state == 'done'")
    assert read(reader, {"state": "queued"}) == []
    assert read(reader, {"percent": 0}) == [("", 0)]
    assert read(reader, {"state": "queued"}) == []
    assert read(reader, {"percent": 0}) == [], "nothing else has been told meanwhile"


@pytest.mark.parametrize("pair", [(1, True), (1, 1.0), (0, False), ([], {}), ({}, 0)])
def test_values_of_different_types_are_different_progress(pair: tuple[Any, Any]) -> None:
    reader = reader_of(progress="p", done="done")
    for value in pair:
        ((type_, said),) = read(reader, {"p": value})
        assert (type_, said, type(said)) == ("", value, type(value))


def test_progress_is_the_state_that_newcomers_get() -> None:
    (update,) = reader_of(progress="p", done="done").read(OK, b'{ "p": {"a" : 1} }')
    assert (update.topic, update.kind, update.data, update.state) == ("t", Kind.EVENT, '{"a":1}', '{"a":1}')


def test_progress_that_is_a_string_is_sent_as_it_is() -> None:
    (update,) = reader_of(progress="p", done="done").read(OK, b'{"p": "half way"}')
    assert (update.data, update.state) == ("half way", "half way")


def test_half_a_surrogate_pair_is_mended() -> None:
    (update,) = reader_of(done="done").read(OK, b'{"name": "\\ud800"}')
    assert update.data == '{"name":"\ufffd"}'


# The end


def test_a_job_that_is_done_tells_its_last_progress_and_its_result() -> None:
    reader = reader_of(progress="percent", done="state == 'succeeded'", result="{url: url}")
    assert read(reader, {"percent": 99, "state": "running", "url": None}) == [("", 99)]
    last = {"percent": 100, "state": "succeeded", "url": "/files/1"}
    assert read(reader, last) == [("", 100), end("done", {"url": "/files/1"})]


def test_the_end_is_an_event_of_its_own_kind_and_no_state() -> None:
    *_, update = reader_of(done="done").read(OK, b'{"done": true}')
    assert (update.kind, update.type, update.state, update.is_numbered) == (Kind.END, "end", None, True)


def test_without_an_expression_the_whole_status_is_the_result() -> None:
    assert read(reader_of(progress="p", done="done"), {"done": True}) == [end("done", {"done": True})]


@pytest.mark.parametrize("result", [None, False, 0, "", [], {}, "text"])
def test_any_value_may_be_the_result(result: Any) -> None:
    reader = reader_of(progress="p", done="done", result="result")
    assert read(reader, {"done": True, "result": result}) == [end("done", result)]


def test_a_job_that_failed_is_not_done() -> None:
    reader = reader_of(done="finished", failed="error != null", result="error", progress="p")
    assert read(reader, {"finished": True, "error": "disk full"}) == [end("failed", "disk full")]


def test_failing_ends_a_job_that_is_not_done() -> None:
    reader = reader_of(done="state == 'ok'", failed="state == 'failed' || state == 'cancelled'", progress="p")
    assert read(reader, {"state": "running"}) == []
    assert read(reader, {"state": "cancelled"}) == [end("failed", {"state": "cancelled"})]


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_what_jmespath_holds_for_false_is_no_end(value: Any) -> None:
    assert read(reader_of(progress="p", done="done", failed="done"), {"done": value}) == []


@pytest.mark.parametrize("value", [True, 0, 1, "no", [None], {"a": None}])
def test_what_jmespath_holds_for_true_is_an_end(value: Any) -> None:
    """In JMESPath zero is true."""
    assert read(reader_of(progress="p", done="done", result="p"), {"done": value}) == [end("done")]


def test_a_job_that_takes_too_long_is_given_up() -> None:
    update = reader_of(done="done").give_up()
    assert (update.topic, update.kind, told([update])) == ("t", Kind.END, [("end", {"reason": "timeout"})])


# Without `done`: RFC 9110, 15.3.3, and the many APIs that go by it


def test_without_done_anything_but_202_is_the_end() -> None:
    reader = reader_of()
    assert read(reader, {"percent": 10}, ACCEPTED) == [("", {"percent": 10})]
    assert read(reader, {"percent": 10}, ACCEPTED) == []
    assert read(reader, {"url": "/x"}, OK) == [("", {"url": "/x"}), end("done", {"url": "/x"})]


@pytest.mark.parametrize("status", [200, 201, 203, 206])
def test_every_other_success_is_an_end(status: int) -> None:
    assert read(reader_of(progress="p"), {}, status) == [end("done", {})]


def test_without_done_a_202_may_still_say_that_the_job_has_failed() -> None:
    assert read(reader_of(failed="failed", progress="p"), {"failed": True}, ACCEPTED) == [
        end("failed", {"failed": True})
    ]


def test_with_done_the_status_says_nothing() -> None:
    reader = reader_of(done="done", progress="p")
    assert read(reader, {"done": False}, OK) == []
    assert read(reader, {"done": True}, ACCEPTED) == [end("done", {"done": True})]


@pytest.mark.parametrize("body", [b"", b" ", b"\r\n"])
@pytest.mark.parametrize("expressions", [{}, {"done": "done"}])
def test_a_202_without_a_body_says_that_the_job_is_at_work(body: bytes, expressions: dict[str, str]) -> None:
    reader = reader_of(**expressions)
    assert reader.read(ACCEPTED, body) == ()
    assert read(reader, {"p": 1}, ACCEPTED) == [("", {"p": 1})]


# What cannot be read


@pytest.mark.parametrize("body", [b"", b"<html>", b"{", b"NaN", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_trouble(body: bytes) -> None:
    reader = reader_of()
    read(reader, 1, ACCEPTED)
    with pytest.raises(UndecodableError):
        reader.read(OK, body)
    assert read(reader, 1, ACCEPTED) == [], "what was told before is still known"


def test_progress_larger_than_an_event_is_trouble() -> None:
    reader = reader_of(max_event_size=20, done="done", progress="p", result="r")
    with pytest.raises(OversizeError, match="21 bytes"):
        read(reader, {"p": [10**18]})
    assert read(reader, {"p": [10**17]}) == [("", [10**17])]


def test_the_size_is_counted_in_bytes() -> None:
    with pytest.raises(OversizeError, match="36 bytes"):
        read(reader_of(max_event_size=20, done="done"), "é" * 18)


def test_an_end_larger_than_an_event_is_trouble() -> None:
    with pytest.raises(OversizeError):
        read(reader_of(max_event_size=40, progress="p", result="r"), {"p": 1, "r": "x" * 40})


def test_progress_beside_an_end_that_is_too_large_is_told_later() -> None:
    reader = reader_of(max_event_size=40, progress="p", done="done", result="r")
    with pytest.raises(OversizeError):
        read(reader, {"p": 1, "r": "x" * 40, "done": True})
    assert read(reader, {"p": 1, "r": "x", "done": True}) == [("", 1), end("done", "x")]


def test_an_expression_that_gives_no_json_is_trouble() -> None:
    rules = TaskRules(1000, progress=lambda _: float("nan"))
    with pytest.raises(UndecodableError, match="JSON does not have"):
        TaskReader("t", rules).read(OK, b"1")


# Templates


def test_progress_may_be_told_as_html_and_the_end_stays_json() -> None:
    reader = reader_of(markup=Markup("<b>{percent} %</b>", "progress"), progress="{percent: percent}")
    assert reader.read(ACCEPTED, b'{"percent": 5}') == (Update("t", "<b>5 %</b>", type="progress", state="<b>5 %</b>"),)
    first, last = reader.read(OK, b'{"percent": 100}')
    assert (first.data, last.kind, json.loads(last.data)["result"]) == ("<b>100 %</b>", Kind.END, {"percent": 100})


def test_html_larger_than_an_event_is_trouble() -> None:
    reader = reader_of(max_event_size=20, markup=Markup("<p>{p}</p>"))
    with pytest.raises(OversizeError):
        reader.read(ACCEPTED, b'{"p": "<<<<<<<"}')


def test_progress_that_looks_the_same_is_told_once() -> None:
    reader = reader_of(markup=Markup("<p>{p}</p>"))
    assert len(reader.read(ACCEPTED, b'{"p": 1, "at": 1}')) == 1
    assert reader.read(ACCEPTED, b'{"p": 1, "at": 2}') == ()


# Any job


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(0, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def as_data(value: Any) -> str:
    """A string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@given(st.lists(json_values, max_size=8), st.sampled_from(["done", "failed"]), json_values)
def test_any_job_tells_every_change_in_order_and_then_its_end(steps: list[Any], reason: str, result: Any) -> None:
    reader = reader_of(progress="p", done="done", failed="failed", result="r", max_event_size=10_000)
    seen: list[Update] = []
    for value in (*({"p": step} for step in steps), {reason: True, "r": result}):
        seen += reader.read(OK, json.dumps(value).encode())
    expected: list[str] = []
    for step in steps:
        if step is not None and expected[-1:] != [as_data(step)]:
            expected.append(as_data(step))
    assert [update.data for update in seen[:-1]] == expected
    assert (seen[-1].type, json.loads(seen[-1].data)) == end(reason, result)


@given(st.binary(max_size=40), st.sampled_from([200, 202]))
def test_any_bytes_are_read_or_refused(body: bytes, status: int) -> None:
    make: Callable[[], TaskReader] = reader_of
    try:
        updates = make().read(status, body)
    except UndecodableError:
        return
    assert not any(update.kind is Kind.END for update in updates) or status == OK
    assert all(json.loads(update.data) is not None or update.data == "null" for update in updates)
