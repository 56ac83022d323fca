"""Proof by play: whatever fails, whoever is killed, and in whatever order it happens, renting loses no money.

    .venv/bin/pytest tests/callsheet/test_host_machine.py                  # a few plays, always the same
    .venv/bin/pytest tests/callsheet/test_host_machine.py -m slow          # hundreds, always the same; three minutes
    .venv/bin/python -m tests.callsheet.test_host_machine --examples 5000 --seed 7      # others: a night's worth

A test prints the first play that goes wrong, the command the smallest that it can make of it; `perform(Play(...))` does it again.

A play (`tests.host_play`) is drawn by hypothesis. In it two managers rent, work and give back, and a reaper
sweeps every five minutes. They share a store and a vast.ai (`tests.fakes.vast`, over HTTP, through the real SDK), and are
greenlets: at every request, every read or write of the store and every sleep the next one to act is taken from the play, and the
clock, which is vast.ai's, goes on only when everybody sleeps. So a play is the same every time. What may go wrong in it:

- a process is killed before or after any of its calls, and another follows it or not;
- any endpoint of vast.ai fails in any way that the fake knows, lists that lie included; offers vanish;
- boxes are stuck, exit, go offline, have no ports, are in no list yet, vanish, become dearer;
- the store fails for some calls or minutes, writes and says that it did not, and has a torn record;
- other people's boxes stand beside ours, with labels that are nearly ours.

What must hold all the time (`World`):

1.  A box is made only after its record, and a label is used for one create.
2.  Never more boxes than the cap (with the order's lock lost, one more: `test_with_its_lock_lost_…`).
3.  Nobody else's box is destroyed, nor one of ours that is well while somebody works on it and its time is not over.
4.  Who gave a host back and heard no fault has given it back.

And in the end, with the managers gone and the reaper alone:

5.  A box goes in the first undisturbed sweep that begins after its record is over, or after its deadline where it never answered, or
    after its label's end whatever is written. Undisturbed is one that was not killed, was told the truth and reports no fault. So
    it is gone at label end + 5 minutes x (1 + disturbed sweeps) + the sweep's own time at the latest.
6.  Every record that can be read is ended.
7.  $ <= sum over boxes of max_per_hour x (that moment - when it was made). In words: an hour's cap price for every hour in which a
    host boots, is worked on or is being given back, and up to max_hours more for each host whose manager was killed or
    kept it; and never more than max_hosts x max_per_hour x the hours of the whole play.

Without any reaper the box itself is the last line: one that runs destroys itself at its label's end
(`test_without_a_reaper_…`). That does not reach one that never runs (stuck, exited, offline): those are the reaper's alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from callsheet.hosts import HostBook, HostLabel, HostRecord
from callsheet.reaper import Reaper, Sweep
from callsheet.renting import Renter
from callsheet.vastai import VastClient
from callsheet.vastai_answers import VastError
from tests.fakes.vast import Endpoint, Fault
from tests.host_play.plays import PLAIN, Play, plays
from tests.host_play.world import Kinds, perform


def many(examples: int) -> settings:
    """So many plays, the same ones each time: what CI says of a commit does not depend on luck. None is made smaller."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def test_without_any_trouble_two_managers_share_a_host() -> None:
    world = perform(Play(work=((20,), (20,)), begins=6))
    assert (len(world.ours), len(world.answered)) == (1, 1)


def test_of_two_who_wait_for_a_box_at_its_deadline_none_takes_it_from_the_other() -> None:
    """One is answered in the moment in which the other gives it up."""
    perform(Play(prices=(0.4,) * 4, work=((1,), (1,)), boots=585.0, turns=(3,)))


@many(12)
@given(plays())
def test_renting_loses_nothing(play: Play) -> None:
    perform(play)


@pytest.mark.slow
@many(220)
@given(plays())
def test_renting_loses_nothing_in_many_plays(play: Play) -> None:
    perform(play)


@pytest.mark.slow
@many(60)
@given(plays(turns=5))
def test_with_its_lock_lost_one_host_more_is_rented_at_most(play: Play) -> None:
    """Two managers order at once, and processes stand still for longer than any wait.

    Each looks at the caps, and then creates; so there is one host more for each order at the same time but one. Nobody ends it
    before its time: it goes when its manager gives it back, or with its label's end as any other. Nobody orders a
    third meanwhile.
    """
    perform(play, lock_holds=False)


@pytest.mark.slow
@many(60)
@given(plays())
def test_without_a_reaper_what_runs_ends_with_its_label(play: Play) -> None:
    perform(play, has_reaper=False)


# Whether it would be noticed: mutants of what is on trial ------------------------------------------------------


class WritesLate(HostBook):
    """Writes a host down when its box is known, not before."""

    _late: HostRecord | None = None

    def write(self, record: HostRecord) -> HostRecord:
        self._late = record
        return record

    def _change(self, lease: str, may: Any, changes: Any) -> HostRecord | None:
        if self._late and self._late.lease == lease:
            super().write(self._late)
            self._late = None
        return super()._change(lease, may, changes)


class TrustsPartOfAList(Reaper):
    """Takes a list that is not whole for the truth, and what it lacks for gone."""

    def __init__(self, client: VastClient, *more: Any, **settings: Any) -> None:
        super().__init__(client, *more, **settings)
        client.instances = lambda: client._list({})[0]  # type: ignore[method-assign]

    def _close(self, sweep: Sweep, known: Any, boxes: Any) -> None:
        super()._close(sweep, known, boxes)
        there = {box.id for box in boxes}
        for record in known.records.values():
            if record.instance is not None and record.instance not in there:
                self._change(sweep, record, state="ended")


class DestroysWhatIsNearlyOurs(Reaper):
    """Goes by the beginning of a label."""

    def sweep(self, *, dry_run: bool = False) -> Sweep:
        with suppress(VastError):
            for box in self._client.instances():
                if box.label.startswith("callsheet") and HostLabel.read(box.label) is None:
                    self._client.destroy(box.id)
        return super().sweep(dry_run=dry_run)


class Overlooks(Reaper):
    """Does not destroy for one of its reasons."""

    reason = ""

    def _judge(self, *facts: Any) -> Any:
        doomed = super()._judge(*facts)
        return None if doomed and self.reason in doomed.reason else doomed


class BelievesRecords(Overlooks):
    reason = "given back"


class BelievesBoots(Overlooks):
    reason = "did not come up"


class KnowsNoEnd(Overlooks):
    reason = "its time is over"


class AsksOnce(Renter):
    """Tells a box to go, and does not look whether it does."""

    def _destroy(self, record: HostRecord) -> None:
        if record.instance is not None:
            with suppress(VastError):
                self._client.destroy(record.instance)


class CountsByTheListAlone(Renter):
    """A box that no list has yet is none."""

    def _check_caps(self) -> None:
        self._all_own = lambda: []  # type: ignore[method-assign]
        try:
            super()._check_caps()
        finally:
            del self._all_own  # type: ignore[method-assign]


class TakesNoAnswerForNo(Renter):
    """A create without an answer made nothing."""

    def _unclear(self, record: HostRecord, fault: Any) -> None:
        self._change(record, "creating", state="ended")


def sends_a_create_again(client: VastClient) -> VastClient:
    """The SDK with its three tries."""
    client._creating.client.retry = 3
    return client


TWO_FAULTS: tuple[tuple[Endpoint, int, Fault, int], ...] = (("destroy", 0, "not taken on", 9),)
MUTANTS: dict[str, tuple[Kinds, st.SearchStrategy[Play], str]] = {
    "writes late": (Kinds(book=WritesLate), plays(), "not written down"),
    "trusts part of a list": (
        Kinds(reaper=TrustsPartOfAList),
        plays(faults=(("list", 40, "row missing", 90),), others=(), deaths=((), (), ())),
        "written down as ended",
    ),
    "destroys what is nearly ours": (
        Kinds(reaper=DestroysWhatIsNearlyOurs), plays(**{**PLAIN, "others": ("nearly 3",)}), "was destroyed",
    ),
    "believes records": (Kinds(reaper=BelievesRecords), plays(faults=TWO_FAULTS), "was due|costs money"),
    "believes boots": (Kinds(reaper=BelievesBoots), plays(work=((10,), ()), **PLAIN), "was due|costs money"),
    "knows no end": (Kinds(reaper=KnowsNoEnd), plays(keeps=True), "costs money"),
    "asks once": (Kinds(renter=AsksOnce), plays(faults=TWO_FAULTS), "costs money"),
    "counts by the list alone": (
        Kinds(renter=CountsByTheListAlone), plays(fates=("invisible",) * 6, max_hosts=1, **PLAIN), "at once",
    ),
    "takes no answer for no": (
        Kinds(renter=TakesNoAnswerForNo), plays(faults=(("create", 0, "committed, then 502", 1),)), "costs money",
    ),
    "sends a create again": (
        Kinds(client_of=sends_a_create_again), plays(faults=(("create", 0, "committed, then 502", 1),)), "costs money",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_found_out(name: str) -> None:
    kinds, strategy, said = MUTANTS[name]
    failed = []

    @many(100)
    @given(strategy)
    def play_it(play: Play) -> None:
        try:
            perform(play, kinds)
        except AssertionError:
            failed.append(play)
            raise

    with pytest.raises(AssertionError, match=said):
        play_it()
    perform(failed[-1])  # it is the mutant's fault: what it was made of plays the same without any


#: Turns and how it is performed, by what is said of it.
WAYS: dict[str, tuple[int, dict[str, bool]]] = {
    "with all that holds it": (4, {}),
    "with its lock lost": (5, {"lock_holds": False}),
    "without a reaper": (4, {"has_reaper": False}),
}


def _playing(turns: int, way: dict[str, bool], examples: int, number: int) -> Callable[[], None]:
    """So many plays of a seed; one that goes wrong is made smaller."""

    @seed(number)
    @settings(many(examples), derandomize=False, phases=[Phase.generate, Phase.shrink])
    @given(plays(turns))
    def play_it(play: Play) -> None:
        perform(play, **way)

    return play_it


def main() -> int:
    parser = argparse.ArgumentParser(description="Plays many plays; prints the smallest that goes wrong.")
    parser.add_argument("--examples", type=int, default=1000, help="of each of three ways")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for name, (turns, way) in WAYS.items():
        began = time.monotonic()

        _playing(turns, way, arguments.examples, arguments.seed)()
        took = time.monotonic() - began
        print(f"{arguments.examples} plays {name}: nothing is lost; {took:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
