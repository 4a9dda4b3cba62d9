"""Which deliveries have been taken already."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.core import seen as module
from ssegate.core.seen import MOST, Seen


def seen_of(*ids: str, age: float = 60.0) -> Seen:
    """Ids that were taken at 10."""
    seen = Seen(age)
    for id_ in ids:
        seen.add(id_, 10.0)
    return seen


def test_an_id_that_was_taken_is_known_and_another_is_not() -> None:
    seen = seen_of("a")
    assert seen.knows("a", 10.0)
    assert not seen.knows("b", 10.0)
    assert not seen.knows("A", 10.0)
    assert not Seen(60.0).knows("a", 10.0)


def test_to_ask_for_an_id_is_not_to_take_it() -> None:
    seen = seen_of()
    assert not seen.knows("a", 10.0)
    assert not seen.knows("a", 10.0)
    assert len(seen) == 0


@pytest.mark.parametrize(("later", "is_known"), [(0.0, True), (59.9, True), (60.0, True), (60.1, False), (1e9, False)])
def test_an_id_is_known_for_its_age_and_then_forgotten(later: float, is_known: bool) -> None:
    assert seen_of("a").knows("a", 10.0 + later) == is_known


def test_an_id_that_is_taken_again_is_known_for_longer() -> None:
    seen = seen_of("a")
    seen.add("a", 50.0)
    assert len(seen) == 1
    assert seen.knows("a", 110.0)
    assert not seen.knows("a", 110.1)


def test_what_is_too_old_leaves_when_the_next_is_taken() -> None:
    seen = seen_of("a", "b")
    seen.add("c", 40.0)
    assert len(seen) == 3
    seen.add("d", 71.0)
    assert len(seen) == 2
    assert [seen.knows(id_, 71.0) for id_ in "abcd"] == [False, False, True, True]


def test_an_age_of_nothing_forgets_at_once() -> None:
    seen = seen_of("a", age=0.0)
    assert seen.knows("a", 10.0)
    assert not seen.knows("a", 10.001)
    seen.add("b", 11.0)
    assert len(seen) == 1


def test_no_more_are_remembered_than_a_number_and_the_oldest_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST == 100_000
    monkeypatch.setattr(module, "MOST", 3)
    seen = seen_of("a", "b", "c", "d")
    assert len(seen) == 3
    assert [seen.knows(id_, 10.0) for id_ in "abcd"] == [False, True, True, True]


def test_an_id_that_is_taken_again_is_not_the_oldest_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    seen = seen_of("a", "b", "c", "a", "d")
    assert [seen.knows(id_, 10.0) for id_ in "abcd"] == [True, False, True, True]


def test_how_long_an_id_is_does_not_decide_how_much_is_kept() -> None:
    """A sender may write what it likes into an id, and 100,000 of them are kept."""
    tracemalloc.start()
    try:
        seen = seen_of(*(f"{number}" + "x" * 100_000 for number in range(100)))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(seen) == 100
    assert kept < 100_000


@pytest.mark.parametrize("size", [1, 16, 32, 36, 79, 80, 81, 82, 1000, 1_000_000])
def test_ids_of_any_size_are_known_by_all_of_it(size: int) -> None:
    seen = seen_of("x" * size)
    assert seen.knows("x" * size, 10.0)
    for other in ("x" * (size - 1), "x" * (size + 1), "x" * (size - 1) + "y", "y" + "x" * (size - 1)):
        assert not seen.knows(other, 10.0)


@given(st.lists(st.text(st.characters()), max_size=20, unique=True), st.text(st.characters()))
def test_whatever_text_an_id_is_it_is_known_by_all_of_it(ids: list[str], other: str) -> None:
    seen = seen_of(*ids)
    assert len(seen) == len(ids)
    assert all(seen.knows(id_, 10.0) for id_ in ids)
    assert seen.knows(other, 10.0) == (other in ids)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 40)), max_size=40), st.integers(1, 5))
def test_it_knows_what_a_list_of_all_that_was_taken_would(taken: list[tuple[str, float]], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST", most)
        seen, now = Seen(60.0), 10.0
        times: dict[str, float] = {}
        for id_, later in taken:
            now += later
            seen.add(id_, now)
            times.pop(id_, None)
            times[id_] = now
            kept = [(name, time) for name, time in times.items() if now - time <= 60.0][-most:]
            assert len(seen) == len(kept)
            assert [name for name in "abcdef" if seen.knows(name, now)] == sorted(name for name, _ in kept)
