"""The last refusals, as operators see them."""

from __future__ import annotations

from ssegate.admin.denials import MOST, Denial, Denials


def denial(**changes: object) -> Denial:
    facts = {
        "at": 1_800_000_000.5,
        "status": 401,
        "path": "/a",
        "guard": "user",
        "reason": "why",
        "address": "192.0.2.1",
    }
    return Denial(**{**facts, **changes})  # type: ignore[arg-type]


def test_a_denial_is_shown_without_what_there_is_not() -> None:
    assert denial(guard="", address="").shown() == {
        "at": "2027-01-15T08:00:00.500Z", "status": 401, "path": "/a", "reason": "why",
    }  # fmt: skip
    assert denial(identity="ada").shown()["identity"] == "ada"


def test_a_long_path_is_cut() -> None:
    assert denial(path="/" + "a" * 8000).shown()["path"] == "/" + "a" * 299


def test_the_newest_stand_first_and_the_oldest_give_way() -> None:
    denials = Denials()
    for number in range(MOST + 50):
        denials.add(denial(path=f"/{number}", status=401 + 2 * (number % 2)))
    paths = [each.path for each in denials]
    assert (len(paths), paths[0], paths[-1]) == (MOST, f"/{MOST + 49}", "/50")
    assert denials.counts == {("user", 401): (MOST + 50) // 2, ("user", 403): (MOST + 50) // 2}
