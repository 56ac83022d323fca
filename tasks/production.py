"""The batch that a flow run is working on, as its tasks find it.

Tasks get ids as arguments, never the queue or the plan: Prefect hashes and walks every argument. What
the ids stand for is found in the `Production` of the flow run they run in, through a context variable:

    production = Production.current()
    step = production.step(key)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from callsheet.batch import Batch
from callsheet.engines.comfyui_answers import Output
from callsheet.engines.speech import Recording
from callsheet.errors import HostFault, LeaseLost, StoreFault
from callsheet.fleet import Host, Lane
from callsheet.journal import Journal
from callsheet.limits import limits_of
from callsheet.media.audio import read_sound
from callsheet.media.speech import Neighbours, VoiceProfile, profile_of
from callsheet.plan import Step
from callsheet.schedule import Failure
from callsheet.store import Store
from callsheet.takes import Sidecar, attempt_path
from callsheet.timing import scaled
from callsheet.undelivered import Undelivered
from callsheet.voices import Voice
from tasks.batch_lease import BatchLease
from tasks.deliveries import Deliveries, LocalCopies
from tasks.locks import Lease, Locks
from tasks.memory import Client, GpuMemory
from tasks.watching import watcher

if TYPE_CHECKING:
    from tasks.rented import Rental

#: How long a lane that finds nothing to do keeps its slot of the tag: steps follow one another through their checks.
GRACE_SECONDS = 1.0
#: How often committed takes are written down in the journal, in seconds.
JOURNAL_SECONDS = 5.0

_current: ContextVar[Production] = ContextVar("callsheet_production")


@dataclass(frozen=True)
class Made:
    """What an engine made: a file in the scratch folder, or None and the error; and the seed it used.

    Attributes:
        output: where the file still lies on the host; it is fetched beside the lane.
        prompt_id: the prompt that made it.
        windows: how far the graph of an avatar was grown.
        recordings: the pieces of a narration.
    """

    path: Path | None
    seed: int | None
    windows: int = 1
    error: str | None = None
    recordings: tuple[Recording, ...] = ()
    output: Output | None = None
    prompt_id: str = ""


@dataclass
class Turn:
    """What a lane may do while it holds a slot of the tag `gpu`.

    Attributes:
        since: from when its time counts (`time.monotonic`): when it got its slot, or earlier what goes with it.
        seconds: after which it makes room for others that wait.
        wanted: the limits that they may wait for.
        within: slots of the host's GPU memory that the lane's engine has.
        leases: what it needs to go on.
        begun: set when the slot is there.
        running: how many steps the lane has in hand.
        is_over: whether others wait and it makes room.
    """

    since: float | None
    seconds: float
    wanted: tuple[str, ...]
    within: int
    leases: tuple[Lease, ...]
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    is_over: bool = False

    def begin(self) -> None:
        """The slot of the tag is there."""
        self.since = self.since or time.monotonic()
        self.begun.set()

    @property
    def has_ended(self) -> bool:
        return self.since is not None and time.monotonic() >= self.since + self.seconds

    @property
    def is_lost(self) -> bool:
        return any(lease.lost for lease in self.leases)


@dataclass
class Canary:
    """How many lines an engine spoke since its last canary; None before the first. One lane at a time sees to it.

    ``fault`` is why it failed: the other lanes, which waited for it, need not ask again.
    """

    lines: int | None = None
    fault: HostFault | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Production:
    """A batch, the clients of its lanes, its store, and a folder for temporary files."""

    def __init__(
        self,
        batch: Batch,
        store: Store,
        scratch: Path,
        run_id: str,
        shard: Lease | None = None,
        rental: Rental | None = None,
        batch_lease: BatchLease | None = None,
        undelivered_gb: float = 8.0,
    ) -> None:
        """
        Args:
            shard: the lease under which a shard is made: without it nothing is committed.
            rental: has the hosts, where they are rented.
            batch_lease: the lease of the batch in a store that several machines share: without it nothing is published.
            undelivered_gb: so much may wait here for the store before lanes wait.
        """
        self.batch = batch
        self.store = store
        self.scratch = scratch
        self.clients: dict[str, Client] = {}
        #: Checks are bounded by this, and never hold a lane.
        self.bench = asyncio.Semaphore(max(2, os.cpu_count() or 2))
        #: Pieces of narrations that are spoken and not found bad, by step and number: a retry or a retake asks
        #: for the others only.
        self.recordings: dict[str, dict[int, Recording]] = {}
        self.canaries: dict[str, Canary] = {}
        #: The prompt that each step of a picture is known by on its host.
        self.prompts: dict[str, str] = {}
        self.heard: dict[tuple[str, int], Recording] = {}
        #: The lines that passed, by voice, engine and revision.
        self.neighbours: dict[tuple[str, str, str], Neighbours] = {}
        self._profiles: dict[str, VoiceProfile] = {}
        self._run_id = run_id
        self._journal = Journal(store, batch.name, run_id)
        self._changed = asyncio.Condition()
        self._background: set[asyncio.Task[None]] = set()
        #: Those that look at what they brought.
        self._looking: set[asyncio.Task[Any]] = set()
        self._seen = asyncio.Event()
        #: So many attempts may lie here to be fetched and checked; then the lanes wait.
        self._room = asyncio.Semaphore(2 * len(batch.queue.lanes) + 2 * max(2, os.cpu_count() or 2))
        self._undelivered = undelivered_gb * 1e9
        self.deliveries: Deliveries
        self.undelivered = Undelivered(store)
        self.copies = LocalCopies(store, scratch, self._undelivered)
        self._shard = shard
        self._batch_lease = batch_lease
        self.rental = rental
        self.locks: Locks
        self.memory: GpuMemory
        self.turns: dict[str, Turn] = {}
        #: Hosts that have answered.
        self.present: set[str] = set()
        #: Lanes whose slot of the tag could not be had when they last asked, which was said then.
        self.slotless: set[str] = set()
        #: Lanes that are on their way to their place.
        self.coming: set[str] = set()
        self.turn_seconds = batch.plan.fleet.lane_minutes * 60

    @staticmethod
    def current() -> Production:
        """The production of the flow run that is running."""
        return _current.get()

    def step(self, key: str) -> Step:
        return self.batch.plan.steps[key]

    def lane(self, name: str) -> Lane:
        return self.batch.queue.lanes[name]

    async def join(self, host: Host) -> None:
        """Takes in a host that came while the batch is worked on; its lanes are the caller's to begin."""
        plan = self.batch.plan
        fleet, new = plan.fleet.with_hosts((*plan.fleet.hosts, host)), plan.fleet.with_hosts([host])
        await self.locks.add(limits_of(new))
        lanes = list(new.lanes())
        async with self.changing() as batch:
            plan.fleet = fleet
            batch.queue.join(lanes)
        for _ in range(2 * len(lanes)):
            self._room.release()

    async def next_step(self, lane: Lane | None, turn: Turn | None = None) -> Step | None:
        """Waits for something that ``lane`` (None: this machine) can do; None when its turn, or all, is over.

        A turn is over when others wait for what it holds, when the model that comes next needs other memory, or when
        nothing is ready for a moment.
        """
        within = turn.within if turn else None
        patience: float | None = None  # until when nothing may be ready; others' changes do not lengthen it
        async with self._changed:
            while turn is None or not (turn.is_lost or turn.is_over):
                before = self.batch.progress
                step = self.batch.next_step(lane, within)
                if self.batch.progress != before:
                    # Looking for a step may settle others (a take that was found is used after all, the
                    # budget is reached), and somebody else may be waiting for those.
                    self._changed.notify_all()
                if step is not None:
                    if turn is not None:
                        turn.running += 1
                    return step
                if self.batch.is_idle(lane):
                    return None
                if lane is None or turn is None or turn.running:
                    patience = None
                    await self._changed.wait()
                    continue
                patience = patience or time.monotonic() + scaled(GRACE_SECONDS)
                if self.batch.queue.peek(lane) or not await self._change(patience - time.monotonic()):
                    return None
            return None

    async def end_step(self, turn: Turn) -> None:
        """A lane has one step less in hand. Looks whether the turn is over, where it is time."""
        if turn.has_ended and not turn.is_over:
            turn.is_over = bool(await self.locks.waiting(*turn.wanted))
        async with self._changed:
            turn.running -= 1
            self._changed.notify_all()

    async def peek(self, lane: Lane, seconds: float | None = None) -> Step | None:
        """Waits until something is ready that ``lane`` could do; None when there will be nothing, or after ``seconds``."""
        until = None if seconds is None else time.monotonic() + seconds
        async with self._changed:
            while not (step := self.batch.queue.peek(lane)):
                left = None if until is None else until - time.monotonic()
                if self.batch.is_idle(lane) or not await self._change(left):
                    return None
            return step

    async def wait_for_change(self, seconds: float) -> None:
        """Waits until anything happens to the batch, at most ``seconds``."""
        async with self._changed:
            await self._change(seconds)

    async def _change(self, seconds: float | None) -> bool:
        """Waits for a change, at most ``seconds``; whether there was one. The condition is held."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def wants(self, lane: Lane) -> Callable[[], bool]:
        """Whether it is worth waiting for this lane: there is something, or may be, that it could do."""
        return lambda: not self.batch.is_idle(lane)

    @contextlib.contextmanager
    def on_its_way(self, lane: Lane) -> Iterator[None]:
        """The lane is going to ask for its place, until it says that it has it or the block ends."""
        self.coming.add(lane.name)
        try:
            yield
        finally:
            self.coming.discard(lane.name)

    def is_less_urgent(self, lane: Lane) -> bool:
        """Whether another engine of the host, on its way to its place, has steps that are waited for, and this has not."""
        queue = self.batch.queue
        return not queue.is_urgent(lane) and any(
            queue.is_urgent(other)
            for name in self.coming
            if (other := self.lane(name)).host.name == lane.host.name
            and other.engine.name != lane.engine.name
            and not other.engine.resident
        )

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[Batch]:
        """The batch, to be changed without anybody in between; all who wait for work look again afterwards."""
        async with self._changed:
            yield self.batch
            self._changed.notify_all()
        if seen := watcher():
            seen.changed(self.batch)

    def forget(self, key: str) -> None:
        """Lets go of the pieces of a step that is settled."""
        for number in self.recordings.pop(key, {}):
            self.heard.pop((key, number), None)

    def profile(self, voice: Voice) -> VoiceProfile:
        """How the voice speaks in its recording; listened to once."""
        if voice.voice not in self._profiles:
            recording = read_sound(voice.prompt_audio.path)
            self._profiles[voice.voice] = profile_of(recording, voice.transcript)
        return self._profiles[voice.voice]

    def scratch_file(self, step: Step, suffix: str) -> Path:
        """A new name in the scratch folder."""
        return self.scratch / f"{step.key[:16]}-{uuid.uuid4().hex[:8]}{suffix}"

    async def local(self, path: str) -> Path:
        """A file of the store on this machine."""
        # What lies here is not waited for with what is read from afar.
        if (kept := self.copies.kept(path)) is not None:
            return kept
        return await self.deliveries.call(lambda: self.copies.read(path))

    async def take(self, key: str) -> Path:
        """The media of a take that is done, on this machine."""
        return await self.local(self.batch.takes[key].take.file)

    def drop(self, keys: Iterable[str]) -> None:
        """Something was built from these takes: their media is kept here no longer."""
        for key in keys:
            self.copies.drop(self.batch.takes[key].take.file)

    def target_of(self, step: Step, n: int, suffix: str) -> str:
        """Where attempt ``n`` goes in the store."""
        # A run that was thought dead may still write: never over the media of the one that took its place.
        return attempt_path(step.kind, step.key, n, suffix, self._run_id if self._shard else "")

    def check_lease(self) -> None:
        """Raises LeaseLost where this run makes a shard and its lease is not its own any more.

        Asked before a commit, and before an engine is: a process that was stopped may wake up anywhere.
        """
        if self._shard is not None:
            self._shard.check()

    def check_batch_lease(self) -> None:
        """Raises LeaseLost where another run may publish the batch; StoreFault where the store cannot tell."""
        if self._batch_lease is not None:
            self._batch_lease.check()

    async def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Starts work that no lane waits for, once there is room for it; `run` waits for it before it ends."""
        try:
            await self.deliveries.room()
            await self._room.acquire()
        except asyncio.CancelledError:
            work.close()
            raise
        task = asyncio.create_task(work)
        self._background.add(task)
        self._looking.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(self._looked_at)

    def looked_at(self) -> None:
        """What this piece of background work brought is checked, and on its way into the store: there is room for another."""
        if (task := asyncio.current_task()) is not None:
            self._looked_at(task)

    def _looked_at(self, task: asyncio.Task[Any]) -> None:
        if task in self._looking:
            self._looking.discard(task)
            self._seen.set()
            self._room.release()

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Does ``work`` with this as the current production, and writes the journal meanwhile and at the end."""
        token = _current.set(self)
        self.deliveries = Deliveries(self.store, self._undelivered)
        watching = [asyncio.create_task(self._keep_journal()), asyncio.create_task(self._watch_lease())]
        try:
            async with Locks(limits_of(self.batch.plan.fleet), lost=self._lost) as self.locks:
                self.memory = GpuMemory(self.locks, self.clients, self.batch.unloaded)
                await work()
                await self.settled()
        finally:
            for task in (*watching, *self._background):
                task.cancel()
            await asyncio.wait(watching)
            await self._write_journal(self._journal.close)
            self.deliveries.close()
            self.undelivered.close()
            _current.reset(token)

    async def _lost(self) -> None:
        """A lease is lost: lanes that wait for work look whether it is theirs."""
        async with self._changed:
            self._changed.notify_all()

    async def settled(self) -> None:
        """Waits for all that was started in the background."""
        while self._background:
            await asyncio.gather(*self._background)

    async def fetched(self, seconds: float) -> None:
        """Waits at most so long until what was made is fetched and checked; the store is nothing that a host waits for."""
        until = time.monotonic() + seconds
        while self._looking and time.monotonic() < until:
            self._seen.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until - time.monotonic()):
                    await self._seen.wait()

    async def _watch_lease(self) -> None:
        """Where another run has the batch, no engine is asked any more: both would be paid for the same."""
        if self._batch_lease is not None:
            await self._batch_lease.lost.wait()
            async with self.changing() as batch:
                reason = "another run is at work on the batch, for this one was not heard of for a while"
                batch.queue.stop(Failure("batch", LeaseLost.__name__, reason), assembly=True)

    async def _keep_journal(self) -> None:
        while True:
            await asyncio.sleep(JOURNAL_SECONDS)
            await self._write_journal(self._journal.write)

    async def _write_journal(self, write: Callable[[Sequence[Sidecar]], None]) -> None:
        """A journal saves the next run questions, no more: where it cannot be written, the takes are still there."""
        with contextlib.suppress(StoreFault):
            await asyncio.to_thread(write, list(self.batch.made))
