"""`${…}`: what it becomes, and what is said when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssegate.config.environment import ExpansionError, expand, has_reference

ENVIRON = {"HOST": "h", "EMPTY": "", "DOLLAR": "${HOST}", "API_URL": "u"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://${HOST}:80", "http://h:80"),
        ("${NOT:-default: x}", "default: x"),
        ("${NOT:-}", ""),
        ("${EMPTY}", ""),
        ("${EMPTY:-x}", "x"),
        ("${HOST:?must be}", "h"),
        ("$${HOST}", "${HOST}"),
        ("a$$b", "a$b"),
        ("^[a-z]+$", "^[a-z]+$"),
        ("$HOST", "$HOST"),
        ("${DOLLAR}", "${HOST}"),
        ("${HOST}${HOST}", "hh"),
    ],
)
def test_references_are_put_in_once(text: str, expected: str) -> None:
    assert expand(text, ENVIRON) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${NOT}", "`NOT` is not set; set it, or write ${NOT:-default}"),
        ("${NOT:?ask Eve}", "`NOT` is not set: ask Eve"),
        ("${EMPTY:?}", "`EMPTY` is not set"),
        ("${HOST", "`${` is never closed; write `$$` for a dollar sign"),
        ("${}", "what stands in `${…}` is no reference; write ${VAR}, ${VAR:-default} or ${file:/path}"),
        ("${HOST-x}", "what stands in `${…}` is no reference; write ${VAR}, ${VAR:-default} or ${file:/path}"),
        ("${NOT:-${HOST}}", "a default cannot hold another `${…}`"),
        ("${file:secret}", "`${file:…}` wants an absolute path, such as ${file:/run/secrets/token}"),
    ],
)
def test_what_has_no_value_is_told_with_the_mend(text: str, message: str) -> None:
    with pytest.raises(ExpansionError) as caught:
        expand(text, ENVIRON)
    assert [told for told, _ in caught.value.faults] == [message]


def test_all_unset_variables_of_a_text_are_told_at_once() -> None:
    with pytest.raises(ExpansionError) as caught:
        expand("${A1}${HOST}${API_URI}", ENVIRON)
    assert [(message.split("`")[1], hint) for message, hint in caught.value.faults] == [
        ("A1", ""),
        ("API_URI", "did you mean `API_URL`?"),
    ]


def test_a_file_is_read_without_its_last_newline(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    for written, read in ((b"abc\n", "abc"), (b"abc\r\n", "abc"), (b"abc\n\n", "abc\n"), (b"abc", "abc")):
        secret.write_bytes(written)
        assert expand(f"x ${{file:{secret}}}", {}) == f"x {read}"


def test_a_file_that_cannot_be_read_is_told_without_its_contents(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"hunter2\xff")
    (tmp_path / "large").write_bytes(b"x" * (1024 * 1024 + 1))
    for name, words in (
        ("none", "No such file"),
        ("binary", "not UTF-8"),
        ("large", "larger than"),
        (".", "directory"),
    ):
        with pytest.raises(ExpansionError) as caught:
            expand(f"${{file:{tmp_path / name}}}", {})
        assert words in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_bytes_in_the_environment_that_are_no_text_are_refused() -> None:
    with pytest.raises(ExpansionError, match="`X` is not UTF-8 text"):
        expand("${X}", {"X": "a\udcff"})


def test_a_lone_dollar_is_no_reference() -> None:
    assert not has_reference("^a$")
    assert has_reference("a$$")
    assert has_reference("${X}")
