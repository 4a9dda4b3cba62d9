"""Where a client stands in many topics, as one id: what is written is read again, and nothing else is."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ssegate.core.journal import Position
from ssegate.core.vector import BEGINNING, MAX_TOPICS, MAX_VECTOR, UNKNOWN, Places, Vector, decode_vector, encode_vector

EPOCH = "k3j4h5g6f7d8"
MOST = 10**18 - 1
"""The largest offset of a cursor."""

names = st.text(min_size=1, max_size=20)
epochs = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,11}", fullmatch=True)
offsets = st.one_of(st.integers(0, MOST), st.sampled_from([0, 1, (1 << 14) - 1, 1 << 14, (1 << 38) - 1, 1 << 38, MOST]))


def vector_of(*places: tuple[str, str, int]) -> Vector:
    vector = decode_vector(encode_vector((name, Position(epoch, offset)) for name, epoch, offset in places))
    assert vector is not None
    return vector


@given(st.dictionaries(names, st.tuples(epochs, offsets), min_size=1, max_size=8))
def test_every_place_that_was_written_is_read_again(places: dict[str, tuple[str, int]]) -> None:
    vector = vector_of(*((name, *place) for name, place in places.items()))
    for name, (epoch, offset) in places.items():
        assert vector.cursor(name, epoch) == f"{epoch}-{offset}"
        assert vector.cursor(name, epoch + "x") == UNKNOWN


def test_a_topic_that_is_not_in_it_is_new_to_the_client() -> None:
    vector = vector_of(("/a", EPOCH, 3))
    assert vector.cursor("/b", EPOCH) is None
    assert vector.entry("/b") == b""


@pytest.mark.parametrize("epoch", ["", EPOCH])
def test_a_topic_that_had_no_event_has_its_place_before_the_first_whatever_came_since(epoch: str) -> None:
    assert vector_of(("/a", EPOCH, 3), ("/b", "", 0)).cursor("/b", epoch) == BEGINNING
    assert Position.parse(BEGINNING) is None
    assert encode_vector([]) == ""


def test_what_stands_for_another_epoch_is_no_cursor() -> None:
    assert vector_of(("/a", EPOCH, 3)).cursor("/a", "") == UNKNOWN
    assert Position.parse(UNKNOWN) is None


def test_a_hundred_topics_with_the_largest_offsets_fit() -> None:
    text = encode_vector((f"/orders/{number}/events", Position("e" * 40, MOST)) for number in range(MAX_TOPICS))
    assert len(text) == 2402 < MAX_VECTOR
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text)
    vector = decode_vector(text)
    assert vector is not None
    assert vector.cursor("/orders/99/events", "e" * 40) == f"{'e' * 40}-{MOST}"


def test_one_that_has_more_topics_than_a_stream_may_join_is_refused() -> None:
    assert decode_vector(encode_vector((f"/{number}", Position(EPOCH, 1)) for number in range(MAX_TOPICS + 1))) is None


@given(st.lists(st.tuples(st.integers(0, 3), epochs, offsets), min_size=1, max_size=6))
def test_places_that_have_moved_say_where_they_moved_last(moves: list[tuple[int, str, int]]) -> None:
    places = Places()
    for number in range(4):
        assert places.add(f"/{number}") == number
    assert str(places) == ""
    last = {}
    for number, epoch, offset in moves:
        places.move(number, epoch.encode(), offset)
        last[number] = f"{epoch}-{offset}"
        vector = decode_vector(str(places))
        assert vector is not None
        for other in range(4):
            epoch_of_other = last.get(other, f"{EPOCH}-").rpartition("-")[0]
            assert vector.cursor(f"/{other}", epoch_of_other) == last.get(other)


def test_a_place_that_came_back_is_said_again_until_it_moves() -> None:
    came = vector_of(("/a", EPOCH, 7), ("/b", EPOCH, 20_000))
    places = Places()
    assert [places.add(name, came.entry(name)) for name in ("/a", "/b", "/c")] == [0, 1, 2]
    again = decode_vector(str(places))
    assert again is not None
    assert again.cursor("/a", EPOCH) == f"{EPOCH}-7"
    places.move(0, b"new", 1)
    moved = decode_vector(str(places))
    assert moved is not None
    assert moved.cursor("/a", "new") == "new-1"
    assert moved.cursor("/b", EPOCH) == f"{EPOCH}-20000"


GOOD = encode_vector([("/a", Position(EPOCH, 7)), ("/b", Position(EPOCH, 1 << 20))])


@pytest.mark.parametrize("at", range(len(GOOD)))
def test_one_that_is_cut_is_none_unless_whole_places_are_left(at: int) -> None:
    assert (decode_vector(GOOD[:at]) is not None) == (at == 2 + 16)


@pytest.mark.parametrize(
    "text",
    [
        "", "_1", "_", GOOD[1:], "_2" + GOOD[2:], GOOD + "A", GOOD + "AAAA", GOOD + "=", GOOD + "\n", " " + GOOD, GOOD + GOOD[2:],
        GOOD.replace(GOOD[5], "+", 1), f"{EPOCH}-7", "earliest", UNKNOWN, "_1" + "é" * 16, "_1\0", "_1" + "\udc80" * 16, "_1" + "A" * (1 << 20),
    ],
)  # fmt: skip
def test_what_is_not_ours_is_none(text: str) -> None:
    assert decode_vector(text) is None


def test_an_offset_that_is_written_longer_than_it_need_be_is_none() -> None:
    digests = "A" * 13
    assert decode_vector("_1" + digests + "AAB") is not None
    # Sizes of five and eight bytes, with a number that two would hold, and a size there is none of.
    assert decode_vector("_1" + digests + "EAAAAAB") is None
    assert decode_vector("_1" + digests + "IAAAAAAAAAB") is None
    assert decode_vector("_1" + digests + "MAAAAAAAAAB") is None


@given(st.one_of(st.text(max_size=200), st.from_regex(r"_1[A-Za-z0-9_-]{0,200}", fullmatch=True)))
@example("_1" + "-" * 4094)
@example("_1" + "A" * 4096)
def test_whatever_comes_back_is_read_or_none_and_what_is_read_is_as_we_write_it(text: str) -> None:
    vector = decode_vector(text)
    if vector is not None:
        places = Places()
        cursor = vector.cursor("/a", EPOCH)
        assert cursor is None or cursor == UNKNOWN
        assert vector.entry("/a") == b""
        assert places.add("/a", vector.entry("/a")) == 0
