"""How single values are read, and what is said of those that are wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.config import values
from ssegate.config.values import Address, Every, Expanded, ValueFault
from ssegate.errors import UndecodableError


def _fault(read: object, value: object) -> str:
    assert callable(read)
    with pytest.raises(ValueFault) as caught:
        read(value)
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("2s", 2), ("10m", 600), ("1h", 3600), ("1d", 86400), ("1.5s", 1.5)]
)
def test_a_duration_has_its_unit(text: str, seconds: float) -> None:
    assert values.read_duration(text) == seconds


@pytest.mark.parametrize(
    ("value", "mend"),
    [
        (2, "2 is not a duration; write 2s"),
        (1.5, "1.5 is not a duration; write 1.5s"),
        ("2", '"2" is not a duration; write 2s'),
        ("30 sec", '"30 sec" is not a duration; write 30s'),
        ("5 minutes", '"5 minutes" is not a duration; write 5m'),
        ("2S", '"2S" is not a duration; write 2s'),
        ("soon", '"soon" is not a duration; write 500ms, 2s or 10m'),
        (True, "true is not a duration; write 500ms, 2s or 10m"),
        (None, "empty is not a duration; write 500ms, 2s or 10m"),
        ("-1s", '"-1s" is not a duration; write 500ms, 2s or 10m'),
        ("1h30m", '"1h30m" is not a duration; write 500ms, 2s or 10m'),
        ("9" * 400 + "s", "is not a duration"),
        ("0s", '"0s" is too short; write a duration above zero'),
    ],
)
def test_a_wrong_duration_shows_the_likely_spelling(value: object, mend: str) -> None:
    assert mend in _fault(values.read_duration, value)


def test_zero_is_a_duration_where_it_means_never() -> None:
    assert values.read_duration_or_zero("0s") == 0
    assert "write 0s" in _fault(values.read_duration_or_zero, 0)


@given(st.integers(1, 10**8), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_a_duration_that_is_written_is_read_again(count: int, unit: str) -> None:
    seconds = values.read_duration(f"{count}{unit}")
    assert values.read_duration(values.format_duration(seconds)) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(("text", "size"), [("64KiB", 65536), ("1MiB", 1048576), ("10B", 10), ("2GiB", 2**31)])
def test_a_size_has_its_unit(text: str, size: int) -> None:
    assert values.read_size(text) == size
    assert values.format_size(size) == text


@pytest.mark.parametrize(
    ("value", "mend"),
    [
        (65536, "65536 is not a size; write 64KiB"),
        (1000, "1000 is not a size; write 1000B"),
        ("64k", '"64k" is not a size; write 64KiB'),
        ("1 MB", '"1 MB" is not a size; write 1MiB'),
        ("big", '"big" is not a size; write 64KiB or 1MiB'),
        (1.5, "1.5 is not a size; write 64KiB or 1MiB"),
        ("0B", '"0B" is too small; write a size above zero'),
    ],
)
def test_a_wrong_size_shows_the_likely_spelling(value: object, mend: str) -> None:
    assert _fault(values.read_size, value) == mend


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:8080", Address("0.0.0.0", 8080)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:65535", Address("::1", 65535)),
    ],
)
def test_an_address_is_host_and_port(text: str, address: Address) -> None:
    assert values.read_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "value",
    ["8080", ":8080", "::1:8080", "[::g]:80", "a:65536", "a:b", "http://a:80", "a b:80", True, None, "a:080000"],
)
def test_what_is_no_address_is_refused(value: object) -> None:
    assert "write" in _fault(values.read_address, value)


def test_a_port_alone_shows_the_likely_spelling() -> None:
    assert _fault(values.read_address, 8080) == "8080 is not an address; write 0.0.0.0:8080"


def test_a_network_with_host_bits_shows_the_likely_one() -> None:
    assert str(values.read_network("10.0.0.0/8")) == "10.0.0.0/8"
    assert str(values.read_network("::1")) == "::1/128"
    assert _fault(values.read_network, "10.0.0.1/8") == '"10.0.0.1/8" is not a network; write 10.0.0.0/8'
    assert "such as" in _fault(values.read_network, "here")


def test_an_interval_is_adaptive_when_its_ends_differ() -> None:
    assert not Every(2, 2).is_adaptive
    assert str(Every(2, 2)) == "2s"
    assert Every(0.5, 30).is_adaptive
    assert str(Every(0.5, 30)) == "{min: 500ms, max: 30s}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a[", "ends too early, at character 3"),
        ("a..b", "`.` is not expected at character 3"),
        ("headers.x-github", "no meaning for '-' at character 10"),
        ("nosuch(@)", "`nosuch()` does not exist"),
        ("a[?contains(@)]", "`contains()` takes 2 arguments, not 1"),
        ("length(a, b)", "`length()` takes 1 argument, not 2"),
        ("[" * 5000, "is not JMESPath"),
    ],
)
def test_a_wrong_expression_says_what_is_wrong_and_where(text: str, words: str) -> None:
    assert words in _fault(values.read_expression, text)


def test_an_expression_finds_what_it_names_and_is_known_by_its_text() -> None:
    expression = values.read_expression("data[?a > `1`].b | [0]")
    assert expression({"data": [{"a": 2, "b": 3}]}) == 3
    assert expression({}) is None
    assert expression == values.read_expression(expression.text)
    assert values.read_expression("not_null(a, b, c)")({"c": 1}) == 1


def test_an_expression_that_fails_names_itself_and_not_the_data() -> None:
    with pytest.raises(UndecodableError) as caught:
        values.read_expression("sum(a)")({"a": "hunter2"})
    assert "`sum(a)`" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_pointer_is_that_of_rfc_6901() -> None:
    assert values.read_pointer("/a~1b/~0/0") == "/a~1b/~0/0"
    assert values.read_pointer("") == ""
    assert "begin with `/`" in _fault(values.read_pointer, "a")
    assert "~0" in _fault(values.read_pointer, "/a~2")


def test_a_pattern_that_is_none_says_where() -> None:
    assert values.read_pattern("[0-9]+").fullmatch("12")
    assert "at character 2" in _fault(values.read_pattern, "a(")
    assert "too large" in _fault(values.read_pattern, "a{99999999999999}")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, "a number, not text; put it in quotes"),
        (True, "true or false, not text; put it in quotes"),
        (None, "empty; write text"),
        ({"id": None}, "quote values that contain { }"),
        ({"a": 1}, "a mapping, not text"),
        ((), "a list, not text"),
        ("", "empty"),
    ],
)
def test_text_is_text_and_nothing_like_it(value: object, words: str) -> None:
    assert words in _fault(values.read_text, value)


@pytest.mark.parametrize("value", ["yes", "true", 1, 0, None, "1"])
def test_only_true_and_false_are_booleans(value: object) -> None:
    assert "write true or false" in _fault(values.read_boolean, value)


@pytest.mark.parametrize("value", [True, "5", 1.0, None, 0, -1, 10**30])
def test_a_count_is_a_whole_number_of_at_least_one(value: object) -> None:
    assert _fault(values.read_count, value)
    assert values.read_count(1) == 1


def _said_of(read: object, value: object) -> str:
    """The fault's words; empty when there is none. Any other exception passes."""
    assert callable(read)
    try:
        read(value)
    except ValueFault as fault:
        return fault.message + fault.hint
    return ""


READERS = [
    values.read_line, values.read_boolean, values.read_count, values.read_rate, values.read_gone_status,
    values.read_duration, values.read_size, values.read_address, values.read_host_name, values.read_network,
    values.read_header_name, values.read_pattern, values.read_pointer, values.read_expression, values.choice("a", "b"),
]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["hun-ter2(\n", "[hunter2", "hunter2(@)", "contains(hunter2)", "hunter2..~", "(?P<hunter2>", "~hunter2~ "]
)
@pytest.mark.parametrize("read", READERS)
def test_what_came_from_the_environment_is_never_quoted(read: object, text: str) -> None:
    assert "hun" not in _said_of(read, Expanded(text, text))
    assert "hunter2" not in repr(Expanded(text, text))


def test_digits_from_the_environment_are_text_where_text_is_wanted() -> None:
    assert values.read_text(Expanded("0123", 123)) == "0123"
    assert values.read_count(Expanded("50", 50)) == 50


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.just(()), st.just({"a": 1})))
def test_a_reader_gives_a_value_or_a_fault(value: object) -> None:
    for read in READERS:
        _said_of(read, value)
