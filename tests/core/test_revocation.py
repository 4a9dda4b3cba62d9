"""What was shown before somebody was put out is good no more; what is given to them afterwards is."""

from __future__ import annotations

import pytest

from ssegate.core import revocation
from ssegate.core.principal import Principal
from ssegate.core.revocation import Revocations


def shown(identity: str | None = "ada", key: bytes = b"k", issued: float | None = None) -> Principal:
    return Principal("user", key, identity, issued=issued)


def test_nobody_is_put_out_to_begin_with() -> None:
    assert not Revocations().covers(shown(issued=0.0))


@pytest.mark.parametrize(
    ("principal", "is_covered"),
    [
        (shown(key=b"known"), True),
        (shown(key=b"known", issued=5000.0), True),
        (shown("grace", key=b"known"), True),
        (shown(issued=999.0), True),
        (shown(issued=999.99), True),
        (shown(issued=1000.0), False),
        (shown(issued=1001.0), False),
        (shown(issued=None), False),
        (shown("grace", issued=10.0), False),
        (shown(None, issued=10.0), False),
    ],
)
def test_known_credentials_and_those_issued_in_an_earlier_second_are_covered(
    principal: Principal, is_covered: bool
) -> None:
    revocations = Revocations()
    revocations.revoke("ada", [b"known", b"other"], 1000.7)
    assert revocations.covers(principal) is is_covered


def test_a_later_revocation_counts() -> None:
    revocations = Revocations()
    revocations.revoke("ada", [], 1000.0)
    assert not revocations.covers(shown(issued=1500.0))
    revocations.revoke("ada", [b"k2"], 2000.0)
    assert revocations.covers(shown(issued=1500.0))
    assert revocations.covers(shown(key=b"k2"))


def test_a_clock_that_was_set_back_takes_nothing_back() -> None:
    revocations = Revocations()
    revocations.revoke("ada", [], 2000.0)
    revocations.revoke("ada", [], 1000.0)
    assert revocations.covers(shown(issued=1500.0))


def test_memory_is_bounded_and_the_oldest_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation, "MOST", 10)
    revocations = Revocations()
    for number in range(30):
        revocations.revoke(f"u{number}", [b"%d" % number], 1000.0)
        if number > 5:
            revocations.revoke("often", [b"often"], 1000.0)
    assert (len(revocations._times), len(revocations._keys)) == (10, 10)
    assert revocations.covers(shown("u29", b"x", 1.0))
    assert revocations.covers(shown("often", b"often"))
    assert not revocations.covers(shown("u1", b"1", 1.0))
