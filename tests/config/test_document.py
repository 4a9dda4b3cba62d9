"""Strict YAML: what is taken, what is refused, and where."""

from __future__ import annotations

import pytest

from ssegate.config.document import Mapping, Scalar, Sequence, decode, lines_of, read_document, resolve
from ssegate.errors import ConfigError, Problem


def _read(text: str) -> Mapping:
    root, problems = read_document(text, "f.yaml")
    assert problems == []
    return root


def _fails(text: str) -> Problem:
    with pytest.raises(ConfigError) as caught:
        read_document(text, "f.yaml")
    assert len(caught.value.problems) == 1
    problem = caught.value.problems[0]
    assert problem.code == "yaml"
    return problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("false", False), ("null", None), ("~", None), ("", None), ("0", 0), ("-17", -17), ("+3", 3),
        ("1.5", 1.5), ("1e3", 1000.0), (".5", 0.5), ("2.", 2.0),
        # YAML 1.1 would read something else into each of these.
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("True", "True"), ("NULL", "NULL"), ("010", "010"), ("0o10", "0o10"),
        ("0x1F", "0x1F"), ("1_000", "1_000"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), (".inf", ".inf"),
        (".nan", ".nan"), ("1e999", "1e999"), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_a_plain_scalar_means_what_yaml_1_2_says_and_no_more(text: str, value: object) -> None:
    found = resolve(text)
    assert found == value
    assert type(found) is type(value)


def test_every_value_knows_where_it_stands() -> None:
    root = _read('a: 1\nb:\n  - "x y"\n  - {c: d}\n')
    key, value = root.entries["b"]
    assert (key.line, key.column, key.length) == (2, 1, 1)
    assert isinstance(value, Sequence)
    first, second = value.items
    assert isinstance(first, Scalar)
    assert (first.span.line, first.span.column, first.span.length, first.is_plain) == (3, 5, 5, False)
    assert isinstance(second, Mapping)
    assert second.entries["c"][1].span.column == 9


def test_an_anchor_is_merged_and_own_keys_win() -> None:
    root = _read("base: &b {x: 1, y: 2}\nuse:\n  y: 3\n  <<: *b\nboth: {<<: [{z: 1}, {z: 2}]}\nsame: *b\n")
    use = root.entries["use"][1]
    both = root.entries["both"][1]
    assert isinstance(use, Mapping)
    assert isinstance(both, Mapping)
    assert {name: node.text for name, (_, node) in use.entries.items() if isinstance(node, Scalar)} == {
        "y": "3",
        "x": "1",
    }
    assert isinstance(both.entries["z"][1], Scalar)
    assert both.entries["z"][1].text == "1"
    assert root.entries["same"][1] is root.entries["base"][1]


def test_a_quoted_merge_key_is_a_key() -> None:
    assert "<<" in _read('"<<": {a: 1}\n').entries


def test_a_key_set_twice_is_told_at_both_places_and_reading_goes_on() -> None:
    root, problems = read_document("a:\n  b: 1\n  c: 2\n  b: 3\n", "f.yaml")
    assert [(problem.line, problem.column, problem.code, problem.where) for problem in problems] == [
        (2, 3, "duplicate-key", "a"),
        (4, 3, "duplicate-key", "a"),
    ]
    assert "line 4" in problems[0].message
    assert "line 2" in problems[1].message
    assert "a" in root.entries


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("", 1, 1, "the file is empty"),
        ("# only a comment\n", 1, 1, "the file is empty"),
        ("- a\n", 1, 1, "not a mapping"),
        ("a: {get: /o/{id}}", 1, 13, "quote values that contain { }"),
        ("a: {get: /o?x=1}", 1, 12, "quote values that contain ? inside { } or [ ]"),
        ("a: {b: c}/x", 1, 10, "quote values that contain { }"),
        ("a:\n\tb: 1", 2, 1, "a tab may not indent"),
        ("a: 'x\nb: 1\n", 1, 4, "never closed"),
        ("a: [1,\n", 1, 4, "never closed"),
        ("a: {b: 1\n", 1, 4, "never closed"),
        ("a: b: c", 1, 5, "quote the value"),
        ("a: @x", 1, 4, "put the value in quotes"),
        ("a: *b", 1, 4, "names no anchor"),
        ("a: &b [*b]", 1, 8, "names no anchor"),
        ("a: !!python/object:os.system x", 1, 4, "a tag"),
        ("a: 1\n---\nb: 1\n", 2, 1, "second document"),
        ("? [a]\n: b", 1, 3, "a key must be text"),
        ("? {a: b}\n: c", 1, 3, "a key must be text"),
        ("a: 1\n<<: 2\n", 2, 5, "merges mappings"),
        ('a: "\\UFFFFFFFF"', 1, 7, "names no character"),
        ('a: "\\ud800"', 1, 4, "half a surrogate pair"),
        ('a: "\\q"', 1, 6, "no such escape"),
        ("a: 1\nb: \x00", 2, 4, "U+0000"),
        ("\ufeffa: 1", 1, 1, "byte order mark"),
        ("a: " + "[" * 60 + "]" * 60, 1, 54, "levels inside each other"),
    ],
)
def test_broken_yaml_is_told_in_plain_words_at_its_place(text: str, line: int, column: int, words: str) -> None:
    problem = _fails(text)
    assert words in problem.message
    assert (problem.line, problem.column) == (line, column)


def test_a_thousand_aliases_are_enough() -> None:
    _read("a: &a 1\nb: [" + "*a," * 1000 + "]")
    assert "1,000 aliases" in _fails("a: &a 1\nb: [" + "*a," * 1001 + "]").message


def test_aliases_of_aliases_cannot_fill_the_memory() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "more than 100,000 values" in _fails("\n".join(lines)).message


def test_a_file_over_1_mib_is_refused() -> None:
    assert "larger than 1 MiB" in _fails("a: " + "x" * 1024 * 1024).message
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        decode(b"x" * (1024 * 1024 + 1), "f.yaml")


def test_a_file_that_is_not_utf_8_is_refused_at_the_byte() -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml:2:5: byte 0xff is not UTF-8"):
        decode(b"a: 1\nb: x\xff", "f.yaml")
    with pytest.raises(ConfigError, match="UTF-16"):
        decode("a: 1".encode("utf-16"), "f.yaml")
    assert decode("ä: 1".encode(), "f.yaml") == "ä: 1"


def test_lines_are_cut_as_positions_count_them() -> None:
    assert lines_of("a\r\nb\rc\nd\u2028e") == ["a", "b", "c", "d", "e"]
