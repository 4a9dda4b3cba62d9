"""Templates, plain and in URLs."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ssegate.core.template import Template

UNRESERVED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"

values = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)


def test_names_are_told_once_each_in_order_of_appearance():
    template = Template("/{id}/{query.status}/{id}?a={headers.x-github-event}&b={body.a.b}&c={env.X_1}")
    assert template.names == ("id", "query.status", "headers.x-github-event", "body.a.b", "env.X_1")
    assert template.text == "/{id}/{query.status}/{id}?a={headers.x-github-event}&b={body.a.b}&c={env.X_1}"
    assert Template("/plain").names == ()


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("/a/{id", "`{` without its partner"),
        ("/a/id}", "`}` without its partner"),
        ("/a/{i{d}", "`{` without its partner"),
        ("{", "`{` without its partner"),
        ("{a}}", "`}` without its partner"),
        ("{{a}", "`}` without its partner"),
        ("/a/{}", "`{}` without a name"),
        ("/a/{ id }", "` id ` is not a name"),
        ("/a/{1d}", "`1d` is not a name"),
        ("/a/{a..b}", "`a..b` is not a name"),
        ("/a/{a.}", "`a.` is not a name"),
        ("/a/{.a}", "`.a` is not a name"),
        ("/a/{a-b}", "`a-b` is not a name"),
        ("/a/{rest:path}", "`rest:path` is not a name"),
        ("/a/{é}", "`é` is not a name"),
        ("/a/{id\n}", "is not a name"),
    ],
)
def test_what_is_no_template_is_refused_with_the_fact_and_the_mend(text, fact):
    with pytest.raises(ValueError, match="write") as error:
        Template(text)
    assert fact in str(error.value)


def test_double_braces_are_literal_ones():
    assert Template("{{{id}}} {{id}}").expand({"id": "17"}) == "{17} {id}"
    assert Template("{{id}}").names == ()


def test_templates_are_equal_by_their_text():
    assert Template("/{id}") == Template("/{id}")
    assert hash(Template("/{id}")) == hash(Template("/{id}"))
    assert Template("/{id}") != Template("/{ix}")
    assert Template("/{id}") != "/{id}"


def test_a_template_is_shown_without_its_query_where_secrets_are():
    assert repr(Template("/a/{id}?key=s3cret")) == "Template('/a/{id}')"


def test_plain_expansion_leaves_the_value_as_it_is():
    assert Template("order-{body.type}").expand({"body.type": "a/b c%"}) == "order-a/b c%"


def test_values_may_come_from_a_function():
    assert Template("/{a}/{b.c}").expand_url(lambda name: name.upper()) == "/A/B.C"


def test_a_value_is_encoded_completely_in_path_and_query_alike():
    value = " /?#[]@!$&'()*+,;=%\"<>^`{|}\\é😀"
    encoded = Template("/a{x}/b?q={x}").expand_url({"x": value}).removeprefix("/a")
    in_path, _, in_query = encoded.partition("/b?q=")
    assert in_path == in_query
    assert in_path.startswith("%20%2F%3F%23%5B%5D%40%21%24%26%27%28%29%2A%2B%2C%3B%3D%25")
    assert in_path.endswith("%5C%C3%A9%F0%9F%98%80")
    assert Template("/{x}").expand_url({"x": UNRESERVED}) == "/" + UNRESERVED


@pytest.mark.parametrize(
    "text", ["/api/v1;v=2/a,b/%7E:@/!$'()*+", "/a?filter[x]=1|2&b=c%20d&&e", "/a?", "/a?b=?/", "/"]
)
def test_literal_parts_stay_as_they_are(text):
    assert Template(text).expand_url({}) == text


@given(values)
@example("%2e%2e")
@example("a+b c")
def test_the_upstream_decodes_exactly_the_value(value):
    query = Template("/a?x=1&q={v}&y=2").expand_url({"v": value})
    assert parse_qsl(query.partition("?")[2], keep_blank_values=True) == [("x", "1"), ("q", value), ("y", "2")]
    path = Template("/a/v{v}/b").expand_url
    if any(part in (".", "..") for part in decoded_until_the_end("v" + value).replace("\\", "/").split("/")):
        return
    try:
        assert [unquote(part) for part in path({"v": value}).split("/")] == ["", "a", "v" + value, "b"]
    except ValueError:
        assert "%" in value  # an encoded control character


def decoded_until_the_end(text: str) -> str:
    while (decoded := unquote(text)) != text:
        text = decoded
    return text


dotty = st.lists(
    st.sampled_from([".", "..", "/", "\\", "%2e", "%2E", "%2f", "%5c", "a", "%25", "%252e"]), max_size=4
).map("".join)


@given(dotty, dotty)
def test_no_two_values_together_can_change_the_path(first, second):
    template = Template("/a/{x}{y}/b")
    try:
        url = template.expand_url({"x": first, "y": second})
    except ValueError:
        assert first + second == "" or "." in decoded_until_the_end(first + second)
        return
    for _ in range(4):
        url = unquote(url)
        assert not {".", ".."} & set(url.replace("\\", "/").split("/"))


@pytest.mark.parametrize(
    "value", [".", "..", "../admin", "a/../b", "a\\..", "%2e%2e", "%2E.", "%252e%252e", "x/%2e%2e%2fy", ""]
)
def test_a_value_that_would_make_a_dot_or_empty_segment_is_refused_in_the_path(value):
    with pytest.raises(ValueError, match=r"`\{x\}`"):
        Template("/a/{x}/b").expand_url({"x": value})
    assert Template("/a?q={x}").expand_url({"x": value}).startswith("/a?q=")


def test_dots_that_only_meet_a_literal_are_refused_too():
    with pytest.raises(ValueError, match="segment"):
        Template("/a/.{x}").expand_url({"x": "."})
    with pytest.raises(ValueError, match="segment"):
        Template("/a/%2e{x}").expand_url({"x": ""})
    assert Template("/a/{x}.json").expand_url({"x": "v1.2..3"}) == "/a/v1.2..3.json"


@pytest.mark.parametrize("value", ["\0", "a\r\nb", "\x1f", "\x7f", "\x85", "\t"])
def test_control_characters_are_refused_and_the_value_is_not_told(value):
    for text in ("/a/{x}", "/a?q={x}", "/a?q=1{x}"):
        with pytest.raises(ValueError, match="control character") as error:
            Template(text).expand_url({"x": "s3cret" + value})
        assert "s3cret" not in str(error.value)


def test_encoded_control_characters_are_refused_in_the_path():
    with pytest.raises(ValueError, match="control character"):
        Template("/a/{x}").expand_url({"x": "a%00b"})


def test_a_lone_surrogate_is_refused_and_the_value_is_not_told():
    with pytest.raises(ValueError, match=r"`\{x\}` is not Unicode text") as error:
        Template("/a/{x}").expand_url({"x": "s3cret\ud800"})
    assert not isinstance(error.value, UnicodeError)


def test_an_absent_value_is_told_by_its_name():
    for text in ("/a/{query.x}", "/a?b=1{query.x}", "/a?{query.x}", "/a?{query.x}=1", "/a?b={query.x}{query.x}"):
        with pytest.raises(LookupError, match=r"`\{query\.x\}` has no value"):
            Template(text).expand_url({})
    with pytest.raises(LookupError, match=r"`\{query\.x\}` has no value"):
        Template("{query.x}").expand({})


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("/orders?status={query.status}&limit=200", "/orders?limit=200"),
        ("/orders?limit=200&status={query.status}", "/orders?limit=200"),
        ("/orders?a=1&status={query.status}&b=2", "/orders?a=1&b=2"),
        ("/orders?status={query.status}", "/orders"),
        ("/orders?status={query.status}&more={query.more}", "/orders"),
        ("/{id}?status={query.status}&id={id}", "/17?id=17"),
        ("?status={query.status}&limit=200", "?limit=200"),
    ],
)
def test_a_query_pair_whose_value_is_absent_is_left_out(text, url):
    assert Template(text).expand_url({"id": "17"}) == url


def test_an_empty_value_is_not_an_absent_one():
    assert Template("/a?status={query.status}&b=1").expand_url({"query.status": ""}) == "/a?status=&b=1"


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("orders/{id}", "begin with `/`"),
        ("{id}", "begin with `/`"),
        ("?a={id}", "begin with `/`"),
        ("http://{id}/", "begin with `/`"),
        ("//{id}/a", "name a host"),
        ("/a b", "percent-encode"),
        ("/é", "percent-encode"),
        ("/a#b", "percent-encode"),
        ("/a\\b", "percent-encode"),
        ("/a\r\nb", "percent-encode"),
        ("/100%", "write `%25`"),
        ("/%{id}", "write `%25`"),
        ("/%2{id}", "write `%25`"),
        ("/a?b=%zz", "write `%25`"),
        ("/a/../b", "`..` segment"),
        ("/a/%2E%2e/b", "`..` segment"),
        ("/a/./b/{id}", "`..` segment"),
        ("/a/%252e", "`..` segment"),
    ],
)
def test_what_cannot_be_an_upstream_url_is_found_before_it_is_used(text, fact):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message differs by case and is compared below
        Template(text).check_url()
    assert fact in str(error.value)


@pytest.mark.parametrize("text", ["/", "/{id}", "/a/{id}/b?c={query.d}", "/a/..b/...", "/.well-known/x", "/a%20b?c=.."])
def test_what_can_be_an_upstream_url_passes(text):
    Template(text).check_url()


def test_many_encodings_inside_each_other_cost_little():
    value = "%" + "25" * 100_000
    assert len(Template("/a/{x}").expand_url({"x": value})) == len("/a/%25") + 200_000
