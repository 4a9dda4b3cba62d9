"""So many times a second, and as many at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.core import rate
from ssegate.core.rate import Rates


def test_as_many_as_come_in_a_second_may_come_at_once_and_then_one_after_the_other() -> None:
    rates = Rates()
    assert [rates.allow("a", 4, 10.0) for _ in range(6)] == [True] * 4 + [False] * 2
    assert [rates.allow("a", 4, at) for at in (10.2, 10.25, 10.26, 10.5, 10.75)] == [False, True, False, True, True]
    assert [rates.allow("a", 4, 20.0) for _ in range(5)] == [True] * 4 + [False]


def test_less_than_once_a_second_is_one_at_a_time() -> None:
    rates = Rates()
    assert [rates.allow("a", 0.5, at) for at in (0.0, 0.0, 1.9, 2.0, 3.9, 4.0)] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]


def test_each_has_its_own() -> None:
    rates = Rates()
    assert [rates.allow(name, 1, 0.0) for name in ("a", "b", "a", "c")] == [True, True, False, True]


def test_a_refusal_costs_nothing() -> None:
    rates = Rates()
    rates.allow("a", 1, 0.0)
    assert not any(rates.allow("a", 1, 0.5) for _ in range(1000))
    assert rates.allow("a", 1, 1.0)


def test_memory_is_bounded_and_those_who_are_too_fast_are_remembered_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "MOST", 100)
    rates = Rates()
    for _ in range(3):
        rates.allow("fast", 0.01, 0.0)
    for number in range(1000):
        rates.allow(f"quiet{number}", 100, number / 10)
        assert len(rates._full_at) <= 100
    assert not rates.allow("fast", 0.01, 99.0)
    for number in range(200):
        assert rates.allow(f"many{number}", 0.001, 100.0), "of so many at once none is too fast"
    assert len(rates._full_at) <= 100


@given(st.lists(st.floats(0, 3), max_size=60), st.floats(0.1, 20))
def test_nobody_ever_comes_more_often_than_that(gaps: list[float], often: float) -> None:
    rates, now, came = Rates(), 0.0, []
    for gap in gaps:
        now += gap
        if rates.allow("a", often, now):
            came.append(now)
    burst = max(1.0, often)
    for first, start in enumerate(came):
        for last in range(first, len(came)):
            assert last - first + 1 <= burst + (came[last] - start) * often + 1e-6
