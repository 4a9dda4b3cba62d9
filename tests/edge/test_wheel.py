from __future__ import annotations

import asyncio
from collections.abc import Callable

from ssegate.edge.wheel import OFF, TICK, Wheel


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time passes at once: when nothing is ready it is already the moment of the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        timers = [timer for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]  # asyncio's own
        if not self._ready and timers:  # type: ignore[attr-defined]  # asyncio's own
            self.now = max(self.now, min(timer.when() for timer in timers))
        super()._run_once()  # type: ignore[misc]  # asyncio's own

    @property
    def is_resting(self) -> bool:
        return not [timer for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]  # asyncio's own


class Stream:
    def __init__(self, answer: Callable[[float], float | None]) -> None:
        self.slot = OFF
        self.looks: list[float] = []
        self._answer = answer

    def look(self, now: float) -> float | None:
        self.looks.append(now)
        return self._answer(now)


def play(seconds: float, begin: Callable[[Wheel, float], None]) -> bool:
    """Let a story begin at 1000 and this time pass; return whether the wheel has come to rest."""
    clock = Clock()

    async def run() -> bool:
        begin(Wheel(), clock.now)
        await asyncio.sleep(seconds)
        return clock.is_resting

    try:
        return clock.run_until_complete(run())
    finally:
        clock.close()


def test_a_stream_is_looked_at_when_it_said_and_soon_after() -> None:
    stream = Stream(lambda now: now + 15)
    play(100, lambda wheel, now: wheel.add(stream, now + 15))
    waits = [after - before for before, after in zip([1000.0, *stream.looks], stream.looks, strict=False)]
    assert len(waits) == 6
    assert all(15 <= wait <= 15 + 2 * TICK for wait in waits)


def test_a_stream_that_is_over_is_not_looked_at_again_and_the_wheel_rests() -> None:
    stream = Stream(lambda now: None)
    assert play(10, lambda wheel, now: wheel.add(stream, now + 1))
    assert len(stream.looks) == 1


def test_the_wheel_turns_again_after_a_rest() -> None:
    first, second = Stream(lambda now: None), Stream(lambda now: None)

    def begin(wheel: Wheel, now: float) -> None:
        wheel.add(first, now)
        asyncio.get_running_loop().call_later(30, lambda: wheel.add(second, now + 31))

    assert play(60, begin)
    assert 1000 < first.looks[0] <= 1000 + 2 * TICK
    assert 1031 <= second.looks[0] <= 1031 + 2 * TICK


def test_a_moment_that_has_passed_is_looked_at_with_the_next_turn() -> None:
    answers = iter([0.0, None])
    stream = Stream(lambda now: next(answers))
    assert play(10, lambda wheel, now: wheel.add(stream, 0.0))
    assert len(stream.looks) == 2
    assert stream.looks[1] - stream.looks[0] <= 2 * TICK


def test_what_is_added_while_another_is_looked_at_is_not_lost() -> None:
    late = Stream(lambda now: None)
    wheels: list[Wheel] = []

    def add_another(now: float) -> None:
        wheels[0].add(late, now - 5)

    def begin(wheel: Wheel, now: float) -> None:
        wheels.append(wheel)
        wheel.add(Stream(add_another), now + 1)

    assert play(10, begin)
    assert len(late.looks) == 1


def test_ten_thousand_streams_cost_one_timer() -> None:
    streams = [Stream(lambda now: None) for _ in range(10_000)]
    timers: list[int] = []

    def begin(wheel: Wheel, now: float) -> None:
        for stream in streams:
            wheel.add(stream, now + 1)
        timers.append(len(asyncio.get_running_loop()._scheduled))  # type: ignore[attr-defined]  # asyncio's own

    assert play(10, begin)
    assert timers == [1]
    assert {len(stream.looks) for stream in streams} == {1}


def test_what_is_removed_is_not_looked_at_and_not_kept() -> None:
    stream = Stream(lambda now: now + 1)

    def begin(wheel: Wheel, now: float) -> None:
        wheel.add(stream, now + 15)
        asyncio.get_running_loop().call_later(5, lambda: wheel.remove(stream))

    assert play(60, begin)
    assert stream.looks == []
    assert stream.slot == OFF


def test_one_that_is_removed_by_another_in_the_same_moment_is_not_looked_at() -> None:
    wheels: list[Wheel] = []
    streams: list[Stream] = []

    def end_the_other(now: float) -> None:
        for stream in streams:
            wheels[0].remove(stream)

    def begin(wheel: Wheel, now: float) -> None:
        wheels.append(wheel)
        streams.extend(Stream(end_the_other) for _ in range(2))
        for stream in streams:
            wheel.add(stream, now + 1)

    assert play(10, begin)
    assert sum(len(stream.looks) for stream in streams) == 1


def test_a_second_add_counts_only_if_it_is_earlier() -> None:
    stream = Stream(lambda now: None)

    def begin(wheel: Wheel, now: float) -> None:
        wheel.add(stream, now + 30)
        wheel.add(stream, now + 10)
        wheel.add(stream, now + 20)

    assert play(60, begin)
    assert 1010 <= stream.looks[0] <= 1010 + 2 * TICK
    assert len(stream.looks) == 1
