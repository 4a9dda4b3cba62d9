"""A feed over real sockets: what is asked for and when, what is said of it, and where the next process goes on."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ssegate.config.values import read_expression
from ssegate.core.feed import EMPTY_PAGES, FeedReader, FeedRules
from ssegate.core.poll import PollSettings
from ssegate.core.template import Template
from ssegate.sources.cursors import FOLDER, Cursors
from ssegate.sources.feed import TOO_QUICK, FeedSource
from ssegate.sources.poll import PollTarget
from ssegate.sources.telling import AskingRecord
from ssegate.upstream import Upstream
from tests.sources.asking import RECOVERED, RESET, Make, Stage, event, fault, json_answer, play
from tests.upstream.scripted import Asked, Call, Step, answer, script

LONG_AFTER = 60.0
"""An interval that no test waits for."""


class Log:
    """An upstream with a log: `?after=N` gives a page of what is behind N."""

    def __init__(self, count: int = 0, *, size: int = 2) -> None:
        self.count = count
        self.size = size
        self.forgets = False
        self.at_once = 0
        """How many requests are under way."""
        self.most_at_once = 0

    async def __call__(self, call: Call) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await call.send(self.answer(call.asked))
        self.at_once -= 1

    def answer(self, asked: Asked) -> bytes:
        after = after_of(asked)
        if self.forgets and after:
            return answer(status=410)
        start = int(after or 0)
        items = list(range(start + 1, min(start + self.size, self.count) + 1))
        return json_answer({"items": items, "next": items[-1] if items else None})


def after_of(asked: Asked) -> str | None:
    """The cursor a page was asked for with."""
    return parse_qs(urlsplit(asked.target).query).get("after", [None])[0]


def afters(stage: Stage) -> list[str | None]:
    return [after_of(asked) for asked in stage.scripted.requests]


def feed(
    start: str = "beginning",
    *,
    long: float = 0.0,
    folder: Path | None = None,
    forgotten: frozenset[int] = frozenset({410}),
    get: str = "/log?after={cursor}&limit=2",
    items: str = "items",
    max_event_size: int = 1000,
) -> Make:
    rules = FeedRules(read_expression(items), read_expression("next"), start, max_event_size)
    template = Template(get)

    def make(upstream: Upstream, settings: PollSettings, record: AskingRecord) -> FeedSource:
        cursors = Cursors(folder)
        cursors.prepare()
        return FeedSource(
            "topic 1",
            PollTarget(template.expand_url({"cursor": "x"}), ()),
            upstream,
            settings,
            FeedReader("topic 1", rules, cursors.get("topic 1")),
            record,
            path_at=lambda cursor: template.expand_url({"cursor": cursor} if cursor else {}),
            cursors=cursors,
            forgotten=forgotten,
            long=long,
            viewers=lambda: 1,
            max_body=2 * max_event_size,
        )

    return make


def play_feed(step: Step, story: Callable[[Stage], Any], make: Make | None = None, **rules: Any) -> None:
    rules = {"every_min": LONG_AFTER, "every_max": LONG_AFTER, "conditional": False, "gone": (), **rules}
    play(step, make or feed(), story, **rules)


def events(*numbers: int) -> list[tuple[str, Any]]:
    return [event(number) for number in numbers]


def page(*items: Any, next_: Any = None) -> bytes:
    return json_answer({"items": list(items), "next": next_})


# Pages


def test_pages_are_asked_for_at_once_one_behind_the_other_until_there_is_no_more() -> None:
    log = Log(7)

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(7) == events(1, 2, 3, 4, 5, 6, 7)
        await stage.until_asked(5)
        assert afters(stage) == [None, "2", "4", "6", "7"]
        assert log.most_at_once == 1
        assert stage.targets[0] == "/log?limit=2", "the beginning has no cursor"

    play_feed(log, story)


def test_what_comes_later_is_asked_for_at_the_interval_and_comes_once() -> None:
    log = Log(1)

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        await stage.until_asked(4)
        log.count = 4
        assert await stage.until_said(4) == events(1, 2, 3, 4)
        asked = len(stage.targets)
        await stage.until_asked(asked + 3)
        assert stage.words == events(1, 2, 3, 4)
        assert log.most_at_once == 1

    play_feed(log, story, every_min=0.02, every_max=0.02)


def test_an_interval_that_adapts_is_long_while_nothing_comes() -> None:
    log = Log()
    times: list[float] = []

    async def handle(call: Call) -> None:
        times.append(asyncio.get_running_loop().time())
        await log(call)

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(8)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert gaps[6] > 3 * min(gaps[:3]), gaps

    play_feed(handle, story, every_min=0.02, every_max=0.2)


def test_a_cursor_is_encoded_where_it_meets_the_url() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(2)
        assert afters(stage) == [None, "a b/c?d&after=e#%é"]
        assert "#" not in stage.targets[1]

    play_feed(script(page(1, next_="a b/c?d&after=e#%é"), page()), story)


def test_a_hint_asks_at_once() -> None:
    log = Log()

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(1)
        log.count = 1
        stage.source.hint()
        assert await stage.until_said(1) == events(1)

    play_feed(log, story)


def test_empty_pages_that_go_on_and_on_make_no_hot_loop() -> None:
    async def endless(call: Call) -> None:
        await call.send(page(next_=call.asked.number))

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(EMPTY_PAGES)
        await asyncio.sleep(0.1)  # nothing to await: a further request would be wrong
        assert len(stage.targets) == EMPTY_PAGES

    play_feed(endless, story)


def test_from_now_only_what_comes_after_it_is_said() -> None:
    log = Log(5)

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(5)
        assert stage.words == []
        log.count = 7
        assert await stage.until_said(2) == events(6, 7)

    play_feed(log, story, feed("now"), every_min=0.02, every_max=0.02)


def test_from_a_value_what_is_behind_it_is_said() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(2) == events(4, 5)
        assert afters(stage)[0] == "3"

    play_feed(Log(5), story, feed("3"))


# Requests that are held


class HeldLog(Log):
    """A log that answers when it has something, or after a time with nothing: as an empty page, or 204."""

    def __init__(self, seconds: float, *, is_204: bool = False) -> None:
        super().__init__()
        self.seconds = seconds
        self.is_204 = is_204
        self.news = asyncio.Event()
        self.times: list[float] = []

    def add(self) -> None:
        self.count += 1
        self.news.set()

    async def __call__(self, call: Call) -> None:
        self.times.append(asyncio.get_running_loop().time())
        self.news.clear()
        if self.count <= int(after_of(call.asked) or 0):
            try:
                await asyncio.wait_for(self.news.wait(), self.seconds)
            except TimeoutError:
                if self.is_204:
                    await call.send(b"HTTP/1.1 204 No Content\r\n\r\n")
                    return
        await super().__call__(call)


def test_an_upstream_that_holds_its_requests_is_asked_again_at_once_and_told_of_within_a_moment() -> None:
    log = HeldLog(10)

    async def story(stage: Stage) -> None:
        stage.begin()
        for count in range(1, 6):
            await stage.until_asked(count)
            await asyncio.sleep(0.02)  # it is held for a while
            log.add()
            began = asyncio.get_running_loop().time()
            assert await stage.until_said(count) == events(*range(1, count + 1))
            assert asyncio.get_running_loop().time() - began < 0.5
        assert log.most_at_once == 1

    play_feed(log, story, feed(long=10))


def test_a_request_may_be_held_for_longer_than_the_upstream_may_be_silent() -> None:
    """`timeout.read` of the tests is 0.2 s."""
    log = HeldLog(10)

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(1)
        await asyncio.sleep(0.8)
        log.add()
        assert await stage.until_said(1) == events(1)

    play_feed(log, story, feed(long=1))


@pytest.mark.parametrize("is_204", [False, True])
def test_when_a_held_request_ends_without_news_it_is_asked_again_at_once(is_204: bool) -> None:
    log = HeldLog(0.1, is_204=is_204)

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(4)
        gaps = [later - earlier for earlier, later in itertools.pairwise(log.times)]
        assert all(0.09 <= gap < 0.5 for gap in gaps), gaps
        assert stage.words == []

    play_feed(log, story, feed(long=0.1 / TOO_QUICK / 2))


@pytest.mark.parametrize("is_204", [False, True])
def test_an_upstream_that_does_not_hold_its_requests_makes_no_hot_loop(is_204: bool) -> None:
    log = HeldLog(0, is_204=is_204)

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(1)
        await asyncio.sleep(0.15)  # nothing to await: a further request would be wrong
        assert len(stage.targets) == 1

    play_feed(log, story, feed(long=30))


def test_a_held_request_that_is_cut_is_trouble_and_asked_again_with_back_off() -> None:
    async def cut(call: Call) -> None:
        call.reset()

    async def story(stage: Stage) -> None:
        stage.begin()
        words = await stage.until_said(4)
        assert words == [event(1), fault(None, "the upstream's answer is broken"), RECOVERED, event(2)]
        assert afters(stage) == [None, "1", "1", "1"]

    play_feed(script(page(1, next_=1), cut, cut, page(2, next_=2)), story, feed(long=5), every_min=0.02, every_max=0.02)


# Where the next process goes on


def test_the_next_process_goes_on_where_one_stopped(tmp_path: Path) -> None:
    log = Log(3)

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(3)
        await stage.until_asked(3)
        log.count = 5
        asked = len(stage.targets)
        await stage.restart()
        assert await stage.until_said(2) == events(4, 5)
        assert afters(stage)[asked] == "3"

    play_feed(log, story, feed(folder=tmp_path))


def test_from_now_the_next_process_tells_what_came_while_there_was_none(tmp_path: Path) -> None:
    log = Log(4)

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(3)
        while not list((tmp_path / FOLDER).iterdir()):
            await asyncio.sleep(0.005)  # a file that tells nobody when it comes
        await stage.stop()
        log.count = 6
        stage.source = stage._make()
        stage.begin()
        assert await stage.until_said(2) == events(5, 6)

    play_feed(log, story, feed("now", folder=tmp_path))


def test_what_the_broker_has_not_taken_is_not_behind_the_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssegate.sources.telling.BROKER_PAUSE", 0.01)
    log = Log(2)

    async def story(stage: Stage) -> None:
        stage.refuses = -1
        stage.begin()
        await stage.until_asked(1)
        await asyncio.sleep(0.05)  # it tries for a while
        assert list((tmp_path / FOLDER).iterdir()) == []
        assert len(stage.targets) == 1, "nor is the next page asked for"
        stage.refuses = 0
        await stage.restart()
        assert await stage.until_said(2) == events(1, 2), "so that nothing is lost"

    play_feed(log, story, feed(folder=tmp_path))


def test_a_page_that_was_taken_in_part_is_said_to_its_end_by_the_same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssegate.sources.telling.BROKER_PAUSE", 60)

    async def story(stage: Stage) -> None:
        publish = stage.publish

        async def take_one(update: Any) -> None:
            if stage.said:
                stage.refuses = 1
            await publish(update)

        stage.publish = take_one  # type: ignore[method-assign]  # the broker goes down behind the first
        stage.begin()
        await stage.until_said(1)
        await stage.stop()
        stage.publish = publish  # type: ignore[method-assign]  # it is back
        stage.refuses = 0
        stage.begin()
        assert await stage.until_said(3) == events(1, 2, 3)
        assert afters(stage)[:2] == [None, "2"]

    play_feed(Log(3), story)


def test_a_damaged_file_lets_it_begin_as_the_route_says(tmp_path: Path) -> None:
    log = Log(2)

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(2)
        await stage.until_asked(2)
        (file,) = (tmp_path / FOLDER).iterdir()
        await stage.stop()
        file.write_bytes(b'{"topic": "topic 1", "cur')
        stage.said.clear()
        stage.source = stage._make()
        stage.begin()
        assert await stage.until_said(2) == events(1, 2)
        assert json.loads(file.read_text())["cursor"] == "2", "and it is whole again"

    play_feed(log, story, feed(folder=tmp_path))


def test_a_topic_that_is_forgotten_takes_its_cursor_along(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(2)
        await stage.until_asked(2)
        await stage.stop()
        stage.source.forget()
        assert list((tmp_path / FOLDER).iterdir()) == []

    play_feed(Log(2), story, feed(folder=tmp_path))


# A backend that forgets


def test_a_backend_that_forgets_the_cursor_is_told_and_the_feed_begins_anew(tmp_path: Path) -> None:
    log = Log(2)

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(2)
        log.forgets = True
        await stage.until_said(3)
        assert list((tmp_path / FOLDER).iterdir()) == []
        log.forgets = False
        assert (await stage.until_said(5))[2:] == [RESET, *events(1, 2)]
        assert stage.record.failing == 0
        number = afters(stage).index(None, 1)
        assert afters(stage)[number - 1] == "2"

    play_feed(log, story, feed(folder=tmp_path), every_min=0.02, every_max=0.02)


def test_a_feed_from_now_begins_anew_from_now() -> None:
    log = Log(4)

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(4)
        log.forgets = True
        assert await stage.until_said(1) == [RESET]
        log.forgets = False
        asked = len(stage.targets)
        await stage.until_asked(asked + 3)
        assert stage.words == [RESET]
        log.count = 5
        assert await stage.until_said(2) == [RESET, event(5)]

    play_feed(log, story, feed("now"), every_min=0.02, every_max=0.02)


def test_a_cursor_of_the_process_before_may_be_forgotten_too(tmp_path: Path) -> None:
    log = Log(2)

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(2)
        await stage.until_asked(2)
        log.forgets = True
        await stage.restart()
        assert (await stage.until_said(1))[0] == RESET
        log.forgets = False
        assert await stage.until_said(3) == [RESET, *events(1, 2)]

    play_feed(log, story, feed(folder=tmp_path), every_min=0.02, every_max=0.02)


def test_it_begins_anew_at_once() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        async with asyncio.timeout(1):
            assert await stage.until_said(3) == [event(1), RESET, event(2)]

    play_feed(script(page(1, next_="a"), answer(status=410), page(2, next_="a")), story)


def test_other_statuses_may_say_that_a_cursor_is_forgotten() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(3) == [event(1), RESET, event(2)]

    steps = [page(1, next_="a"), answer(status=400), page(2, next_="a")]
    play_feed(script(*steps), story, feed(forgotten=frozenset({400, 404})), every_min=0.02, every_max=0.02)


@pytest.mark.parametrize("start", ["beginning", "17"])
def test_a_cursor_that_the_upstream_never_gave_cannot_be_forgotten(start: str) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(1) == [fault(410, "the upstream answered 410")]
        asked = len(stage.targets)
        await stage.until_asked(asked + 2)
        assert len(stage.said) == 1

    play_feed(answer(status=410), story, feed(start), every_min=0.02, every_max=0.02)


def test_a_status_that_says_forgotten_after_an_outage_ends_the_outage_first() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        words = await stage.until_said(5)
        assert words == [event(1), fault(500, "the upstream answered 500"), RECOVERED, RESET, event(2)]

    steps = [page(1, next_="a"), answer(status=500), answer(status=410), page(2, next_="a")]
    play_feed(script(*steps), story, every_min=0.02, every_max=0.02)


# Trouble


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (answer(status=503), fault(503, "the upstream answered 503")),
        (answer(status=404), fault(404, "the upstream answered 404")),
        (answer(b"<html>"), fault(200, "the upstream's answer cannot be read", "undecodable")),
        (json_answer({"items": {"a": 1}}), fault(200, "the upstream's answer cannot be read", "undecodable")),
        (page("x" * 3000), fault(None, "the upstream's answer is too large", "oversize")),
    ],
    ids=["503", "404", "no JSON", "no list", "too large"],
)
def test_trouble_is_told_once_and_the_same_page_is_asked_for_again(step: bytes, said: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(4) == [event(1), said, RECOVERED, event(2)]
        assert afters(stage)[:4] == [None, "1", "1", "1"]

    steps = [page(1, next_=1), step, step, page(2, next_=2)]
    play_feed(script(*steps), story, every_min=0.02, every_max=0.02)


def test_trouble_backs_off() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        await asyncio.sleep(0.1)  # nothing to await: a further request would be wrong
        assert len(stage.targets) == 1

    play_feed(answer(status=503), story, every_min=1, every_max=1)


def test_an_item_that_is_too_large_is_left_out_and_the_feed_goes_on() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        left_out = fault(None, "an item of the feed is too large for an event", "oversize")
        assert await stage.until_said(4) == [event(1), left_out, RECOVERED, event(2)]

    play_feed(script(page(1, "x" * 1100, 2, next_=2), page()), story)


@pytest.mark.parametrize("cursor", ["a\nb", "\0", "\ud800"])
def test_a_cursor_that_no_url_may_carry_is_none(cursor: str) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(3)
        assert stage.words == [event(1)]
        assert set(afters(stage)) == {None}

    play_feed(page(1, next_=cursor), story, every_min=0.02, every_max=0.02)


def test_a_cursor_that_would_lead_out_of_its_path_is_trouble() -> None:
    async def story(stage: Stage) -> None:
        task = stage.begin()
        saying = asyncio.ensure_future(stage.until_said(2))
        await asyncio.wait((task, saying), return_when=asyncio.FIRST_COMPLETED)
        saying.cancel()
        if task.done():
            task.result()
        assert [kind for kind, _ in stage.words] == ["event", "fault"]

    play_feed(page(1, next_=".."), story, feed("0", get="/log/{cursor}"))


# Who waits for the first answer


def test_who_waits_is_told_when_the_first_page_has_been_said() -> None:
    async def story(stage: Stage) -> None:
        stage.source.await_answer()
        stage.begin()
        assert stage.source.awaited is not None
        assert await stage.source.awaited is None
        assert stage.words == events(1, 2)

    play_feed(Log(5), story)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_who_waits_for_the_first_answer_is_told_a_refusal_itself(status: int) -> None:
    async def story(stage: Stage) -> None:
        stage.source.await_answer()
        task = stage.begin()
        assert stage.source.awaited is not None
        assert await stage.source.awaited == status
        await task
        assert stage.words == []

    play_feed(answer(status=status), story)


def test_a_feed_that_nobody_watches_for_a_while_goes_on_where_it_stopped() -> None:
    log = Log(2)

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(2)
        await stage.until_asked(2)
        await stage.stop()
        log.count = 4
        stage.begin()
        assert await stage.until_said(4) == events(1, 2, 3, 4)

    play_feed(log, story)
