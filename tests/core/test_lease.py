"""When a subscription is asked for, renewed, and asked for again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.core.lease import EVERY, MARGIN, NEVER, Lease, Standing


def lease_of(random: float | Callable[[], float] = 0.0, *, least: float = 1.0, most: float = 60.0) -> Lease:
    dice = random if callable(random) else lambda: random
    return Lease(random=dice, backoff_min=least, backoff_max=most)


def test_a_subscription_is_asked_for_at_once() -> None:
    lease = lease_of()
    assert lease.due <= 0.0
    assert (lease.until, lease.failures, lease.standing(10.0)) == (None, 0, Standing.ASKING)


# Granted


@pytest.mark.parametrize(("random", "due"), [(0.0, 70.0), (0.5, 80.0), (1.0, 90.0)])
def test_a_grant_is_renewed_well_before_it_ends(random: float, due: float) -> None:
    assert MARGIN == (0.6, 0.8)
    lease = lease_of(random)
    lease.grant(100.0, 10.0)
    assert (lease.due, lease.until) == (pytest.approx(due), 110.0)


def test_a_grant_holds_until_it_ends() -> None:
    lease = lease_of()
    lease.grant(100.0, 10.0)
    assert lease.standing(109.9) is Standing.ACTIVE
    assert lease.standing(110.0) is Standing.ASKING


def test_a_grant_for_good_is_never_renewed() -> None:
    lease = lease_of()
    lease.grant(None, 10.0)
    assert lease.due == lease.until == NEVER
    assert lease.standing(1e12) is Standing.ACTIVE


@pytest.mark.parametrize(("random", "due"), [(0.0, 100.0), (1.0, 110.0)])
def test_a_grant_with_an_interval_is_renewed_towards_its_end_and_does_not_run_out(random: float, due: float) -> None:
    assert EVERY == (0.9, 1.0)
    lease = lease_of(random)
    lease.grant(100.0, 10.0, is_interval=True)
    assert (lease.due, lease.until) == (pytest.approx(due), NEVER)
    assert lease.standing(1e12) is Standing.ACTIVE


def test_a_renewal_takes_the_place_of_the_grant_before() -> None:
    lease = lease_of()
    lease.grant(100.0, 10.0)
    lease.grant(50.0, 70.0)
    assert (lease.due, lease.until) == (100.0, 120.0)
    lease.grant(None, 100.0)
    lease.grant(100.0, 200.0)
    assert (lease.due, lease.until) == (260.0, 300.0)


# Failed


def test_failures_wait_longer_each_time_up_to_a_bound() -> None:
    for random in (0.0, 0.5, 1.0):
        lease = lease_of(random, least=1.0, most=10.0)
        waits = []
        for _ in range(50):
            lease.fail(10.0)
            waits.append(lease.due - 10.0)
        part = 0.5 + 0.5 * random
        assert waits == pytest.approx([part * bound for bound in [1.0, 2.0, 4.0, 8.0] + [10.0] * 46])


def test_after_ten_thousand_failures_it_still_waits_and_no_longer_than_the_bound() -> None:
    lease = lease_of(1.0)
    for _ in range(10_000):
        lease.fail(10.0)
    assert (lease.failures, lease.due) == (10_000, 70.0)


@pytest.mark.parametrize(("retry_after", "due"), [(0.0, 11.0), (0.5, 11.0), (30.0, 40.0), (3600.0, 3610.0)])
def test_a_failure_waits_at_least_as_long_as_was_asked_for(retry_after: float, due: float) -> None:
    lease = lease_of(1.0)
    lease.fail(10.0, retry_after)
    assert lease.due == due


def test_a_grant_ends_the_failures() -> None:
    lease = lease_of(1.0)
    for _ in range(5):
        lease.fail(10.0)
    lease.grant(100.0, 50.0)
    assert (lease.failures, lease.standing(50.0)) == (0, Standing.ACTIVE)
    lease.fail(130.0)
    assert lease.due == 131.0


def test_what_was_never_granted_fails_when_an_attempt_does() -> None:
    lease = lease_of()
    lease.fail(10.0)
    assert lease.standing(10.0) is Standing.FAILING


def test_a_renewal_that_fails_leaves_the_grant_as_it_is_until_it_ends() -> None:
    lease = lease_of(1.0)
    lease.grant(100.0, 10.0)
    lease.fail(90.0)
    assert (lease.due, lease.until) == (91.0, 110.0)
    assert lease.standing(109.9) is Standing.ACTIVE
    assert lease.standing(110.0) is Standing.FAILING


# Asked again


def test_what_was_asked_for_is_asked_for_again_when_no_grant_comes() -> None:
    lease = lease_of()
    lease.expect(30.0, 10.0)
    assert (lease.due, lease.standing(10.0)) == (40.0, Standing.ASKING)
    lease.grant(100.0, 15.0)
    assert lease.due == 75.0


def test_to_expect_a_renewal_does_not_end_the_grant() -> None:
    lease = lease_of()
    lease.grant(100.0, 10.0)
    lease.expect(30.0, 70.0)
    assert (lease.due, lease.until, lease.standing(105.0)) == (100.0, 110.0, Standing.ACTIVE)


def test_a_renewal_may_be_hurried() -> None:
    lease = lease_of()
    lease.grant(None, 10.0)
    lease.hurry(20.0)
    assert (lease.due, lease.until, lease.standing(20.0)) == (20.0, NEVER, Standing.ACTIVE)


def test_a_grant_that_is_lost_is_asked_for_at_once() -> None:
    lease = lease_of()
    lease.grant(100.0, 10.0)
    lease.lose(20.0)
    assert (lease.due, lease.until, lease.standing(20.0)) == (20.0, None, Standing.ASKING)
    lease.fail(20.0)
    assert lease.standing(20.0) is Standing.FAILING


# The whole


@given(
    st.floats(0.1, 10),
    st.floats(10, 600),
    st.lists(st.tuples(st.sampled_from(["grant", "every", "fail", "lose"]), st.floats(1, 1e7)), max_size=30),
    st.data(),
)
def test_it_is_never_due_at_once_again_after_a_failure_nor_later_than_its_end(
    least: float, most: float, story: list[tuple[str, float]], data: st.DataObject
) -> None:
    lease, now = lease_of(lambda: data.draw(st.floats(0, 1)), least=least, most=most), 10.0
    for what, seconds in story:
        now = max(now, min(lease.due, 1e9))
        if what == "grant":
            lease.grant(seconds, now)
            assert lease.until is not None
            assert now + 0.6 * seconds - 1e-3 <= lease.due < lease.until
        elif what == "every":
            lease.grant(seconds, now, is_interval=True)
            assert now + 0.9 * seconds - 1e-3 <= lease.due <= now + seconds + 1e-3
        elif what == "fail":
            lease.fail(now)
            assert now + least / 2 - 1e-3 <= lease.due <= now + most + 1e-3
        else:
            lease.lose(now)
            assert lease.due == now
