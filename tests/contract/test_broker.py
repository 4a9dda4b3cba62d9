"""What every broker promises (`interfaces.Broker`), whichever engine is behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count

import pytest

from ssegate.brokers.memory import MemoryBroker
from ssegate.core.event import Kind, Update
from ssegate.core.journal import Position
from ssegate.errors import BrokerError
from ssegate.interfaces import Broker

Delivered = list[tuple[Update, Position]]
Story = Callable[[Broker, Delivered], Awaitable[None]]


_numbers = count(1)


def memory_broker() -> Broker:
    return MemoryBroker(lambda: f"epoch{next(_numbers)}")


BROKERS = [memory_broker]


@pytest.fixture(params=BROKERS, ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest) -> Callable[[], Broker]:
    made: Callable[[], Broker] = request.param
    return made


def play(make: Callable[[], Broker], story: Story) -> None:
    """Tell a story to a broker that is started, and closed at its end."""

    async def run() -> None:
        broker, delivered = make(), Delivered()
        await broker.start(lambda update, position: delivered.append((update, position)))
        try:
            await story(broker, delivered)
        finally:
            await broker.aclose()

    asyncio.run(run())


def update(data: str, topic: str = "t", kind: Kind = Kind.EVENT) -> Update:
    return Update(topic, data, kind=kind)


def test_each_update_of_a_topic_takes_the_next_offset_of_its_epoch(make: Callable[[], Broker]) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        positions = [await broker.publish(update(data)) for data in "abc"]
        assert [position.offset for position in positions] == [1, 2, 3]
        assert len({position.epoch for position in positions}) == 1
        assert all(Position.parse(str(position)) == position for position in positions)

    play(make, story)


def test_what_is_published_is_delivered_as_it_is_in_order_and_at_the_place_that_was_told(
    make: Callable[[], Broker],
) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        updates = [update(data) for data in "abc"]
        published = [(each, await broker.publish(each)) for each in updates]
        assert delivered == published

    play(make, story)


def test_many_publishers_of_one_topic_get_one_order(make: Callable[[], Broker]) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        positions = await asyncio.gather(*(broker.publish(update(str(number))) for number in range(50)))
        assert [position.offset for _, position in delivered] == list(range(1, 51))
        told = {position.offset: update(str(number)) for number, position in enumerate(positions)}
        assert [told[position.offset] for _, position in delivered] == [each for each, _ in delivered]

    play(make, story)


def test_topics_are_numbered_apart(make: Callable[[], Broker]) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        await broker.publish(update("a", "one"))
        position = await broker.publish(update("b", "two"))
        assert position.offset == 1
        assert (await broker.publish(update("c", "one"))).offset == 2

    play(make, story)


@pytest.mark.parametrize("kind", [Kind.FAULT, Kind.RECOVERED, Kind.REVOKED])
def test_what_takes_no_offset_is_spread_in_order_at_the_place_of_the_head(
    make: Callable[[], Broker], kind: Kind
) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        first = await broker.publish(update("a"))
        assert await broker.publish(update("b", kind=kind)) == first
        last = await broker.publish(update("c"))
        assert last == Position(first.epoch, 2)
        assert [each.data for each, _ in delivered] == ["a", "b", "c"]

    play(make, story)


def test_what_takes_no_offset_may_come_first(make: Callable[[], Broker]) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        assert (await broker.publish(update("a", kind=Kind.FAULT))).offset == 0
        assert (await broker.publish(update("b"))).offset == 1
        assert len(delivered) == 2

    play(make, story)


def test_a_reset_is_the_place_before_the_first_event_of_a_new_epoch(make: Callable[[], Broker]) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        before = await broker.publish(update("a"))
        reset = await broker.publish(update("b", kind=Kind.RESET))
        assert reset.offset == 0
        assert reset.epoch != before.epoch
        after = [await broker.publish(update(data)) for data in "cd"]
        assert after == [Position(reset.epoch, 1), Position(reset.epoch, 2)]
        assert [each.data for each, _ in delivered] == ["a", "b", "c", "d"]
        assert [position for _, position in delivered] == [before, reset, *after]

    play(make, story)


def test_a_reset_may_come_first_and_again_and_each_time_begins_a_new_epoch(make: Callable[[], Broker]) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        positions = [await broker.publish(update(data, kind=Kind.RESET)) for data in "abc"]
        assert [position.offset for position in positions] == [0, 0, 0]
        assert len({position.epoch for position in positions}) == 3
        assert await broker.publish(update("d")) == Position(positions[-1].epoch, 1)
        assert len(delivered) == 4

    play(make, story)


def test_what_takes_no_offset_behind_a_reset_is_at_its_place(make: Callable[[], Broker]) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        await broker.publish(update("a"))
        reset = await broker.publish(update("b", kind=Kind.RESET))
        assert await broker.publish(update("c", kind=Kind.FAULT)) == reset
        assert await broker.publish(update("d", kind=Kind.END)) == Position(reset.epoch, 1)

    play(make, story)


def test_a_reset_of_one_topic_leaves_the_others_alone(make: Callable[[], Broker]) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        other = await broker.publish(update("a", "other"))
        await broker.publish(update("b", kind=Kind.RESET))
        assert await broker.publish(update("c", "other")) == Position(other.epoch, 2)

    play(make, story)


def test_what_was_stored_before_a_reset_is_no_longer_replayed(make: Callable[[], Broker]) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        before = [await broker.publish(update(data)) for data in "ab"]
        reset = await broker.publish(update("c", kind=Kind.RESET))
        await broker.publish(update("d"))
        assert list(await broker.replay("t", before[0], 9)) == []
        assert list(await broker.replay("t", reset, 9)) in ([], delivered[3:])

    play(make, story)


def test_the_end_takes_an_offset(make: Callable[[], Broker]) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        assert (await broker.publish(update("a", kind=Kind.END))).offset == 1

    play(make, story)


def test_a_replay_is_a_part_of_what_was_delivered_in_its_order(make: Callable[[], Broker]) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        first = await broker.publish(update("a"))
        for data in "bcd":
            await broker.publish(update(data))
        replayed = list(await broker.replay("t", first, 2))
        # A broker that stores nothing beyond its process replays nothing; one that stores must replay all it was asked for.
        assert replayed in ([], delivered[1:3])
        assert list(await broker.replay("unknown", first, 2)) == []

    play(make, story)


def test_a_topic_that_was_forgotten_begins_with_a_new_epoch(make: Callable[[], Broker]) -> None:
    async def story(broker: Broker, delivered: Delivered) -> None:
        forget = getattr(broker, "forget", None)
        if forget is None:
            pytest.skip("forgetting is an optional power")
        forget("unknown")
        before = await broker.publish(update("a"))
        other = await broker.publish(update("a", "other"))
        forget("t")
        after = await broker.publish(update("b"))
        assert after.offset == 1
        assert after.epoch != before.epoch
        assert (await broker.publish(update("b", "other"))).epoch == other.epoch

    play(make, story)


def test_nothing_can_be_published_before_the_start_or_after_the_end(make: Callable[[], Broker]) -> None:
    async def run() -> None:
        broker, delivered = make(), Delivered()
        with pytest.raises(BrokerError, match="publish to t: "):
            await broker.publish(update("a"))
        await broker.start(lambda each, position: delivered.append((each, position)))
        await broker.aclose()
        with pytest.raises(BrokerError, match="publish to t: "):
            await broker.publish(update("b"))
        assert delivered == []

    asyncio.run(run())


def test_a_restarted_broker_never_gives_a_place_twice(make: Callable[[], Broker]) -> None:
    """Two brokers are told apart by their epochs, or the second goes on where the first stopped."""

    async def run() -> None:
        places: list[Position] = []
        for _ in range(2):
            broker = make()
            await broker.start(lambda each, position: None)
            places += [await broker.publish(update(data)) for data in "ab"]
            await broker.aclose()
        assert len(set(places)) == 4

    asyncio.run(run())
