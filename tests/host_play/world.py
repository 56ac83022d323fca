"""What they play in, and the judge of it: what must hold at every moment, and what must be so in the end.

world = perform(Play(...))                     # raises AssertionError where money is lost, or somebody's box is
world.ours, world.answered, world.sweeps       # what happened
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from callsheet.hosts import MISSING_SECONDS, HostBook, HostLabel, HostRecord, record_path
from callsheet.reaper import Reaper
from callsheet.rent_rules import RentRules
from callsheet.renting import Renter
from callsheet.store import LocalFolder
from callsheet.vastai import VastClient
from tests.callsheet.test_hosts import record as a_record
from tests.fakes.vast import LATE, LINGERS, START, Box
from tests.host_play.actors import SWEEP_SECONDS, Manager, Swept, reap
from tests.host_play.plays import Play, Trouble
from tests.host_play.props import SCALE, Market, Slots, Storeroom, time_scale
from tests.host_play.stage import Actor, Stage

#: $ per hour that a box costs once it has become dearer.
DEARER = 1.5
RULES = RentRules(
    name="studio",
    gpu_names=("RTX 4090",),
    max_per_hour=0.6,
    image="comfy:1",
    max_hours=2.0,
    boot_minutes=10.0,
    attempts=3,
)


@dataclass(frozen=True)
class Kinds:
    """What is on trial; mutants of it must be found out."""

    renter: type[Renter] = Renter
    reaper: type[Reaper] = Reaper
    book: type[HostBook] = HostBook
    client_of: Callable[[VastClient], VastClient] = lambda client: client


class World:
    """A play on its stage, and what went wrong in it.

    Attributes:
        ours: boxes of this fleet and book, in the order in which they were made.
        over: when a lease's record was first written as given back.
        answered: leases whose record was ever ready.
        missing: since when a lease's record says that no list has its box.
        disowned: boxes that were written down as gone, or as missing for long, after vast.ai had said, in whole and well-formed
            lists, that it has none; two such sweeps on end cannot be told from the truth. They go all the same, but do not
            count for the cap.
        changes: when a lease's record was written by another than the reaper.
        spoiled: leases to which something happened that ends a host, whoever works on it.
        wrong: what should not have happened.
        longest_excess: for how many seconds on end there were more boxes than the cap.
    """

    def __init__(
        self, story: Play, vast: Market, folder: Path, kinds: Kinds, *, lock_holds: bool, has_reaper: bool
    ) -> None:
        self.story, self.vast, self.kinds, self.has_reaper = story, vast, kinds, has_reaper
        self.lock_holds = lock_holds
        self.rules = RULES.model_copy(
            update={
                "max_hosts": story.max_hosts,
                "max_total_per_hour": story.max_total,
                "keep_minutes": 60.0 if story.keeps else 0.0,
            }
        )
        self.folder = LocalFolder(folder)
        self.room = Storeroom(self.folder, story.shelf, newest_first=story.newest_first)
        self.room.was_written = self._was_written
        self.book = HostBook(self.folder).id()
        self.ours: dict[int, Box] = {}
        self.over: dict[str, float] = {}
        self.answered: set[str] = set()
        self.spoiled: set[str] = set()
        self.torn: set[str] = set()
        self.missing: dict[str, float] = {}
        self.disowned: set[int] = set()
        self.changes: dict[str, list[float]] = {}
        self.wrong: list[str] = []
        self.sweeps: list[Swept] = []
        self.longest_excess = 0.0
        self._excess_since: float | None = None
        self.stage = Stage(vast, story.turns)
        self.slots = Slots(self.stage, lock_holds=lock_holds)
        self._set()
        self._cast()

    # The scene ---------------------------------------------------------------------------------------

    def _set(self) -> None:
        """The market, other people's boxes, and what will happen."""
        self.vast.page, self.vast.runs_after = self.story.page, self.story.boots
        self.others = [self._other(kind) for kind in self.story.others]
        for price in self.story.prices:
            self.vast.offer(dph_base=price)
        fates = iter(self.story.fates)
        self.vast.fate = lambda offer: next(fates, "")
        self.vast.was_made, self.vast.was_destroyed = self._made, self._destroyed
        self.vast.plan(self.story.faults)
        for trouble in self.story.troubles:
            self.stage.at(START + trouble.minute * 60, lambda trouble=trouble: self._trouble(trouble))  # type: ignore[misc]
        self.stage.watchers.append(self._watch)

    def _other(self, kind: str) -> Box:
        """A box that is not ours to destroy before its label's end, which is far."""
        label = HostLabel.new("studio", self.book, START - 9000, 600)
        text: str | None
        match kind:
            case "none":
                text = None
            case "empty":
                text = ""
            case "nearly 1":
                text = f"{label} "
            case "nearly 2":
                text = f"x{label}"
            case "nearly 3":
                text = str(label).replace(label.lease, label.lease[:-1])
            case "other fleet":
                text = str(HostLabel.new("other", "0123abcd", START, 9e5))
            case "other book":
                text = str(HostLabel.new("studio", "0123abcd", START, 9e5))
            case "other fleet, our book":
                theirs = HostLabel.new("other", self.book, START, 9e5)
                text = str(theirs)
            case _:
                text = "somebody's"
        box = self.vast.made(self.vast.offer(), {"label": text, "disk": 80})
        if kind == "other fleet, our book":
            written = a_record(theirs, state="ready", instance=box.id)
            self.folder.put(record_path(theirs.lease), written.model_dump_json().encode())
            self.room.made[record_path(theirs.lease)] = None
        return box

    def _cast(self) -> None:
        self.managers = []
        for name, pieces, dies in zip("AB", self.story.work, self.story.deaths, strict=False):
            work = list(pieces)

            def manage(actor: Actor, work: list[int] = work) -> None:
                Manager(self, actor, work).run()

            self.managers.append(Actor(self.stage, name, manage, dies))
        self.managers[1].wake += self.story.begins * 60.0
        self.stage.actors += self.managers
        if self.has_reaper:
            self.stage.actors.append(
                Actor(self.stage, "reaper", lambda actor: reap(self, actor), self.story.deaths[2])
            )

    def _trouble(self, trouble: Trouble) -> None:
        boxes = list(self.ours.values())
        box = boxes[trouble.which] if trouble.which < len(boxes) else None
        match trouble.what:
            case "store cannot be read" | "store cannot be written":
                what = "read" if "read" in trouble.what else "write"
                self.room.cannot.add(what)
                ends = self.vast.now + 60.0 * (1 + 10 * trouble.which)
                self.stage.at(ends, lambda: self.room.cannot.discard(what))
            case "offers":
                for price in (0.35, 0.45, 0.5):
                    self.vast.offer(dph_base=price)
            case "no offers":
                self.vast.offers.clear()
            case _ if box is not None:
                self._trouble_box(trouble.what, box)

    def _trouble_box(self, what: str, box: Box) -> None:
        lease = _label(box).lease
        match what:
            case "goes offline":
                box.fate = "offline"
            case "exits":
                box.fate = "exits"
            case "is well again":
                box.fate = ""
                return
            case "vanishes":
                box.gone = self.vast.now if box.gone is None else box.gone
            case "is dearer":
                box.offer["dph_base"] = DEARER
            case "is torn":
                self.folder.put(record_path(lease), b"{")
                self.torn.add(lease)
            case "is removed" if lease in self.torn:  # by a person, who was told to
                self.folder.delete(record_path(lease))
        self.spoiled.add(lease)

    # What is seen while it is played --------------------------------------------------------------------

    def _was_written(self, path: str, content: bytes, by: Actor) -> None:
        if path == "hosts/book":
            return
        record = HostRecord.model_validate_json(content)
        self.missing.pop(record.lease, None)
        if record.missing_since is not None:
            self.missing[record.lease] = record.missing_since
        if by.name != "reaper":
            self.changes.setdefault(record.lease, []).append(self.vast.now)
        if record.is_over:
            self.over.setdefault(record.lease, self.vast.now)
        if record.state == "ended" and self.lock_holds:
            for box in self.vast.billable(record.label):
                if self.vast.lies and (by.name == "reaper" or self._is_hidden(box, record)):
                    self.disowned.add(box.id)
                else:
                    self.wrong.append(
                        f"box {box.id} costs money, and is written down as ended: {record.reason}"
                    )
        if record.state == "ready":
            self.answered.add(record.lease)

    def was_given_back(self, record: HostRecord, began: float) -> None:
        for box in self.vast.billable(record.label):
            was_lied_to = any(lie >= began for lie in self.vast.lies)
            if not (was_lied_to and self._is_hidden(box, record)):
                self.wrong.append(f"box {box.id} costs money, and who gave it back was told that it is gone")

    def _is_hidden(self, box: Box, record: HostRecord) -> bool:
        """Whether who gives a box back has nothing but lists to go by. Otherwise it tells it to go, whatever they say."""
        return box.fate == "invisible" or record.instance != box.id

    def _made(self, box: Box) -> None:
        label = HostLabel.read(box.label or "")
        if label is None or (label.fleet, label.book) != ("studio", self.book):
            self.wrong.append(f"box {box.id} was made with the label {box.label}")
            return
        if not (self.folder.root / record_path(label.lease)).exists():
            self.wrong.append(f"box {box.id} was made, and is not written down")
        if any(_label(one).lease == label.lease for one in self.ours.values()):
            self.wrong.append(f"box {box.id} is the second of its lease")
        self.ours[box.id] = box
        if not self.has_reaper:
            self.stage.at(label.ends, lambda: self._give_itself_back(box))

    def _give_itself_back(self, box: Box) -> None:
        """The script on the box (deployments/hosts/onstart.sh), which acts where something runs it."""
        if box.status(self.vast.now) == "running" and box.destroyed is None:
            box.destroyed = box.gone = self.vast.now

    def _destroyed(self, box: Box) -> None:
        if box.id not in self.ours:
            self.wrong.append(f"box {box.id} with the label {box.label} was destroyed")
            return
        label = _label(box)
        busy = [
            actor.name
            for actor, life in self.slots.holders(f"{label.fleet}-{label.lease}")
            if actor is not self.stage.last and life == actor.life and not actor.is_done
        ]
        is_well = (
            box.fate in ("", "invisible") and label.lease not in self.spoiled and self.vast.now < label.ends
        )
        if busy and is_well and label.lease in self.answered:
            self.wrong.append(f"box {box.id} was destroyed while {busy} worked on it")

    def live(self) -> list[Box]:
        """Boxes of ours that cost money."""
        return [box for box in self.vast.billable() if box.id in self.ours]

    def _watch(self) -> None:
        if self.vast.lies:
            long_since = self.vast.now - MISSING_SECONDS
            self.disowned.update(
                box.id for box in self.live() if self.missing.get(_label(box).lease, long_since) < long_since
            )
        live = len([box for box in self.live() if box.id not in self.disowned])
        allowed = self.story.max_hosts
        if live <= allowed:
            self._excess_since = None
        else:
            self._excess_since = self.vast.now if self._excess_since is None else self._excess_since
            self.longest_excess = max(self.longest_excess, self.vast.now - self._excess_since)
        if live > allowed + (0 if self.lock_holds else 1):
            self.wrong.append(f"{live} boxes are there at once, and max_hosts is {allowed}")
        assert not self.wrong, self.wrong[0]

    # The end ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Plays it, and looks at what is left."""
        try:
            week = START + 7 * 86_400
            self.stage.play(week, lambda: all(actor.is_done for actor in self.managers))
            assert all(actor.is_done for actor in self.managers), "a manager never comes to its end"
            last = 2 * week if self.has_reaper else self._latest() + 1
            self.stage.play(last, lambda: self._is_quiet() or self.vast.now > self._latest())
            self._judge()
        finally:
            self.stage.close()

    def _latest(self) -> float:
        """When all must be over: the last label's end, and what the rules of the reaper add to it."""
        last = max((_label(box).ends for box in self.ours.values()), default=self.vast.now)
        return last + self.delay(last) + (3600.0 + SWEEP_SECONDS if self.has_reaper else 0.0)

    def delay(self, since: float) -> float:
        """Seconds until a sweep has come to what has been due since then: five minutes, each disturbed sweep once more, and
        the time that they took."""
        if not self.has_reaper:
            return 0.0
        after = [swept for swept in self.sweeps if swept.ended >= since]
        disturbed = sum(not swept.is_undisturbed for swept in after)
        took = sum(min(swept.ended, self.vast.now) - swept.began for swept in after)
        return SWEEP_SECONDS * (2 + disturbed) + took

    def _records(self) -> list[HostRecord]:
        hosts = HostBook(self.folder, at_once=1).hosts()
        return [record for record in hosts.records.values() if record.fleet == "studio"]

    def _is_quiet(self) -> bool:
        return not self.live() and all(record.state == "ended" for record in self._records())

    def _judge(self) -> None:
        assert not self.wrong, self.wrong[0]
        longest = self.rules.max_hours * 3600 + self.delay(START)
        assert self.longest_excess <= longest, f"one host too many was there for {self.longest_excess:.0f} s"
        allowed = 0.0
        for box in self.ours.values():
            due = self._due(box)
            gone = box.destroyed if box.destroyed is not None else box.gone
            what = f"box {box.id}, made at {box.made - START:.0f} s"
            assert gone is not None or due == float("inf"), f"{what}, costs money yet"
            assert gone is None or gone <= due, (
                f"{what}, went at {gone - START:.0f} s; {due - START:.0f} s was due"
            )
            price = max(self.rules.max_per_hour, box.offer["dph_base"] + 0.1)
            dearer = price if _label(box).lease in self.spoiled else self.rules.max_per_hour
            allowed += dearer * (min(due, self.vast.now) + LINGERS - box.made) / 3600
        spent = sum(box.spent for box in self.ours.values())
        assert spent <= allowed, f"${spent:.3f} were spent, and ${allowed:.3f} are due"
        if self.has_reaper:
            open_yet = [record for record in self._records() if record.state != "ended"]
            assert not open_yet, f"{open_yet[0].lease} is written down as {open_yet[0].state}"

    def _due(self, box: Box) -> float:
        """When a box must be gone at the latest."""
        label = _label(box)
        if not self.has_reaper:
            reaches = box.status(label.ends) == "running"
            return float(label.ends) if reaches else float("inf")
        due = self._after(box, label.ends)
        if label.lease in self.torn:
            return due
        over = self.over.get(label.lease, float("inf"))
        if over < float("inf"):
            due = min(due, self._after(box, over))
        if label.lease not in self.answered:
            late = self._after(box, label.made + RULES.boot_minutes * 60 + 1)
            due = min(due, late)
        return due

    def _after(self, box: Box, moment: float) -> float:
        """The end of the first undisturbed sweep that begins when it is due and lists have the box.

        A record that changes while it is judged is judged by the next.
        """
        seen, changes = max(moment, box.made + LATE), self.changes.get(_label(box).lease, [])
        sweep = next(
            (
                one
                for one in self.sweeps
                if one.is_undisturbed
                and one.began >= seen
                and not any(one.began <= change <= one.ended for change in changes)
            ),
            None,
        )
        return sweep.ended if sweep else moment + self.delay(moment)


def _label(box: Box) -> HostLabel:
    label = HostLabel.read(box.label or "")
    assert label is not None
    return label


def perform(
    play: Play, kinds: Kinds | None = None, *, lock_holds: bool = True, has_reaper: bool = True
) -> World:
    """Plays a play. Raises AssertionError where money is lost, or somebody's box is."""
    memory = Path("/dev/shm")
    place = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
    with time_scale(SCALE), Market() as vast, place as folder:
        world = World(
            play, vast, Path(folder), kinds or Kinds(), lock_holds=lock_holds, has_reaper=has_reaper
        )
        world.run()
    return world
