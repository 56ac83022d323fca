import pytest
from hypothesis import given
from hypothesis import strategies as st

from callsheet.takes import Attempt, Check, attempt_seed, best_of, take_key

INPUTS = {"text": "Hello.", "prompt_audio": "sha256:aa"}


def test_key_is_the_same_whatever_the_order_of_its_parts() -> None:
    key = take_key("speech", "lighttts", "r1", INPUTS)
    assert key == take_key("speech", "lighttts", "r1", dict(reversed(INPUTS.items())))
    assert len(key) == 64


@pytest.mark.parametrize(
    "other",
    [
        take_key("image", "lighttts", "r1", INPUTS),
        take_key("speech", "cosyvoice", "r1", INPUTS),
        take_key("speech", "lighttts", "r2", INPUTS),
        take_key("speech", "lighttts", "r1", INPUTS | {"text": "Hello!"}),
        take_key("speech", "lighttts", "r1", INPUTS, requested_seed=0),
        take_key("speech", "lighttts", "r1", INPUTS, salt="again"),
    ],
)
def test_whatever_decides_a_take_is_in_its_key(other: str) -> None:
    assert other != take_key("speech", "lighttts", "r1", INPUTS)


def test_key_never_changes_between_versions() -> None:
    """Takes that were paid for are found by this; a change here makes them all again."""
    assert (
        take_key("speech", "lighttts", "r1", INPUTS)
        == "d441612da4c93ab80985465ece006f0325dd6d19938c067b18990f213a8f66f8"
    )


@given(requested=st.none() | st.integers(0, 2**64 - 1), n=st.integers(0, 10))
def test_seeds_of_attempts_differ_and_repeat(requested: int | None, n: int) -> None:
    assert attempt_seed("k", requested, n) == attempt_seed("k", requested, n)
    assert attempt_seed("k", requested, n) != attempt_seed("k", requested, n + 1)
    assert requested is None or attempt_seed("k", requested, 0) == requested


def attempt(n: int, *ok: bool, error: str | None = None) -> Attempt:
    checks = tuple(Check(name=str(i), value=1.0, ok=fine) for i, fine in enumerate(ok))
    return Attempt(n=n, file="", sha256="", bytes=0, checks=checks, error=error)


def test_best_attempt_has_the_fewest_failed_checks_then_came_first() -> None:
    attempts = [
        attempt(0, False, False),
        attempt(1, False, True),
        attempt(2, True, False),
        attempt(3, error="gone"),
    ]
    assert best_of(attempts).n == 1


def test_checks_say_what_would_be_right() -> None:
    assert str(Check.within("seconds", 9.0, 1, 2)) == "seconds is 9.0, expected 1 to 2"
    assert str(Check.within("rms_dbfs", -60, -45)) == "rms_dbfs is -60.0, expected at least -45"
    assert str(Check.within("run", 5, None, 2)) == "run is 5.0, expected at most 2"
    assert not Check.within("seconds", float("nan"), 1, 2).ok
    assert str(Check.equals("size", "1x1", "2x2")) == "size is 1x1, expected 2x2"
