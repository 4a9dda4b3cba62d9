from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.core.headers import Headers
from ssegate.core.poll import GATHER, LONGEST_GATHER, LONGEST_WAIT, SLOWER, Meaning, Poller, PollSettings

WALL = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC).timestamp()
ETAG = (b"If-None-Match", b'"v1"')


def date(seconds: float) -> str:
    """An HTTP date so many seconds from now."""
    return format_datetime(datetime.fromtimestamp(WALL + seconds, UTC), usegmt=True)


def fields(**values: str) -> Headers:
    return Headers((name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in values.items())


def poller_of(
    every: float = 2.0, every_max: float | None = None, *, random: float = 1.0, started: bool = True, **others: object
) -> Poller:
    """A poller that was resumed at 100; `started` ones have had their first answer already, at 100."""
    settings = PollSettings(every, every if every_max is None else every_max, **others)  # type: ignore[arg-type]  # by name
    poller = Poller(settings, random=lambda: random)
    poller.resume(100.0)
    if started:
        body(poller, 100.0, changed=True)
        poller.due = 100.0
    return poller


def receive(poller: Poller, status: int, now: float, **headers: str) -> Meaning:
    return poller.receive(status, fields(**headers), now=now, wall=WALL)


def body(poller: Poller, now: float, *, changed: bool, **headers: str) -> None:
    assert receive(poller, 200, now, **headers) is Meaning.BODY
    poller.settle(changed=changed, now=now)


# The interval


def test_the_first_question_is_due_at_once() -> None:
    assert poller_of(started=False).due == 100.0


def test_questions_come_at_the_interval_from_start_to_start() -> None:
    poller = poller_of(2.0)
    body(poller, 100.7, changed=False)
    assert poller.due == 102.0
    body(poller, 102.1, changed=True)
    assert poller.due == 104.0


def test_an_answer_slower_than_the_interval_is_followed_by_a_pause_all_the_same() -> None:
    poller = poller_of(2.0)
    body(poller, 109.0, changed=False)
    assert poller.due == pytest.approx(109.2)


def test_the_interval_grows_while_nothing_changes_and_is_short_again_on_a_change() -> None:
    poller = poller_of(2.0, 6.0)
    waits = []
    for changed in (False, False, False, False, True, False):
        start = poller.due
        body(poller, start, changed=changed)
        waits.append(poller.due - start)
    assert waits == pytest.approx([2 * SLOWER, 2 * SLOWER**2, 6, 6, 2, 2 * SLOWER])


def test_a_304_is_nothing_new_too() -> None:
    poller = poller_of(2.0, 6.0)
    body(poller, 100.0, changed=True, etag='"v1"')
    poller.due = 102.0
    assert receive(poller, 304, 102.0) is Meaning.SAME
    assert poller.due == 105.0


@pytest.mark.parametrize(("random", "wait"), [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)])
def test_topics_that_began_together_do_not_go_on_together(random: float, wait: float) -> None:
    poller = poller_of(2.0, random=random, started=False)
    body(poller, 100.0, changed=True)
    assert poller.due == 100 + wait
    body(poller, poller.due, changed=True)
    assert poller.due == 102 + wait


def test_the_first_pause_is_no_shorter_than_any_other() -> None:
    poller = poller_of(2.0, random=0.0, started=False)
    body(poller, 150.0, changed=True)
    assert poller.due == pytest.approx(150.2)


def test_after_a_pause_the_next_question_is_due_at_once() -> None:
    poller = poller_of()
    poller.fail(100.0)
    poller.resume(500.0)
    assert (poller.due, poller.is_failing) == (500.0, False)


# What an answer means


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (200, Meaning.BODY), (201, Meaning.BODY), (203, Meaning.BODY), (204, Meaning.SAME), (205, Meaning.SAME),
        (301, Meaning.TROUBLE), (304, Meaning.TROUBLE), (400, Meaning.TROUBLE), (401, Meaning.TROUBLE),
        (403, Meaning.TROUBLE), (404, Meaning.GONE), (410, Meaning.GONE), (429, Meaning.TROUBLE), (500, Meaning.TROUBLE),
        (503, Meaning.TROUBLE), (599, Meaning.TROUBLE),
    ],
)  # fmt: skip
def test_a_status_says(status: int, meaning: Meaning) -> None:
    poller = poller_of()
    assert receive(poller, status, 100.0) is meaning
    assert poller.is_failing == (meaning is Meaning.TROUBLE)


def test_which_statuses_are_the_end_is_for_the_route_to_say() -> None:
    assert receive(poller_of(gone=(400,)), 400, 100.0) is Meaning.GONE
    assert receive(poller_of(gone=()), 404, 100.0) is Meaning.TROUBLE


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_the_viewers_credentials_is_about_the_viewers(status: int) -> None:
    assert receive(poller_of(is_private=True), status, 100.0) is Meaning.DENIED
    # With Retry-After it is a limit on how often one may ask, and not on whether.
    assert receive(poller_of(is_private=True), status, 100.0, retry_after="5") is Meaning.TROUBLE


# Validators


def test_validators_are_sent_once_their_body_was_understood() -> None:
    poller = poller_of()
    assert receive(poller, 200, 100.0, etag='"v1"') is Meaning.BODY
    assert poller.headers() == ()
    poller.settle(changed=True, now=100.0)
    assert poller.headers() == (ETAG,)


def test_the_validators_of_a_body_that_was_not_understood_are_not_sent() -> None:
    poller = poller_of()
    body(poller, 100.0, changed=True, etag='"v1"')
    assert receive(poller, 200, 102.0, etag='"v2"') is Meaning.BODY
    poller.fail(102.0)
    # A 304 to v2 would speak of a state that nobody has.
    assert poller.headers() == (ETAG,)
    assert receive(poller, 304, 104.0) is Meaning.SAME


def test_a_body_without_validators_ends_the_old_ones() -> None:
    poller = poller_of()
    body(poller, 100.0, changed=True, etag='"v1"')
    body(poller, 102.0, changed=True)
    assert poller.headers() == ()
    assert receive(poller, 304, 104.0) is Meaning.TROUBLE  # never asked for


def test_validators_outlast_an_outage() -> None:
    poller = poller_of()
    body(poller, 100.0, changed=True, etag='"v1"')
    receive(poller, 503, 102.0, etag='"error page"')
    assert poller.headers() == (ETAG,)
    assert receive(poller, 304, 104.0) is Meaning.SAME
    assert not poller.is_failing


def test_a_route_may_do_without_conditional_requests() -> None:
    poller = poller_of(conditional=False)
    body(poller, 100.0, changed=True, etag='"v1"')
    assert poller.headers() == ()


@pytest.mark.parametrize(("age", "is_sent"), [(0, False), (1, True), (3600, True), (-60, False)])
def test_a_modification_date_is_sent_only_when_no_second_change_can_hide_behind_it(age: float, is_sent: bool) -> None:
    poller = poller_of()
    modified = date(-age)
    body(poller, 100.0, changed=True, last_modified=modified, date=date(0))
    sent = ((b"If-Modified-Since", modified.encode()),) if is_sent else ()
    assert poller.headers() == sent


@pytest.mark.parametrize("headers", [{"last_modified": "yesterday", "date": date(0)}, {"last_modified": date(-60)}])
def test_a_modification_date_that_cannot_be_compared_is_not_sent(headers: dict[str, str]) -> None:
    poller = poller_of()
    body(poller, 100.0, changed=True, **headers)
    assert poller.headers() == ()


def test_both_validators_are_sent_as_they_came() -> None:
    poller = poller_of()
    body(poller, 100.0, changed=True, etag='W/"caf\xe9"', last_modified=date(-60), date=date(0))
    assert poller.headers() == ((b"If-None-Match", b'W/"caf\xe9"'), (b"If-Modified-Since", date(-60).encode()))


def test_an_empty_validator_is_none() -> None:
    poller = poller_of()
    body(poller, 100.0, changed=True, etag=" ", last_modified="")
    assert poller.headers() == ()


# What the answer itself asks for


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry_after": "30"}, 30), ({"retry_after": " 30 "}, 30), ({"retry_after": date(40)}, 40),
        ({"retry_after": date(40), "date": date(10)}, 30), ({"retry_after": "9" * 5000}, LONGEST_WAIT),
        ({"retry_after": date(10**7)}, LONGEST_WAIT), ({"cache_control": "max-age=30"}, 30),
        ({"cache_control": "private, MAX-AGE = 30"}, 30), ({"cache_control": 'public,max-age="30"'}, 30),
        ({"cache_control": "max-age=30", "age": "10"}, 20), ({"cache_control": "max-age=99999999999999"}, LONGEST_WAIT),
        ({"cache_control": "max-age=30", "age": "-1"}, 30), ({"cache_control": "max-age=30", "retry_after": "40"}, 40),
    ],
)  # fmt: skip
def test_an_answer_may_ask_to_be_left_alone_for_longer(headers: dict[str, str], wait: float) -> None:
    poller = poller_of(2.0)
    body(poller, 101.0, changed=False, **headers)
    assert poller.due == 101 + wait
    # In an outage it wins over the back-off, whatever the dice say.
    receive(poller, 429, 200.0, **headers)
    assert poller.due == 200 + wait


@pytest.mark.parametrize(
    "headers",
    [
        {"retry_after": "0"}, {"retry_after": "-5"}, {"retry_after": "1.5"}, {"retry_after": "soon"},
        {"retry_after": "²"}, {"retry_after": date(-60)}, {"retry_after": "1, 2"}, {"cache_control": "max-age=0"},
        {"cache_control": "max-age=1"}, {"cache_control": "s-maxage=30"}, {"cache_control": "no-cache, max-age=30"},
        {"cache_control": "max-age=30, no-store"}, {"cache_control": "max-age=-30"}, {"cache_control": "max-age"},
        {"cache_control": "max-age=30", "age": "31"}, {"cache_control": "x-max-age=30"}, {},
    ],
)  # fmt: skip
def test_an_answer_cannot_make_the_wait_shorter(headers: dict[str, str]) -> None:
    poller = poller_of(2.0, random=0.0)
    body(poller, 100.5, changed=False, **headers)
    assert poller.due == 102.0
    receive(poller, 503, 110.0, **headers)
    assert poller.due == 112.0


@given(
    st.text(st.characters(max_codepoint=255), max_size=60),
    st.sampled_from(["retry_after", "cache_control", "last_modified", "date", "age", "etag"]),
)
def test_no_header_upsets_the_schedule(value: str, name: str) -> None:
    poller = poller_of(2.0)
    headers = {"date": date(0), "retry_after": date(1), "cache_control": "max-age=5", name: value}
    body(poller, 100.0, changed=True, **headers)
    assert 102.0 <= poller.due <= 100.0 + LONGEST_WAIT


@pytest.mark.parametrize(
    "value",
    [
        "Mon, 01 Jan 0001 00:00:00 +2359", "Fri, 31 Dec 9999 23:59:59 -2359", "Thu, 01 Jan 1970 00:00:00 -0000",
        "Fri, 31 Dec 99999 23:59:59 GMT", "Mon, 99 Jan 2026 00:00:00 GMT", "Mon, 01 Jan 2026 00:00:00 +9999",
    ],
)  # fmt: skip
def test_no_date_upsets_the_schedule(value: str) -> None:
    poller = poller_of(2.0)
    body(poller, 100.0, changed=True, retry_after=value, date=value, last_modified=value)
    assert 102.0 <= poller.due <= 100.0 + LONGEST_WAIT


# Failures


def test_failures_back_off_with_full_jitter_up_to_the_cap() -> None:
    for random in (0.0, 0.5, 1.0):
        poller = poller_of(0.1, random=random, backoff_min=1.0, backoff_max=10.0)
        waits = []
        for _ in range(50):
            poller.fail(1000.0)
            waits.append(poller.due - 1000)
        bounds = [1.0, 2.0, 4.0, 8.0] + [10.0] * 46
        assert waits == pytest.approx([max(0.1, bound * random) for bound in bounds])


def test_an_outage_is_not_asked_more_often_than_a_healthy_upstream() -> None:
    poller = poller_of(5.0, random=0.0)
    poller.fail(100.0)
    assert poller.due == 105.0
    receive(poller, 429, 105.0, retry_after="1")
    assert poller.due == 110.0


def test_one_answer_ends_the_back_off() -> None:
    poller = poller_of(0.1, backoff_min=1.0)
    for _ in range(5):
        poller.fail(100.0)
    assert poller.is_failing
    body(poller, 100.0, changed=False)
    assert not poller.is_failing
    poller.fail(200.0)
    assert poller.due == 201.0


def test_what_an_earlier_answer_asked_for_does_not_hold_for_a_failure() -> None:
    poller = poller_of(1.0, random=0.0)
    receive(poller, 429, 100.0, retry_after="60")
    poller.fail(160.0)
    assert poller.due == 161.0


# Hints


def test_a_hint_asks_at_once() -> None:
    poller = poller_of(60.0)
    body(poller, 100.0, changed=False, cache_control="max-age=600")
    poller.hint(110.0)
    assert poller.due == 110.0


def test_a_burst_of_hints_is_one_question() -> None:
    poller = poller_of(60.0)
    body(poller, 100.0, changed=False)
    for _ in range(10):
        poller.hint(110.0)
    poller.headers()
    body(poller, 110.1, changed=True)
    assert poller.due == 170.0


def test_hints_during_a_request_are_one_more_question_after_it() -> None:
    poller = poller_of(60.0)
    poller.headers()
    for _ in range(10):
        poller.hint(100.1)
    body(poller, 100.2, changed=True, etag='"v1"')
    assert poller.due == 100.2
    poller.headers()
    assert receive(poller, 304, 100.3) is Meaning.SAME
    assert poller.due == pytest.approx(160.2)


def test_a_hint_does_not_put_off_a_question_that_is_due() -> None:
    poller = poller_of(60.0)
    poller.due = 100.0
    poller.hint(105.0)
    assert poller.due == 100.0


def test_an_outage_is_waited_out_whatever_is_hinted() -> None:
    poller = poller_of(1.0)
    receive(poller, 429, 100.0, retry_after="60")
    poller.hint(110.0)
    assert poller.due == 160.0
    poller.headers()
    poller.hint(160.1)
    poller.fail(160.2)
    assert poller.due > 160.2


# Hints that come in bursts


def quiet_poller(every: float = 60.0, **others: object) -> Poller:
    """One whose next planned question is far away; the last answer came at 100."""
    poller = poller_of(every, **others)
    body(poller, 100.0, changed=False)
    assert poller.due == 100.0 + every
    return poller


def ask(poller: Poller, now: float, *, changed: bool = True) -> None:
    """A question, and its answer at `now`."""
    poller.headers()
    body(poller, now, changed=changed)


def test_the_first_hint_of_a_burst_asks_at_once() -> None:
    poller = quiet_poller()
    poller.hint(110.0, gather=True)
    assert poller.due == 110.0


def test_a_burst_is_followed_by_one_question_behind_its_last_hint() -> None:
    poller = quiet_poller()
    poller.hint(110.0, gather=True)
    ask(poller, 110.005)
    assert poller.due == 170.0
    for now in (110.01, 110.02, 110.03):
        poller.hint(now, gather=True)
        assert poller.due == pytest.approx(now + GATHER)
    ask(poller, 110.085)
    assert poller.due == pytest.approx(110.03 + GATHER + 60)


def test_a_burst_during_a_question_is_followed_by_one_question_behind_its_last_hint() -> None:
    poller = quiet_poller()
    poller.hint(110.0, gather=True)
    poller.headers()
    for now in (110.01, 110.02, 110.03):
        poller.hint(now, gather=True)
    body(poller, 110.04, changed=True)
    assert poller.due == pytest.approx(110.03 + GATHER)
    ask(poller, 110.085, changed=False)
    assert poller.due > 160.0


def test_a_question_that_outlasts_a_burst_is_followed_by_one_at_once() -> None:
    poller = quiet_poller()
    poller.hint(110.0, gather=True)
    poller.headers()
    for now in (110.01, 110.02, 110.03):
        poller.hint(now, gather=True)
    body(poller, 113.0, changed=True)
    assert poller.due <= 113.0
    ask(poller, 113.1, changed=False)
    assert poller.due > 160.0


def test_a_question_that_starts_after_the_last_hint_answers_it() -> None:
    poller = quiet_poller()
    for now in (110.0, 110.01, 110.02):
        poller.hint(now, gather=True)
    assert poller.due == 110.0
    ask(poller, 110.04)  # it was late, and has seen all of them
    assert poller.due == 170.0


def test_a_burst_without_an_end_is_followed_by_one_question_a_second() -> None:
    poller = quiet_poller(600.0)
    asked = []
    for step in range(500):
        now = 110.0 + step / 100
        poller.hint(now, gather=True)
        if poller.due <= now:
            asked.append(now)
            ask(poller, now, changed=False)
    assert asked[0] == 110.0
    assert len(asked) == 5
    assert [later - one for one, later in pairwise(asked)] == pytest.approx([LONGEST_GATHER + 0.01] * 4, abs=0.011)


def test_a_burst_without_an_end_is_followed_by_one_question_a_second_however_slow_the_answers() -> None:
    poller = quiet_poller(600.0)
    asked = []
    answered = 0.0
    for step in range(1000):
        now = 110.0 + step / 100
        if answered and now >= answered:
            body(poller, now, changed=True)
            answered = 0.0
        poller.hint(now, gather=True)
        if not answered and poller.due <= now:
            asked.append(now)
            poller.headers()
            answered = now + 0.3
    assert 8 <= len(asked) <= 10
    assert min(later - one for one, later in pairwise(asked[1:])) > 0.9


def test_hints_that_are_not_gathered_always_ask_at_once() -> None:
    poller = quiet_poller()
    for now in (110.0, 110.01, 110.02, 110.03):
        poller.hint(now)
        assert poller.due == now
        ask(poller, now + 0.005)
    poller.hint(110.04, gather=True)
    assert poller.due == pytest.approx(110.04 + GATHER)  # it is of the burst
    poller.hint(110.05)
    assert poller.due == 110.05


def test_a_hint_that_is_far_from_the_last_one_asks_at_once() -> None:
    poller = quiet_poller()
    for now in (110.0, 110.001 + GATHER, 110.2, 111.0):
        poller.hint(now, gather=True)
        assert poller.due == now
        ask(poller, now + 0.005)


def test_a_hint_far_from_a_burst_that_still_waits_asks_at_once() -> None:
    poller = quiet_poller()
    poller.hint(110.0, gather=True)
    poller.headers()
    poller.hint(110.01, gather=True)
    poller.hint(110.02 + GATHER, gather=True)
    body(poller, 110.1, changed=True)
    assert poller.due <= 110.1
    ask(poller, 110.2)
    assert poller.due > 160.0


def test_an_outage_is_waited_out_whatever_burst_comes() -> None:
    poller = quiet_poller(1.0)
    receive(poller, 429, 101.0, retry_after="60")
    for step in range(200):
        poller.hint(110.0 + step / 100, gather=True)
        assert poller.due == 161.0
    ask(poller, 161.1)
    assert poller.due == 162.0


def test_an_outage_during_a_burst_is_waited_out() -> None:
    poller = quiet_poller(1.0)
    poller.hint(100.5, gather=True)
    poller.headers()
    poller.hint(100.51, gather=True)
    receive(poller, 503, 100.6, retry_after="30")
    assert poller.due == 130.6
    poller.hint(100.61, gather=True)
    assert poller.due == 130.6


def test_a_burst_does_not_put_off_a_question_that_is_planned() -> None:
    poller = quiet_poller(0.1)
    poller.due = 110.0
    poller.hint(110.0, gather=True)
    ask(poller, 110.0)
    planned = poller.due
    assert planned == pytest.approx(110.1)
    for now in (110.03, 110.06, 110.09):
        poller.hint(now, gather=True)
        assert poller.due <= planned
    ask(poller, 110.1)
    assert poller.due == pytest.approx(110.2)


@given(
    st.floats(0.5, 5),
    st.lists(st.tuples(st.floats(0, 0.2), st.booleans(), st.floats(0, 0.4)), min_size=1, max_size=60),
)
def test_hints_never_put_a_question_off_and_each_is_followed_by_one_within_a_second(
    every: float, story: list[tuple[float, bool, float]]
) -> None:
    poller = Poller(PollSettings(every, every), random=lambda: 1.0)
    poller.resume(100.0)
    now, waiting, planned = 100.0, [], 100.0
    for later, gather, takes in story:
        now += later
        while poller.due <= now:  # questions that were due in the meantime
            start = max(poller.due, now - later)
            planned = poller.due + every
            poller.headers()
            waiting = []
            body(poller, start, changed=True)
            assert poller.due > start
        poller.hint(now, gather=gather)
        waiting.append(now)
        assert poller.due <= planned + 1e-9
        assert poller.due <= min(waiting) + LONGEST_GATHER + 1e-9
        assert gather or poller.due <= now
        if takes > 0.3:  # a question is under way for a while, and hints go on
            poller.headers()
            waiting = []
            poller.hint(now + takes / 2, gather=gather)
            waiting.append(now + takes / 2)
            now += takes
            planned = max(poller.due + every, now + every / 10)
            body(poller, now, changed=True)
            assert poller.due <= max(now, min(waiting) + LONGEST_GATHER) + 1e-9


# The whole

ANSWERS = st.tuples(
    st.sampled_from([200, 200, 200, 304, 204, 401, 429, 503, 0]),
    st.booleans(),
    st.sampled_from([{}, {}, {"retry_after": "7"}, {"cache_control": "max-age=9"}, {"etag": '"v1"'}]),
    st.floats(0, 30),
)


@given(
    st.floats(0.1, 60),
    st.floats(1, 10),
    st.floats(0.1, 5),
    st.floats(5, 100),
    st.lists(ANSWERS, max_size=30),
    st.data(),
)
def test_two_questions_are_never_closer_than_a_tenth_of_the_interval_nor_further_apart_than_a_cap(
    every: float,
    stretch: float,
    backoff_min: float,
    backoff_max: float,
    answers: list[tuple[int, bool, dict[str, str], float]],
    data: st.DataObject,
) -> None:
    settings = PollSettings(every, every * stretch, backoff_min=backoff_min, backoff_max=backoff_max)
    poller = Poller(settings, random=lambda: data.draw(st.floats(0, 1)))
    now = 1000.0
    poller.resume(now)
    for status, changed, headers, takes in answers:
        start = now = max(now, poller.due)
        poller.headers()
        now += takes
        if status == 0:
            poller.fail(now)
        elif receive(poller, status, now, **headers) is Meaning.BODY:
            poller.settle(changed=changed, now=now)
        assert poller.due >= start + every / 10 - 1e-9
        assert poller.due >= now + every / 10 - 1e-9
        assert poller.due <= now + max(every * stretch, backoff_max, 9.0) + 1e-9


def test_after_a_pause_an_upstream_that_asked_to_be_left_alone_still_is() -> None:
    poller = Poller(PollSettings(1.0, 1.0), random=lambda: 0.5)
    poller.resume(100.0)
    poller.receive(429, Headers([(b"Retry-After", b"60")]), now=100.0, wall=0.0)
    poller.resume(110.0)
    assert poller.due == 160.0
    poller.resume(200.0)
    assert poller.due == 200.0
