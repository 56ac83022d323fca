"""What a play is, and how plays are drawn.

Play(deaths=((Death(call=20, after=True, gap=7.0),), (), ()))       # by hand: A's process dies at its 20th call
plays()                                                             # by hypothesis
plays(fates=("invisible",) * 6, **PLAIN)                            # some of it fixed
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.fakes.vast import RUNS, Endpoint, Fate, Fault


@dataclass(frozen=True)
class Death:
    """A process dies at its ``call``th call: before it is done, or after. Another follows in ``gap`` minutes, or none (None)."""

    call: int
    after: bool
    gap: float | None


@dataclass(frozen=True)
class Trouble:
    """Something happens at a minute of the play.

    Attributes:
        which: the box or record, counted from the first; or for how many minutes the store fails.
    """

    minute: float
    what: str
    which: int


@dataclass(frozen=True)
class Play:
    """What happens; see the module.

    Attributes:
        turns: at each call the next one, over and over: 0 goes on, 1 and 2 let another act first, more pauses.
        faults: endpoint, requests that are spared before it, the fault, and how often.
        shelf: calls of the store that are spared before it, and what goes wrong.
        work: minutes of each piece of work, by manager.
        keeps: whether a manager leaves its host ready, as ``keep_minutes`` has it.
        begins: minutes after A that B begins.
        boots: seconds after its create that a box runs; it has ten minutes.
    """

    max_hosts: int = 1
    max_total: float | None = None
    prices: tuple[float, ...] = (0.4, 0.45, 0.3, 0.5)
    fates: tuple[Fate, ...] = ()
    faults: tuple[tuple[Endpoint, int, Fault, int], ...] = ()
    shelf: tuple[tuple[int, str], ...] = ()
    troubles: tuple[Trouble, ...] = ()
    deaths: tuple[tuple[Death, ...], ...] = ((), (), ())
    work: tuple[tuple[int, ...], ...] = ((10,), (10,))
    keeps: bool = False
    begins: int = 0
    boots: float = RUNS
    turns: tuple[int, ...] = ()
    others: tuple[str, ...] = ()
    page: int = 25
    one_fleet: bool = False
    newest_first: bool = False


_ANY: tuple[Fault, ...] = (
    "502", "resets", "500", "half", "html", "429 text", "429 json", "429 header", "wrong key", "404 wrong key", "hangs",
)  # fmt: skip
_OF_CREATE: tuple[Fault, ...] = (
    "committed, then resets", "committed, then 502", "committed, then html", "committed, without id", "refused and made",
    "gone 404", "gone 410", "gone 400", "no credit", "refused", "committed, then hangs",
)  # fmt: skip
_OF_LIST: tuple[Fault, ...] = ("empty", "empty and said so", "row missing", "row without id", "no instances")
_OF_DESTROY: tuple[Fault, ...] = ("not taken on", "lingers", "committed, then resets")
FAULTS: dict[Endpoint, tuple[Fault, ...]] = {
    "create": _OF_CREATE + _ANY,
    "list": _OF_LIST * 2 + _ANY,
    "destroy": _OF_DESTROY + _ANY,
    "search": ("quota", *_ANY),
    "user": _ANY,
}
FATES: tuple[Fate, ...] = ("", "invisible", "stuck", "exits", "offline", "no ports", "bad image")
SHELF = ("write fails", "written and fails", "written and says no", "read fails", "list fails")
TROUBLES = (
    "goes offline", "exits", "is well again", "vanishes", "is dearer", "is torn", "is removed", "store cannot be read",
    "store cannot be written", "offers", "no offers",
)  # fmt: skip
OTHERS = (
    "another's",
    "none",
    "empty",
    "nearly 1",
    "nearly 2",
    "nearly 3",
    "other fleet",
    "other book",
    "other fleet, our book",
)

#: Requests to an endpoint that a play has at least, as a rule: within so many a fault strikes.
REQUESTS: dict[Endpoint, int] = {"create": 2, "list": 90, "destroy": 4, "search": 2, "user": 6}
GAPS = (0.0, 1.0, 7.0, 20.0, None, None)


def deaths(calls: int, gaps: tuple[float | None, ...]) -> st.SearchStrategy[tuple[Death, ...]]:
    death = st.builds(Death, st.integers(1, calls), st.booleans(), st.sampled_from(gaps))
    return st.lists(death, max_size=3).map(tuple)


def faults_of(endpoint: Endpoint, most: int) -> st.SearchStrategy[list[tuple[Endpoint, int, Fault, int]]]:
    """Up to so many faults of an endpoint. Four in a row are more than a request is sent again."""
    fault = st.tuples(
        st.just(endpoint),
        st.integers(0, REQUESTS[endpoint]),
        st.sampled_from(FAULTS[endpoint]),
        st.sampled_from([1, 4, 1, 2, 9]),
    )
    return st.lists(fault, max_size=most)


faults = st.tuples(
    faults_of("create", 3),
    faults_of("list", 3),
    faults_of("destroy", 2),
    faults_of("search", 1),
    faults_of("user", 1),
).map(lambda lists: tuple(itertools.chain.from_iterable(lists)))


def plays(turns: int = 4, **fixed: Any) -> st.SearchStrategy[Play]:
    """Plays whose turns are at most this."""
    drawn: dict[str, Any] = {
        "max_hosts": st.sampled_from([1, 2]),
        "max_total": st.sampled_from([None, 1.3, 0.9]),
        "prices": st.lists(st.sampled_from([0.4, 0.3, 0.5, 0.55, 0.9]), min_size=4, max_size=12).map(tuple),
        "fates": st.lists(st.sampled_from(FATES), max_size=6).map(tuple),
        "faults": faults,
        "shelf": st.lists(st.tuples(st.integers(0, 150), st.sampled_from(SHELF)), max_size=3).map(tuple),
        "troubles": st.lists(
            st.builds(Trouble, st.integers(0, 120), st.sampled_from(TROUBLES), st.integers(0, 4)), max_size=3
        ).map(tuple),
        "deaths": st.tuples(deaths(150, GAPS), deaths(150, GAPS), deaths(60, (0.0,))),
        "work": st.tuples(
            *(st.lists(st.integers(1, 40), min_size=1, max_size=2).map(tuple) for _ in range(2))
        ),
        "keeps": st.sampled_from([False, False, True]),
        "begins": st.integers(0, 8),
        "boots": st.sampled_from([RUNS, RUNS, 585.0]),
        "turns": st.lists(st.integers(0, turns), max_size=40).map(tuple),
        "others": st.lists(st.sampled_from(OTHERS), max_size=3).map(tuple),
        "page": st.sampled_from([25, 2]),
        "one_fleet": st.booleans(),
        "newest_first": st.booleans(),
    }
    return st.builds(Play, **{**drawn, **{name: st.just(value) for name, value in fixed.items()}})


#: Plays in which a process is killed at nearly any place, and not much else goes wrong.
PLAIN = {"faults": (), "shelf": (), "troubles": (), "others": ()}
