"""The reaper: compares what the provider says that we rent with what is written down, and destroys what should not be.

    sweep = Reaper(client, HostBook(store)).sweep()
    sweep.destroyed, sweep.left          # what is gone, and what could not be destroyed: alert somebody

It is level-triggered: every sweep looks at everything anew, so a sweep that was killed or failed is made good by the
next. The provider's list is the truth; without records (no store, or it does not answer) label, age and state decide.
Boxes without a label of ours are nobody's business but their owner's: they are counted and never touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from callsheet.hosts import HostBook, HostLabel, HostRecord
from callsheet.timing import scaled
from callsheet.vastai import VastClient
from callsheet.vastai_answers import Instance, VastError

#: A box without a record is given this long: its record may lie in a store that is not ours.
GRACE_SECONDS = 15 * 60.0
#: A box that does not run, and will not by itself, is given this long.
ILL_SECONDS = 10 * 60.0
#: A box is in no list for a while after it was made, so a record without a box is none that is over.
LATE_SECONDS = 10 * 60.0
#: More than these at once are destroyed by nobody but a person: more likely than so many orphans is a mistake of ours.
AT_MOST = 20
#: How long a box may take to go after it was told to, and how often that is looked at.
GONE_SECONDS = 180.0
LOOK_SECONDS = 15.0
_ILL = ("stopped", "exited", "offline", "unknown", "frozen")


@dataclass(frozen=True)
class Doomed:
    """A box that is to be destroyed, and why."""

    id: int
    label: HostLabel
    reason: str


@dataclass
class Sweep:
    """What a sweep came to.

    Attributes:
        kept: boxes of ours that are as they should be.
        doomed: those that should not be there.
        destroyed: those of them that are in no list any more.
        left: those that are still there, and why; somebody must look.
        foreign: how many boxes are not ours.
        breaker: why nothing was destroyed though it should be; empty where it was.
    """

    kept: list[Instance] = field(default_factory=list)
    doomed: list[Doomed] = field(default_factory=list)
    destroyed: list[Doomed] = field(default_factory=list)
    left: dict[int, str] = field(default_factory=dict)
    foreign: int = 0
    breaker: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether nobody need be woken."""
        return not self.left and not self.breaker


class Reaper:
    """Sweeps an account."""

    def __init__(
        self,
        client: VastClient,
        book: HostBook | None = None,
        *,
        fleet: str = "",
        at_most: int = AT_MOST,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``fleet``: sweeps this one alone. Without a ``book`` label, age and state decide."""
        self._client, self._book, self._fleet, self._at_most = client, book, fleet, at_most
        self._now, self._sleep = now, sleep

    def sweep(self, *, dry_run: bool = False) -> Sweep:
        """Looks at everything, and destroys what should not be there, unless it is a ``dry_run``.

        Raises:
            VastError: the provider's list could not be read as a whole: nothing is known, nothing is done.
            StoreFault: there are records and they cannot be read.
        """
        sweep = Sweep()
        # Records first: a box that is made between the two reads has its record, and is not in this list.
        # A store without any record is the wrong one: every host of ours was written down before it was rented.
        records = {record.lease: record for record in self._book.all()} or None if self._book else None
        boxes = self._client.instances()
        for box in boxes:
            label = HostLabel.read(box.label)
            if label is None or self._fleet not in ("", label.fleet):
                sweep.foreign += label is None
            elif reason := self._judge(box, label, records):
                sweep.doomed.append(Doomed(box.id, label, reason))
            else:
                sweep.kept.append(box)
        if len(sweep.doomed) > self._at_most:
            sweep.breaker = (
                f"{len(sweep.doomed)} boxes would be destroyed at once, and more than {self._at_most} are not without a "
                "person's word"
            )
        elif not dry_run:
            self._destroy(sweep)
            self._close(records or {}, {box.id for box in boxes}, {box.label for box in boxes})
        return sweep

    def _judge(self, box: Instance, label: HostLabel, records: Mapping[str, HostRecord] | None) -> str:
        """Why a box should not be there; empty where it should."""
        now = self._now()
        if now >= label.ends:
            return "its time is over"
        if records is None:
            dead = box.status in _ILL and now - label.made > GRACE_SECONDS
            return f"it is {box.status}, and no records are at hand" if dead else ""
        record = records.get(label.lease)
        if record is None:
            return "nobody has it written down" if now - label.made > GRACE_SECONDS else ""
        if record.is_over:
            return f"it was given back: {record.reason}" if record.reason else "it was given back"
        if record.instance not in (None, box.id):
            return f"its lease is that of {record.instance}"
        if record.state != "ready" and now >= record.deadline:
            return "it did not come up in time"
        if box.per_hour > record.max_per_hour * 1.01:
            return (
                f"it costs ${box.per_hour:.3f} an hour, and at most ${record.max_per_hour:.3f} was agreed to"
            )
        return self._ill(box, record, now)

    def _ill(self, box: Instance, record: HostRecord, now: float) -> str:
        """Why a box that does not run should go; it is written down since when it does not."""
        if box.status not in _ILL:
            if record.ill_since is not None:
                self._change(record, ill_since=None)
            return ""
        if record.ill_since is None:
            self._change(record, ill_since=now)
            return ""
        return (
            f"it is {box.status} since {now - record.ill_since:.0f} s"
            if now - record.ill_since > ILL_SECONDS
            else ""
        )

    def _change(self, record: HostRecord, **changes: object) -> HostRecord | None:
        return self._book.change(record.lease, (record.state,), **changes) if self._book else None

    def _destroy(self, sweep: Sweep) -> None:
        """Destroys the doomed, and looks until they are in no list any more."""
        asked = [box for box in sweep.doomed if self._ask(box, sweep)]
        until = self._now() + GONE_SECONDS
        while asked:
            try:
                there = {box.id for box in self._client.instances()}
            except VastError as error:
                sweep.left |= {box.id: f"it is not known whether it is gone: {error}" for box in asked}
                return
            gone = [box for box in asked if box.id not in there]
            for box in gone:
                self._note(box, "ended")
            sweep.destroyed += gone
            asked = [box for box in asked if box.id in there]
            if asked and self._now() >= until:
                sweep.left |= {box.id: "it was told to go and is still there" for box in asked}
                return
            if asked:
                self._sleep(scaled(LOOK_SECONDS))

    def _ask(self, box: Doomed, sweep: Sweep) -> bool:
        self._note(box, "draining")
        try:
            self._client.destroy(box.id)
        except VastError as error:
            sweep.left[box.id] = str(error)
            return False
        return True

    def _note(self, box: Doomed, state: str) -> None:
        """Writes down what became of a lease, where there is a record: no lane takes it up any more."""
        if self._book is not None:
            changes: dict[str, object] = {"state": state, "reason": box.reason}
            self._book.change(box.label.lease, ("creating", "booting", "ready", "draining"), **changes)

    def _close(self, records: Mapping[str, HostRecord], ids: Iterable[int], labels: Iterable[str]) -> None:
        """Ends records whose boxes are in the list no more, or never came: the list was whole."""
        there, named, now = set(ids), set(labels), self._now()
        for record in records.values():
            is_late = now - record.made < LATE_SECONDS or (record.instance is None and now < record.deadline)
            is_there = record.instance in there or record.label in named
            if record.state != "ended" and not is_late and not is_there:
                self._change(record, state="ended", reason=record.reason or "no box is there")
