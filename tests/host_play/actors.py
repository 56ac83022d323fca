"""Who acts: managers, who rent, work and give back, and the reaper, who sweeps every five minutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from callsheet.errors import Budget, CallsheetError, HostFault, StoreFault
from callsheet.hosts import HostRecord, RecordedEngine
from callsheet.vastai_answers import Instance, VastError
from tests.fakes.vast import START
from tests.host_play.props import SCALE, Shelf, SteppedClient
from tests.host_play.stage import Actor

if TYPE_CHECKING:
    from tests.host_play.world import World

PORT = 8188
#: How much work a manager says that it has.
HOURS = 1.0
SWEEP_SECONDS = 300.0
#: How long the slot of a manager that was killed is waited for (`tasks.rented.BUSY_SECONDS`).
BUSY_SECONDS = 75.0


class Manager:
    """One process that rents, as `tasks.rented.Rental` does it."""

    def __init__(self, world: World, actor: Actor, work: list[int]) -> None:
        self._world, self._actor, self._work = world, actor, work
        self._owner = f"{actor.name}.{actor.life}"
        self._used: dict[str, HostRecord] = {}
        self._ordered: set[str] = set()
        client, store = SteppedClient(actor, world.vast.url), Shelf(actor, world.room)
        self._book = world.kinds.book(store, at_once=1)  # type: ignore[arg-type]
        self._renter = world.kinds.renter(
            world.kinds.client_of(client),
            self._book,
            world.rules,
            engines=(RecordedEngine(name="comfyui", kind="comfyui", port=PORT, slots=1),),
            owner=self._owner,
            now=lambda: world.vast.now,
            sleep=lambda seconds: actor.sleep(seconds / SCALE),
        )

    def run(self) -> None:
        faults = 0
        while self._work and faults < 3:
            try:
                self._acquire()
                self._actor.sleep(self._work[0] * 60.0)
                self._work.pop(0)
            except CallsheetError:
                faults += 1
                self._give_back(keep=False)
                self._actor.sleep(200.0)
            else:
                self._give_back(keep=self._world.story.keeps)

    def _acquire(self) -> None:
        seen: set[str] = set()
        while found := self._renter.reuse(seen, HOURS):
            seen.add(found.record.lease)
            if self._enter(found.record):
                return
        for _ in range(self._world.rules.attempts):
            record = self._order()
            try:
                if not self._enter(record):
                    raise HostFault("another gives it back")
                self._renter.boot(record, _answers)
            except HostFault:
                self._leave()
            else:
                return
        raise HostFault("no host came up")

    def _order(self) -> HostRecord:
        """Orders; where a cap is reached, hosts that nobody uses and that are near their end make room."""
        with self._world.slots.order(self._actor):
            try:
                record = self._renter.order(HOURS, self._ordered)
            except Budget:
                if not any([self._give_one_back(unfit) for unfit in self._renter.unfit(HOURS)]):
                    raise
                record = self._renter.order(HOURS, self._ordered)
        self._ordered.add(record.lease)
        return record

    def _enter(self, record: HostRecord) -> bool:
        """Is one of those who use a host; False where somebody gives it back just now."""
        name = record.host_name
        while True:
            is_in = self._actor.call(lambda: self._world.slots.take(name, self._actor, 1000))
            if is_in:
                self._used[record.lease] = record
            kept = self._book.read(record.lease)
            if kept is None or kept.is_over:
                self._leave()
                return False
            if is_in:
                return True
            self._actor.sleep(5.0)

    def _leave(self) -> None:
        for record in self._used.values():
            self._world.slots.release(record.host_name, self._actor)
        self._used.clear()

    def _give_back(self, *, keep: bool) -> None:
        used = dict(self._used)
        self._leave()
        try:
            records = self._book.hosts().records
        except StoreFault:
            records = used
        for record in records.values():
            mine = record.state != "ended" and (
                record.lease in used
                or record.owner == self._owner
                or (record.fleet == "studio" and record.state == "ready" and not record.keep_seconds)
            )
            if mine and not (keep and record.state == "ready"):
                self._give_one_back(record)

    def _give_one_back(self, record: HostRecord) -> bool:
        """Gives a host back that nobody else uses. Returns whether it did."""
        name, until = record.host_name, self._world.vast.now + BUSY_SECONDS
        while not self._actor.call(lambda: self._world.slots.take(name, self._actor, 1)):
            if self._world.vast.now > until:
                return False  # another uses it, and gives it back
            self._actor.sleep(5.0)
        began = self._world.vast.now
        try:
            self._renter.give_back(record, "its work is done")
        except CallsheetError:
            is_done = False  # it is left to the reaper
        else:
            is_done = True
            self._world.was_given_back(record, began)
        self._world.slots.release(name, self._actor)
        return is_done


def _answers(record: HostRecord, box: Instance) -> bool:
    """The engine of a box answers at once, where its port can be reached."""
    return PORT in box.ports


@dataclass
class Swept:
    """A sweep that was begun.

    Attributes:
        is_undisturbed: it came to its end, was told the truth, and reports no fault.
    """

    began: float
    ended: float = float("inf")
    is_undisturbed: bool = False


def reap(world: World, actor: Actor) -> None:
    """Sweeps every five minutes, each time as a process that knows nothing of the last."""
    client, store = SteppedClient(actor, world.vast.url), Shelf(actor, world.room)
    while True:
        actor.sleep(SWEEP_SECONDS - (world.vast.now - START) % SWEEP_SECONDS)
        reaper = world.kinds.reaper(
            world.kinds.client_of(client),
            world.kinds.book(store, at_once=1),  # type: ignore[arg-type]
            fleet="studio" if world.story.one_fleet else "",
            now=lambda: world.vast.now,
            sleep=lambda seconds: actor.sleep(seconds / SCALE),
        )
        swept, lies = Swept(world.vast.now), len(world.vast.lies)
        world.sweeps.append(swept)
        try:
            found = reaper.sweep()
        except VastError:
            continue
        finally:
            swept.ended = world.vast.now
        # A torn record keeps its own box until its time is over, and no other.
        faults = [fault for fault in found.faults if "is no record of a host" not in fault]
        swept.is_undisturbed = not (found.left or found.breaker or faults or world.vast.lies[lies:])
