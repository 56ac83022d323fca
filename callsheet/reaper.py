"""The reaper: compares what the provider says that we rent with what is written down, and destroys what should not be.

    sweep = Reaper(client, HostBook(store)).sweep()
    sweep.destroyed, sweep.left          # what is gone, and what could not be destroyed: alert somebody

It is level-triggered: every sweep looks at everything anew, so a sweep that was killed or failed is made good by the
next. The provider's list is the truth; without records (no store, another one, or it does not answer) a box goes when
the time on its label is over. What cannot be written down stops no destroy. Boxes without a label of ours are nobody's
business but their owner's: they are counted and never touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from callsheet.errors import StoreFault
from callsheet.hosts import HostBook, HostLabel, HostRecord, Hosts
from callsheet.timing import scaled
from callsheet.vastai import VastClient
from callsheet.vastai_answers import Instance, VastError

#: A box without a record is given this long.
GRACE_SECONDS = 15 * 60.0
#: A box that does not run, and will not by itself, is given this long.
ILL_SECONDS = 10 * 60.0
#: A box is in no list for a while after it was made, so a record without a box is none that is over.
LATE_SECONDS = 10 * 60.0
#: A host in use that is in no list for so long does not come back: its record is closed.
CLOSED_SECONDS = 3600.0
#: How long the record of a host that is gone is kept after its label's end, for whoever wants to know what happened.
FORGET_SECONDS = 3 * 86_400.0
#: More than these are destroyed at once by nobody but a person, unless their time is over or they were given back:
#: more likely than so many orphans is a mistake of ours.
AT_MOST = 20
#: How long a box may take to go after it was told to, and how often that is looked at.
GONE_SECONDS = 180.0
LOOK_SECONDS = 15.0
_ILL = ("stopped", "exited", "offline", "unknown", "frozen")


@dataclass(frozen=True)
class Doomed:
    """A box that is to be destroyed, and why.

    Attributes:
        record: what was written down of it when it was judged; None where nothing is, or it is another box's.
        is_sure: whether no judgement of ours is in it: its own time is over, or it was given back.
        failed_boot: whether it did not come up.
    """

    id: int
    label: HostLabel
    reason: str
    record: HostRecord | None = None
    is_sure: bool = False
    failed_boot: bool = False


@dataclass
class Sweep:
    """What a sweep came to.

    Attributes:
        kept: boxes of ours that are as they should be.
        doomed: those that should not be there.
        destroyed: those of them that are in no list any more.
        left: those that are still there, and why; somebody must look.
        foreign: how many boxes are not ours.
        breaker: why not all was destroyed that should be; empty where it was.
        faults: what could not be read or written down.
    """

    kept: list[Instance] = field(default_factory=list)
    doomed: list[Doomed] = field(default_factory=list)
    destroyed: list[Doomed] = field(default_factory=list)
    left: dict[int, str] = field(default_factory=dict)
    foreign: int = 0
    breaker: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nobody need be woken."""
        return not self.left and not self.breaker and not self.faults


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
        """``fleet``: sweeps this one alone. Without a ``book`` the time on the label decides."""
        self._client, self._book, self._fleet, self._at_most = client, book, fleet, at_most
        self._now, self._sleep = now, sleep

    def sweep(self, *, dry_run: bool = False) -> Sweep:
        """Looks at everything, and destroys what should not be there, unless it is a ``dry_run``.

        Raises:
            VastError: the provider's list could not be read as a whole: nothing is known, nothing is done.
        """
        sweep = Sweep()
        # Records first: a box that is made between the two reads has its record, and is not in this list.
        known = self._known(sweep)
        boxes = self._client.instances()
        for box in boxes:
            label = HostLabel.read(box.label)
            if label is None or self._fleet not in ("", label.fleet):
                sweep.foreign += label is None
            elif doomed := self._judge(box, label, known):
                sweep.doomed.append(doomed)
            else:
                sweep.kept.append(box)
        if not dry_run:
            self._destroy(self._allowed(sweep), sweep)
            if known is not None:
                self._note_health(sweep, known)
                self._close(sweep, known, boxes)
                self._forget(sweep, known)
        else:
            self._allowed(sweep)
        return sweep

    # Judgement: nothing is written -------------------------------------------------------------------

    def _known(self, sweep: Sweep) -> _Known | None:
        """What is written down; None where that is not known, and the labels alone decide."""
        if self._book is None:
            return None
        try:
            book = self._book.known_id()
            hosts = self._book.hosts()
        except StoreFault as fault:
            sweep.faults.append(f"the records are not known, labels alone decide: {fault}")
            return None
        sweep.faults += hosts.unreadable.values()
        return _Known(book, hosts)

    def _judge(self, box: Instance, label: HostLabel, known: _Known | None) -> Doomed | None:
        """Why a box should not be there; None where it should."""
        now = self._now()
        record = known.records.get(label.lease) if known and known.id == label.book else None
        own = record if record is not None and record.instance in (None, box.id) else None
        if now >= label.ends:
            return Doomed(box.id, label, "its time is over", own, is_sure=True)
        if known is None or known.id != label.book or label.lease in known.unreadable:
            return None
        if record is None:
            late = now - label.made > GRACE_SECONDS
            return Doomed(box.id, label, "nobody has it written down") if late else None
        if record.is_over:
            reason = f"it was given back: {record.reason}" if record.reason else "it was given back"
            return Doomed(box.id, label, reason, own, is_sure=True)
        if own is None:
            return Doomed(box.id, label, f"its lease is that of {record.instance}")
        if record.state != "ready" and now >= record.deadline:
            return Doomed(box.id, label, "it did not come up in time", record, failed_boot=True)
        if box.per_hour > record.max_per_hour * 1.01:
            reason = (
                f"it costs ${box.per_hour:.3f} an hour, and at most ${record.max_per_hour:.3f} was agreed to"
            )
            return Doomed(box.id, label, reason, record)
        if box.status in _ILL and record.ill_since is not None and now - record.ill_since > ILL_SECONDS:
            return Doomed(box.id, label, f"it is {box.status} since {now - record.ill_since:.0f} s", record)
        return None

    def _allowed(self, sweep: Sweep) -> list[Doomed]:
        """Those of the doomed that may go without a person's word."""
        judged = [box for box in sweep.doomed if not box.is_sure]
        if len(judged) <= self._at_most:
            return sweep.doomed
        sweep.breaker = (
            f"{len(judged)} boxes would be destroyed at once, and more than {self._at_most} are not without a "
            "person's word"
        )
        return [box for box in sweep.doomed if box.is_sure]

    # What is done about it -----------------------------------------------------------------------------

    def _destroy(self, doomed: list[Doomed], sweep: Sweep) -> None:
        """Destroys boxes, and looks until they are in no list any more."""
        asked = [box for box in doomed if self._drain(box, sweep) and self._ask(box, sweep)]
        until = self._now() + GONE_SECONDS
        while asked:
            try:
                there = {box.id for box in self._client.instances()}
            except VastError as error:
                sweep.left |= {box.id: f"it is not known whether it is gone: {error}" for box in asked}
                return
            gone = [box for box in asked if box.id not in there]
            for box in gone:
                if box.record is not None:
                    self._change(sweep, box.record.model_copy(update={"state": "draining"}), state="ended")
            sweep.destroyed += gone
            asked = [box for box in asked if box.id in there]
            if asked and self._now() >= until:
                sweep.left |= {box.id: "it was told to go and is still there" for box in asked}
                return
            if asked:
                self._sleep(scaled(LOOK_SECONDS))

    def _drain(self, box: Doomed, sweep: Sweep) -> bool:
        """Writes down that a box goes, so that no lane takes it up any more.

        Returns:
            Whether it may go: not where its record says something else by now. A store that does not answer holds up nothing.
        """
        if box.record is None or box.record.is_over or self._book is None:
            return True
        changes = {"state": "draining", "reason": box.reason, "failed_boot": box.failed_boot}
        try:
            return self._book.change_as_seen(box.record, **changes) is not None
        except StoreFault as fault:
            sweep.faults.append(str(fault))
            return True

    def _ask(self, box: Doomed, sweep: Sweep) -> bool:
        try:
            self._client.destroy(box.id)
        except VastError as error:
            sweep.left[box.id] = str(error)
            return False
        return True

    def _note_health(self, sweep: Sweep, known: _Known) -> None:
        """Writes down since when the boxes that stay do not run."""
        for box in sweep.kept:
            label = HostLabel.read(box.label)
            record = known.records.get(label.lease) if label else None
            if record is None or record.is_over or record.instance != box.id:
                continue
            is_ill = box.status in _ILL
            if is_ill != (record.ill_since is not None):
                self._change(sweep, record, ill_since=self._now() if is_ill else None)

    def _close(self, sweep: Sweep, known: _Known, boxes: Iterable[Instance]) -> None:
        """Ends records whose boxes are gone, or never came.

        One list without a host in use proves little, so that is written down first. Another account's boxes are in no
        list of this one.
        """
        try:
            account = self._client.account()
        except VastError as error:
            sweep.faults.append(f"whose list it is is not known, and no record is closed: {error}")
            return
        there, now = {box.id for box in boxes}, self._now()
        named = {box.label for box in boxes}
        for record in known.records.values():
            if record.state == "ended" or record.account != account or self._fleet not in ("", record.fleet):
                continue
            if record.instance in there or record.label in named:
                if record.missing_since is not None:
                    self._change(sweep, record, missing_since=None)
            elif now - record.made < LATE_SECONDS or (record.instance is None and now < record.deadline):
                continue
            elif record.state == "draining" or (record.state != "ready" and now >= record.deadline):
                # Should it show itself after all, it goes all the same.
                self._change(sweep, record, state="ended", reason=record.reason or "no box is there")
            elif record.missing_since is None:
                self._change(sweep, record, missing_since=now)
            elif now - record.missing_since > CLOSED_SECONDS:
                self._change(sweep, record, state="ended", reason="no list has had its box for an hour")

    def _forget(self, sweep: Sweep, known: _Known) -> None:
        """Removes records that are over for long: no box of theirs may live, and their machines may be tried again."""
        if self._book is None:
            return
        for record in known.records.values():
            is_old = self._now() - max(record.ends, record.made) > FORGET_SECONDS
            if record.state == "ended" and is_old and self._fleet in ("", record.fleet):
                try:
                    self._book.forget(record.lease)
                except StoreFault as fault:
                    sweep.faults.append(str(fault))

    def _change(self, sweep: Sweep, record: HostRecord, **changes: object) -> None:
        if self._book is None:
            return
        try:
            self._book.change_as_seen(record, **changes)
        except StoreFault as fault:
            sweep.faults.append(str(fault))


class _Known:
    """What a book says, and which it is."""

    def __init__(self, identity: str | None, hosts: Hosts) -> None:
        self.id, self.records, self.unreadable = identity, hosts.records, hosts.unreadable
