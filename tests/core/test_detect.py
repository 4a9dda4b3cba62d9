import copy
import json
from typing import Any

import json_merge_patch
import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.core.detect import make_detector
from ssegate.core.diff import json_patch, merge_patch
from ssegate.core.document import is_pointer, same
from ssegate.core.event import Update, encode_text
from ssegate.errors import OversizeError, SsegateError, UndecodableError

MIB = 1 << 20


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


def typed(value: Any) -> Any:
    """The value in a form in which `==` tells 1, 1.0 and true apart; apart from the code that is tested."""
    if isinstance(value, dict):
        return {name: typed(member) for name, member in value.items()}
    if isinstance(value, list):
        return [typed(element) for element in value]
    return type(value).__name__, value


def as_sent(value: Any) -> Any:
    """What a client has after it got the value: half a surrogate pair is U+FFFD by then."""
    return json.loads(encode_text(json.dumps(value, ensure_ascii=False)))


def apply(document: Any, update: Update) -> Any:
    """What a client does, with libraries that are not ours."""
    data = json.loads(update.data)
    if update.type == "patch":
        return jsonpatch.apply_patch(document, data)
    if update.type == "merge":
        return json_merge_patch.merge(copy.deepcopy(document), data)
    assert update.type in ("snapshot", "")
    return data


def apply_item(items: dict[str, Any], update: Update) -> dict[str, Any]:
    data = json.loads(update.data)
    if update.type == "snapshot":
        return {json.dumps(item["id"]): item for item in data}
    key = json.dumps(data["id"])
    assert (key in items) == (update.type != "added")
    if update.type == "removed":
        assert typed(items[key]) == typed(data)
        return {name: item for name, item in items.items() if name != key}
    return {**items, key: data}


def said(detector: Any, value: Any) -> list[tuple[str, Any]]:
    return [(update.type, json.loads(update.data)) for update in detector.changes(body(value))]


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_the_first_body_is_a_snapshot_without_a_type_and_the_same_body_again_is_nothing():
    detector = make_detector("orders")
    text = '{"b":1,"a":[true,null,"é\\n"]}'
    assert detector.changes(b'{ "b": 1, "a": [true, null, "\\u00e9\\n"] }') == (Update("orders", text, "", text),)
    assert detector.changes(b'{ "b": 1, "a": [true, null, "\\u00e9\\n"] }') == ()
    assert detector.changes(body({"b": 1, "a": [True, None, "é\n"]})) == ()


@pytest.mark.parametrize("emit", ["snapshot", "patch", "merge"])
@pytest.mark.parametrize(
    ("old", "new"), [(1, 1.0), (1, True), (0, False), (1.0, True), (10, 12), (None, 0), ([1, 2], [2, 1])]
)
def test_values_of_different_types_and_orders_of_arrays_are_changes(emit, old, new):
    for wrap in (lambda v: v, lambda v: {"a": v}, lambda v: [[v], {"a": {"b": v}}]):
        detector = make_detector("t", emit=emit)
        (first,) = detector.changes(body(wrap(old)))
        (second,) = detector.changes(body(wrap(new)))
        assert typed(apply(apply(None, first), second)) == typed(wrap(new))


@pytest.mark.parametrize("emit", ["snapshot", "patch", "merge"])
def test_minus_zero_is_zero(emit):
    detector = make_detector("t", emit=emit)
    assert detector.changes(b"[-0.0]")[0].state == "[0.0]"
    assert detector.changes(b"[0.0]") == ()


@pytest.mark.parametrize("emit", ["snapshot", "patch", "merge"])
def test_the_order_of_members_is_no_change(emit):
    detector = make_detector("t", emit=emit)
    detector.changes(b'{"a":1,"b":{"c":2,"d":3}}')
    assert detector.changes(b'{"b":{"d":3,"c":2},"a":1}') == ()
    assert detector.changes(b'{"b":{"d":2,"c":3},"a":1}') != ()


@pytest.mark.parametrize(
    ("emit", "first", "second"), [("snapshot", "", ""), ("patch", "snapshot", "patch"), ("merge", "snapshot", "merge")]
)
def test_events_have_their_default_types(emit, first, second):
    detector = make_detector("t", emit=emit)
    assert [detector.changes(body({"a": n}))[0].type for n in (1, 2)] == [first, second]


def test_names_replace_the_default_types():
    plain = make_detector("t", names={"snapshot": "order"})
    assert plain.changes(b"1")[0].type == "order"
    patch = make_detector("t", emit="patch", names={"snapshot": "all", "patch": "some"})
    assert [patch.changes(body({"a": n}))[0].type for n in (1, 2)] == ["all", "some"]
    names = {"snapshot": "list", "added": "new", "changed": "other", "removed": "gone"}
    items = make_detector("t", emit="items", items_key=lambda item: item["id"], names=names)
    assert [update.type for update in items.changes(body([{"id": 1}, {"id": 2}]))] == ["list"]
    assert [u.type for u in items.changes(body([{"id": 2, "x": 1}, {"id": 3}]))] == ["gone", "other", "new"]


def test_a_document_that_is_null_is_a_state():
    detector = make_detector("t")
    assert detector.changes(b"null") == (Update("t", "null", "", "null"),)
    assert detector.changes(b" null ") == ()
    assert detector.changes(b"0")[0].data == "0"


@pytest.mark.parametrize("emit", ["snapshot", "patch", "merge"])
def test_nothing_selected_is_no_event_and_the_state_stays(emit):
    detector = make_detector("t", emit=emit, select=lambda document: document.get("data"))
    assert detector.changes(b'{"data":null}') == ()
    assert detector.changes(b'{"data":{"a":1},"n":1}')[0].state == '{"a":1}'
    assert detector.changes(b'{"error":"busy"}') == ()
    assert detector.changes(b'{"data":{"a":1},"n":2}') == ()
    assert detector.changes(b'{"data":{"a":2},"n":2}')[0].state == '{"a":2}'


def test_text_and_bytes_bodies_are_sent_as_they_are():
    text = make_detector("t", body="text")
    assert text.changes("é\r\n".encode()) == (Update("t", "é\r\n", "", "é\r\n"),)
    assert text.changes(b"\xff")[0].data == "\ufffd"
    assert text.changes(b"\xfe") == ()  # no other text to a client
    assert text.changes(b"")[0].state == ""
    raw = make_detector("t", body="bytes")
    assert raw.changes(b"\xff\x00") == (Update("t", "/wA=", "", "/wA="),)
    assert raw.changes(b"\xff\x00") == ()


# --- bad bodies ------------------------------------------------------------------------------------------------------

BAD = {
    "empty": b"", "blank": b" \n", "bom only": b"\xef\xbb\xbf", "cut": b'{"secret":', "garbage behind": b'{"secret":1} x',
    "NaN": b'["secret",NaN]', "Infinity": b'["secret",-Infinity]', "overflow": b'["secret",1e999]',
    "long overflow": b"-1" + 400 * b"0" + b".5", "too many digits": b"9" * 5000, "not UTF-8": b'"secret\xff"',
    "UTF-16": '{"secret":1}'.encode("utf-16"), "raw surrogate": b'"secret\xed\xa0\x80"', "control": b'"secret\n"',
    "deep array": b"[" * 100_000 + b"]" * 100_000, "deep object": b'{"secret":' * 100_000 + b"1" + b"}" * 100_000,
    "single quotes": b"{'secret':1}", "two documents": b'"secret" "secret"',
}  # fmt: skip


@pytest.mark.parametrize("emit", ["snapshot", "patch", "merge", "items"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_an_error_each_time_and_leaves_the_state(emit, name):
    key = {"items_key": lambda item: item["id"]} if emit == "items" else {}
    detector = make_detector("t", emit=emit, **key)
    for _ in range(2):
        with pytest.raises(UndecodableError):
            detector.changes(BAD[name])
    (first,) = detector.changes(body([{"id": 1}]))
    for _ in range(2):
        with pytest.raises(UndecodableError) as caught:
            detector.changes(BAD[name])
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None  # it would carry the body
    assert detector.changes(body([{"id": 1}])) == ()
    (second,) = detector.changes(body([{"id": 1, "a": 2}]))
    assert json.loads(first.data) == [{"id": 1}]
    assert json.loads(second.state) == [{"id": 1, "a": 2}]


def test_numbers_that_are_no_json_are_errors_even_where_nothing_selects_them():
    detector = make_detector("t", select=lambda document: document["a"])
    for bad in (b'{"a":1,"b":1e999}', b'{"a":1,"b":NaN}'):
        with pytest.raises(UndecodableError):
            detector.changes(bad)


def test_a_byte_order_mark_is_tolerated():
    assert make_detector("t").changes(b'\xef\xbb\xbf{"a":1}')[0].data == '{"a":1}'


def test_an_error_says_where_the_body_is_wrong():
    with pytest.raises(UndecodableError, match=r"^the body is not JSON: line 2, column 3$"):
        make_detector("t").changes(b"[1,\n  x]")


def test_an_expression_that_meets_a_value_of_the_wrong_kind_is_an_error_of_the_body():
    def select(document: Any) -> Any:
        raise ValueError(f"invalid type for value: {document}")

    with pytest.raises(UndecodableError, match="select does not fit the body") as caught:
        make_detector("t", select=select).changes(b'"secret"')
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_an_expression_that_gives_no_json_is_an_error(value):
    for ignore in ((), ("/a",)):
        with pytest.raises(UndecodableError, match="JSON does not have"):
            make_detector("t", select=lambda _: [value], ignore=ignore).changes(b"1")


# --- limits ----------------------------------------------------------------------------------------------------------


def test_an_oversize_state_is_not_accepted_and_the_next_is_compared_with_the_last_accepted_one():
    detector = make_detector("t", emit="patch", max_event_size=MIB)
    detector.changes(body({"a": 1, "b": 1}))
    for _ in range(2):
        with pytest.raises(OversizeError) as caught:
            detector.changes(body("x" * (2 * MIB - 2)))
        assert str(caught.value) == "the state is 2,097,152 bytes; limits.event_size is 1,048,576"
    assert said(detector, {"a": 2, "b": 1}) == [("patch", [{"op": "replace", "path": "/a", "value": 2}])]


@pytest.mark.parametrize("arguments", [{}, {"emit": "patch"}, {"emit": "items", "items_key": str}, {"body": "text"}])
def test_the_limit_counts_the_bytes_of_the_state(arguments):
    detector = make_detector("t", max_event_size=8, **arguments)
    assert detector.changes('["äö"]'.encode()) != ()
    with pytest.raises(OversizeError):
        detector.changes('["äöx"]'.encode())


def test_white_space_does_not_count():
    assert make_detector("t", max_event_size=3).changes(b" " * 100 + b"[1]")[0].data == "[1]"


@pytest.mark.parametrize("emit", ["patch", "merge"])
def test_a_patch_larger_than_the_snapshot_is_a_snapshot(emit):
    detector = make_detector("t", emit=emit)
    detector.changes(body({f"old{n}": n for n in range(200)}))
    (update,) = detector.changes(body({f"new{n}": n for n in range(200)}))
    assert (update.type, update.data) == ("snapshot", update.state)


def test_the_patch_of_a_tiny_document_stays_a_patch_unless_it_is_over_the_limit():
    for limit, expected in ((MIB, "patch"), (30, "snapshot")):
        detector = make_detector("t", emit="patch", max_event_size=limit)
        detector.changes(b'{"a":1}')
        assert detector.changes(b'{"a":2}')[0].type == expected


def test_items_that_all_change_are_one_snapshot():
    detector = make_detector("t", emit="items", items_key=lambda item: item["id"])
    detector.changes(body([{"id": n, "v": 0} for n in range(200)]))
    (update,) = detector.changes(body([{"id": n, "v": 1} for n in range(200)]))
    assert (update.type, update.data) == ("snapshot", update.state)


def test_the_work_of_a_patch_is_bounded():
    # Each number is elsewhere: an alignment without bounds would take minutes.
    old = list(range(100_000))
    new = [n * 7919 % 100_000 for n in old]
    size = len(json.dumps(new))
    assert json_patch(old, new, size=size, max_size=1 << 40) is None
    deep_old: Any = 1
    deep_new: Any = 2
    for _ in range(400):
        deep_old, deep_new = {"a": deep_old, "b": [0] * 50}, {"a": deep_new, "b": [0] * 50}
    detector = make_detector("t", emit="merge")
    detector.changes(body(deep_old))
    assert detector.changes(body(deep_new))[0].type == "snapshot"


# --- patch -----------------------------------------------------------------------------------------------------------


def operations(old: Any, new: Any) -> Any:
    text = json_patch(old, new, size=MIB, max_size=MIB)
    assert text is not None
    patch = json.loads(text)
    assert typed(jsonpatch.apply_patch(old, patch)) == typed(new)
    return patch


def things(count: int, **identity: Any) -> list[Any]:
    return [
        {**{name: make(n) for name, make in identity.items()}, "v": n % 3, "deep": {"w": [n]}} for n in range(count)
    ]


KINDS_OF_ARRAYS = {
    "ids": things(200, id=int), "texts": things(200, name=str), "no name": things(200), "numbers": list(range(200)),
    "equal": [{"a": 1}] * 200,
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS_OF_ARRAYS)
@pytest.mark.parametrize("at", [0, 100, 199])
def test_one_element_inserted_or_removed_is_one_operation(name, at):
    array = KINDS_OF_ARRAYS[name]
    shorter = array[:at] + array[at + 1 :]
    assert [operation["op"] for operation in operations({"l": shorter}, {"l": array})] == ["add"]
    assert [operation["op"] for operation in operations({"l": array}, {"l": shorter})] == ["remove"]


@pytest.mark.parametrize("name", ["ids", "texts"])
def test_elements_are_followed_by_name_through_insertions_before_and_behind(name):
    array = KINDS_OF_ARRAYS[name]
    changed = copy.deepcopy(array)
    changed[100]["v"] = 9
    new = [{"id": -1, "name": "x"}, *changed[:150], *changed[151:], {"id": -2, "name": "y"}]
    assert [(o["op"], o["path"]) for o in operations(array, new)] == [
        ("add", "/0"), ("replace", "/101/v"), ("remove", "/151"), ("add", "/200"),
    ]  # fmt: skip


def test_a_changed_member_is_one_operation_deep_in_the_document():
    old = {"data": things(200, id=int), "n": 1}
    new = copy.deepcopy(old)
    new["data"][7]["deep"]["w"][0] = 7.0
    assert operations(old, new) == [{"op": "replace", "path": "/data/7/deep/w/0", "value": 7.0}]


def test_names_with_slashes_and_tildes_are_escaped():
    old = {"a/b": 1, "m~n": 1, "~1": 1, "": 1}
    assert [o["path"] for o in operations(old, dict.fromkeys(old, 2))] == ["/a~1b", "/m~0n", "/~01", "/"]


def test_a_changed_element_is_known_beside_an_inserted_one():
    old = things(5, id=int)
    changed = {**old[0], "v": 9}
    new = [{"id": -1}, changed, *old[1:4], {"id": -2}, {**old[4], "v": True}]
    assert [(o["op"], o["path"]) for o in operations(old, new)] == [
        ("add", "/0"), ("replace", "/1/v"), ("add", "/5"), ("replace", "/6/v"),
    ]  # fmt: skip


def test_an_element_that_differs_in_type_only_is_seen_among_those_that_moved():
    old = [{"id": n, "v": 1} for n in range(5)]
    new = [{"id": -1}, *old[:2], {"id": 2, "v": True}, *old[3:], {"id": -2}]
    assert [(o["op"], o["path"]) for o in operations(old, new)] == [
        ("add", "/0"), ("replace", "/3/v"), ("add", "/6"),
    ]  # fmt: skip


def test_elements_without_names_of_their_own_are_aligned_by_content():
    for old in ([{"id": 1, "v": n} for n in range(9)], [1, 1, 2, 1, 1, 1, 2, 2, 1], [[n % 2] for n in range(9)]):
        new = [{"id": 1, "v": "x"}, *old, {"id": 1, "v": "y"}]
        assert [o["op"] for o in operations(old, new)] == ["add", "add"]


def test_another_thing_in_an_elements_place_replaces_it_whole():
    same_otherwise = {"v": 1, "w": 2}
    new = {"id": 2, **same_otherwise}
    assert operations([{"id": 1, **same_otherwise}], [new]) == [{"op": "replace", "path": "/0", "value": new}]


def test_an_object_whose_members_all_changed_is_replaced_whole():
    assert operations({"a": {"x": 1, "y": 2}}, {"a": {"x": 3, "z": 4}}) == [
        {"op": "replace", "path": "/a", "value": {"x": 3, "z": 4}}
    ]


# The examples of RFC 6902, appendix A, that a change between two documents can give with add, remove and replace.
RFC6902 = {
    "A.1": ({"foo": "bar"}, {"baz": "qux", "foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}]),
    "A.2": ({"foo": ["bar", "baz"]}, {"foo": ["bar", "qux", "baz"]}, [{"op": "add", "path": "/foo/1", "value": "qux"}]),
    "A.3": ({"baz": "qux", "foo": "bar"}, {"foo": "bar"}, [{"op": "remove", "path": "/baz"}]),
    "A.4": ({"foo": ["bar", "qux", "baz"]}, {"foo": ["bar", "baz"]}, [{"op": "remove", "path": "/foo/1"}]),
    "A.5": ({"baz": "qux", "foo": "bar"}, {"baz": "boo", "foo": "bar"}, [{"op": "replace", "path": "/baz", "value": "boo"}]),
    "A.10": ({"foo": "bar"}, {"foo": "bar", "child": {"grandchild": {}}}, [{"op": "add", "path": "/child", "value": {"grandchild": {}}}]),
    "A.16": ({"foo": ["bar"]}, {"foo": ["bar", ["abc", "def"]]}, [{"op": "add", "path": "/foo/1", "value": ["abc", "def"]}]),
}  # fmt: skip


@pytest.mark.parametrize("name", RFC6902)
def test_the_examples_of_rfc_6902_are_said_as_there(name):
    old, new, patch = RFC6902[name]
    assert operations(old, new) == patch


# --- merge patch -----------------------------------------------------------------------------------------------------

# RFC 7396, appendix A: original, patch, result. Where the result has a null member, or the patch says more than the
# change, another patch (or none) is right; `None` stands for "cannot be said".
UNSAYABLE = "a snapshot"
RFC7396 = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("old", "patch", "new"), RFC7396)
def test_the_examples_of_rfc_7396_lead_to_their_results(old, patch, new):
    text = merge_patch(old, new, size=MIB, max_size=MIB)
    assert text is not None
    found = json.loads(text)
    for one in (found, patch):
        assert typed(json_merge_patch.merge(copy.deepcopy(old), one)) == typed(new)
    assert len(text) <= len(json.dumps(patch, separators=(",", ":")))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": 1}, {"a": None}),
        ({}, {"a": None}),
        ({}, {"a": {"b": {"c": None}}}),
        ({"a": {"b": 1}}, {"a": {"b": None}}),
        ({"a": [1]}, {"a": {"b": None}}),
        ([1], {"a": None}),
    ],
)
def test_a_member_that_becomes_null_is_a_snapshot(old, new):
    detector = make_detector("t", emit="merge")
    said(detector, old)
    assert said(detector, new) == [("snapshot", new)]


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        ({"a": None, "b": 1}, {"a": None, "b": 2}, {"b": 2}),
        ({"a": 1}, {"a": [None, {"b": None}]}, {"a": [None, {"b": None}]}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": None}}),
        ({"a": 1}, {"a": {}}, {"a": {}}),
        ({"a": 1}, {}, {"a": None}),
        ([1], {}, {}),
        ({"a": 1}, None, None),
        (None, {"a": 1}, {"a": 1}),
        (1, True, True),
    ],
)
def test_what_can_be_said_is_a_merge(old, new, patch):
    detector = make_detector("t", emit="merge")
    (first,) = detector.changes(body(old))
    (second,) = detector.changes(body(new))
    assert (second.type, typed(json.loads(second.data))) == ("merge", typed(patch))
    assert typed(apply(apply(None, first), second)) == typed(new)


# --- ignore ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("emit", ["snapshot", "patch", "merge"])
def test_ignored_members_are_no_change_but_come_along_with_one(emit):
    ignore = ["/at", "/list/0/at", "/list/-", "/a~1b/m~0n", "/not/there", "/list/x", "/list/01"]
    detector = make_detector("t", emit=emit, ignore=ignore)

    def document(at: int, value: int, **more: Any) -> Any:
        return {"at": at, "list": [{"at": at, "v": value}, {"at": 0}], "a/b": {"m~n": at}, **more}

    (first,) = detector.changes(body(document(1, 1)))
    assert json.loads(first.data) == document(1, 1)
    assert detector.changes(body(document(2, 1))) == ()
    (second,) = detector.changes(body(document(3, 2)))
    assert typed(apply(apply(None, first), second)) == typed(document(3, 2))
    assert json.loads(second.state) == document(3, 2)
    missing = {"list": [{"v": 2}, {"at": 0}], "a/b": {}}
    assert detector.changes(body(missing)) == ()
    assert detector.changes(body({**missing, "new": 1})) != ()


@pytest.mark.parametrize(
    ("pointer", "name"), [("/~01", "~1"), ("/~1~0", "/~"), ("/", ""), ("/a b", "a b"), ("/0", "0")]
)
def test_ignored_names_are_unescaped(pointer, name):
    detector = make_detector("t", ignore=[pointer])
    detector.changes(body({name: 1, "v": 1}))
    assert detector.changes(body({name: 2, "v": 1})) == ()
    assert detector.changes(body({name: 2, "v": 2})) != ()


def test_an_ignored_element_is_left_out_by_its_index():
    detector = make_detector("t", ignore=["/0", "/2/a", "/2/a/deeper"])
    detector.changes(body([1, 2, {"a": 3}]))
    assert detector.changes(body([9, 2, {}])) == ()
    assert detector.changes(body([9, 3, {}])) != ()


def test_ignore_points_into_what_is_selected():
    detector = make_detector("t", select=lambda document: document["data"], ignore=["/at"])
    detector.changes(b'{"data":{"at":1,"v":1},"at":1}')
    assert detector.changes(b'{"data":{"at":2,"v":1},"at":2}') == ()


def test_ignored_members_of_items_are_no_change_but_come_along_with_one():
    detector = make_detector(
        "t", emit="items", ignore=["/data/0/at", "/n"], items_at=lambda d: d["data"], items_key=lambda item: item["id"]
    )
    said(detector, {"n": 1, "data": [{"id": 1, "at": 1}, {"id": 2}]})
    assert said(detector, {"n": 2, "data": [{"id": 1, "at": 2}, {"id": 2}]}) == []
    assert said(detector, {"n": 3, "data": [{"id": 1, "at": 3}, {"id": 2, "v": 1}]}) == [
        ("changed", {"id": 1, "at": 3}), ("changed", {"id": 2, "v": 1}),
    ]  # fmt: skip


@pytest.mark.parametrize("pointer", ["", "a", "/~", "/~2", "/a~"])
def test_what_is_no_pointer_is_refused(pointer):
    assert not is_pointer(pointer)
    with pytest.raises(ValueError, match="JSON Pointer"):
        make_detector("t", ignore=[pointer])


# --- items -----------------------------------------------------------------------------------------------------------


def by_id(**arguments: Any) -> Any:
    return make_detector("t", emit="items", items_key=lambda item: item.get("id"), **arguments)


def test_items_are_told_as_removed_changed_and_added_in_the_new_lists_order():
    detector = by_id()
    said(detector, [{"id": n, "v": 0} for n in (1, 2, 3, 4)])
    updates = detector.changes(body([{"id": 9}, {"id": 4, "v": 1}, {"id": 2, "v": 1}, {"id": 8}]))
    assert [(update.type, json.loads(update.data)) for update in updates] == [
        ("removed", {"id": 1, "v": 0}), ("removed", {"id": 3, "v": 0}), ("changed", {"id": 4, "v": 1}),
        ("changed", {"id": 2, "v": 1}), ("added", {"id": 9}), ("added", {"id": 8}),
    ]  # fmt: skip
    assert [update.state for update in updates[:-1]] == [None] * 5
    assert updates[-1].state == '[{"id":9},{"id":4,"v":1},{"id":2,"v":1},{"id":8}]'


def test_items_in_another_order_are_no_event():
    detector = by_id()
    said(detector, [{"id": 1, "v": 1}, {"id": 2}])
    assert said(detector, [{"id": 2}, {"v": 1, "id": 1}]) == []
    assert said(detector, [{"id": 2}, {"v": 2, "id": 1}]) == [("changed", {"v": 2, "id": 1})]


def test_keys_have_types():
    detector = by_id()
    keys: list[Any] = [1, "1", True, 1.0, "true", "=1", [1], {"a": 1, "b": 2}]
    assert len(said(detector, [{"id": key} for key in keys])) == 1
    assert said(detector, [{"id": key} for key in [*keys[:-1], {"b": 2, "a": 1}]]) == []
    assert said(detector, [{"id": key} for key in keys if key is not True]) == [("removed", {"id": True})]


def test_an_empty_list_is_a_list():
    detector = by_id()
    assert said(detector, []) == [("snapshot", [])]
    assert said(detector, [{"id": 1}]) == [("added", {"id": 1})]
    assert said(detector, []) == [("removed", {"id": 1})]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"data": {"a": 1}}, "items.at gives no list but an object"),
        ({}, "items.at gives no list but null"),
        ({"data": 5}, "items.at gives no list but a number"),
        ({"data": [{"id": 17}, {"id": 18}, {"id": 17}]}, "two items have the key 17"),
        ({"data": [{"id": "x" * 99}, {"id": "x" * 99}]}, "two items have the key \"" + "x" * 38 + "…"),
        ({"data": [{"id": 1}, {"id": None}]}, "items.key gives nothing for the item at index 1"),
        ({"data": [{"id": 1}, {}]}, "items.key gives nothing for the item at index 1"),
        ({"data": [1]}, "items.key does not fit the body"),
    ],
)  # fmt: skip
def test_a_list_without_proper_keys_is_an_error_and_leaves_the_state(value, message):
    detector = make_detector(
        "t", emit="items", items_at=lambda document: document.get("data"), items_key=lambda item: dict(item).get("id")
    )
    said(detector, {"data": [{"id": 1}]})
    for _ in range(2):
        with pytest.raises(UndecodableError) as caught:
            detector.changes(body(value))
        assert str(caught.value).startswith(message)
    assert said(detector, {"data": [{"id": 1}, {"id": 2}]}) == [("added", {"id": 2})]


@pytest.mark.parametrize(
    "arguments",
    [{"emit": "items"}, {"items_key": str}, {"items_at": str}, {"body": "text", "emit": "patch"},
     {"body": "bytes", "select": str}, {"body": "text", "ignore": ["/a"]}],
)  # fmt: skip
def test_arguments_that_do_not_fit_together_are_refused(arguments):
    with pytest.raises(ValueError, match=r"items|body"):
        make_detector("t", **arguments)


# --- properties ------------------------------------------------------------------------------------------------------

names = st.sampled_from(["", "a", "b", "c", "/", "~", "a/b", "~1", "0", "-", "é", "\ud800", "\udfff", "😀", "id"])
scalars = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 0.0, 1.0, -1, "", "1", "true", "\ud83d", "\ude00", "\u2028", "\0\r\n"]),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
)
documents = st.recursive(
    scalars, lambda below: st.lists(below, max_size=6) | st.dictionaries(names, below, max_size=5), max_leaves=20
)


@st.composite
def edited(draw: st.DrawFn, value: Any) -> Any:
    """A document a little different from another: members and elements added, removed, moved, replaced."""
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 5)) == 0:
        return draw(documents)
    if isinstance(value, dict):
        name = draw(st.sampled_from(sorted(value)))
        rest = {other: member for other, member in value.items() if other != name}
        if draw(st.integers(0, 3)) == 0:
            return draw(st.sampled_from([rest, {**value, draw(names): draw(documents)}]))
        return {**rest, name: draw(edited(value[name]))}
    at = draw(st.integers(0, len(value) - 1))
    before, element, behind = value[:at], value[at], value[at + 1 :]
    match draw(st.integers(0, 3)):
        case 0:
            return before + behind
        case 1:
            return [*before, draw(documents), element, *behind]
        case 2:
            return [*behind, element, *before]
        case _:
            return [*before, draw(edited(element)), *behind]


@st.composite
def histories(draw: st.DrawFn) -> list[Any]:
    """Several states of one document, with some that come again."""
    states = [draw(documents)]
    for _ in range(draw(st.integers(1, 4))):
        states.append(draw(edited(draw(st.sampled_from(states)))))
    return states


@pytest.mark.parametrize("emit", ["snapshot", "patch", "merge"])
@given(history=histories())
def test_a_client_that_applies_the_changes_has_the_upstreams_document(emit, history):
    detector = make_detector("t", emit=emit)
    here: Any = detector
    for state in history:
        expected = as_sent(state)
        updates = detector.changes(body(state))
        assert (updates == ()) == (here is not detector and typed(here) == typed(expected))
        for update in updates:
            assert typed(json.loads(update.state or "")) == typed(expected)
            assert update.data.encode()  # nothing that UTF-8 cannot say
            here = apply(here, update)
        assert typed(here) == typed(expected)


@pytest.mark.parametrize("emit", ["snapshot", "patch", "merge"])
@given(history=histories(), pointers=st.lists(st.sampled_from(["/a", "/a/0", "/0/a", "/~1", "/b/c", "/0", "/1"])))
def test_with_something_ignored_what_is_sent_is_still_the_whole_difference(emit, history, pointers):
    detector = make_detector("t", emit=emit, ignore=pointers)
    here: Any = None
    for state in history:
        for update in detector.changes(body(state)):
            here = apply(here, update)
            assert typed(here) == typed(as_sent(state))


keys = st.sampled_from([1, 2, 3, "1", "2", True, False, 1.0, "\ud800", "a"])
lists = st.lists(st.fixed_dictionaries({"id": keys, "v": scalars}), max_size=8, unique_by=lambda item: repr(item["id"]))


@given(history=st.lists(lists, min_size=2, max_size=5))
def test_a_client_that_applies_item_changes_has_the_upstreams_list_by_key(history):
    detector = by_id()
    here: dict[str, Any] = {}
    for state in history:
        updates = detector.changes(body(state))
        for update in updates:
            here = apply_item(here, update)
        assert typed(here) == typed({json.dumps(item["id"]): item for item in as_sent(state)})
        if updates:
            assert updates[-1].state is not None
            assert typed(json.loads(updates[-1].state)) == typed(as_sent(state))
            assert all(update.state is None for update in updates[:-1])


array_elements = st.fixed_dictionaries(
    {"id": st.integers(0, 12)}, optional={"v": scalars, "w": st.lists(scalars, max_size=3)}
)


@given(old=st.lists(array_elements | scalars, max_size=12), new=st.lists(array_elements | scalars, max_size=12))
def test_arrays_are_patched_whatever_moved(old, new):
    old, new = as_sent(old), as_sent(new)
    text = json_patch(old, new, size=MIB, max_size=MIB)
    assert text is not None
    assert typed(jsonpatch.apply_patch(old, text)) == typed(new)
    assert (text == "[]") == (typed(old) == typed(new))


@given(old=documents, new=documents)
def test_same_is_equality_by_value_and_type(old, new):
    assert same(old, new) == (typed(old) == typed(new))
    assert same(old, copy.deepcopy(old))


@given(data=st.binary(max_size=40) | st.text('{}[]",:0123456789eE+-.aNntrufls\\ud8', max_size=20).map(str.encode))
def test_any_bytes_are_a_state_or_an_error_of_ours(data):
    for arguments in ({}, {"emit": "patch"}, {"emit": "items", "items_key": lambda item: item}):
        detector = make_detector("t", **arguments)  # type: ignore[arg-type]  # one dict for all kinds
        detector.changes(b"[1]")
        try:
            updates = detector.changes(data)
        except SsegateError:
            continue
        for update in updates[-1:]:
            assert update.state is not None
            json.loads(update.state)
