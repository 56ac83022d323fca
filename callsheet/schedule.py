"""The queue of a batch's steps: which step a lane takes next, and what becomes of those that fail.

Pure bookkeeping, without a clock, a thread or a server:

    queue = StepQueue(plan.steps.values(), lanes)
    step = queue.take(lane)          # None where this lane has nothing to do at present
    queue.complete(step.key)         # or queue.fail(step, lane, error)

Ready steps lie in piles, one for each model and each set of lanes that may take them, so a lane looks at a
handful of piles however long the script is. Policies come from `callsheet.errors`; this module asks them and
keeps count.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from callsheet.errors import HostFault, HostLacks, Refused, name_of, policy_of, reason_of
from callsheet.fleet import SPEECH, Lane
from callsheet.limits import vram_slots
from callsheet.plan import ASSEMBLY, Demand, Step


@dataclass(frozen=True)
class Failure:
    """Why a step was given up: the step that failed first, the class of its error, and the reason."""

    step: str
    error: str
    reason: str

    @classmethod
    def of(cls, step: Step, error: BaseException) -> Failure:
        return cls(step.name, name_of(error), reason_of(error))


@dataclass
class _Entry:
    """A step that is not done. ``order`` is its place in the script; ``pile`` where it lies while it is ready."""

    step: Step
    waits_for: set[str]
    order: int
    running_on: str | None = None
    refused_by: set[str] = field(default_factory=set)
    avoids: set[str] = field(default_factory=set)
    last_error: Failure | None = None
    is_refused: bool = False
    pile: _Pile | None = None
    pushed: tuple[bool, float, int] | None = None

    @property
    def is_ready(self) -> bool:
        return self.running_on is None and not self.waits_for


@dataclass
class _Pile:
    """Ready steps of one model that the same lanes may take, the best on top.

    The heap is put right when it is looked at: what left the pile, or was pushed again, stays in it until then.
    """

    demand: Demand
    refused_by: frozenset[str]
    avoids: frozenset[str]
    seconds: float = 0.0
    entries: dict[str, _Entry] = field(default_factory=dict)
    heap: list[tuple[bool, float, int, str]] = field(default_factory=list)

    def push(self, entry: _Entry, *, awaited: bool) -> None:
        key = entry.step.key
        if key not in self.entries:
            self.entries[key] = entry
            self.seconds += entry.step.seconds
        entry.pile, entry.pushed = self, (not awaited, -entry.step.seconds, entry.order)
        heapq.heappush(self.heap, (*entry.pushed, key))

    def remove(self, entry: _Entry) -> None:
        del self.entries[entry.step.key]
        self.seconds -= entry.step.seconds
        entry.pile = entry.pushed = None

    @property
    def top(self) -> _Entry | None:
        while self.heap:
            *pushed, key = self.heap[0]
            entry = self.entries.get(key)
            if entry is not None and entry.pushed == tuple(pushed):
                return entry
            heapq.heappop(self.heap)
        return None


class StepQueue:
    """The steps of a batch that are not done yet."""

    def __init__(self, steps: Iterable[Step], lanes: Iterable[Lane], done: Iterable[str] = ()) -> None:
        """``done`` are the keys of takes that are there already."""
        self.lanes = {lane.name: lane for lane in lanes}
        self.done: set[str] = set(done)
        self.failures: dict[str, Failure] = {}
        self.quarantined: dict[str, str] = {}
        self._entries: dict[str, _Entry] = {}
        self._users: dict[str, set[str]] = {}
        self._added = 0
        #: By model: the piles of its ready steps, by who may take them.
        self._piles: defaultdict[str, dict[tuple[Demand, frozenset[str], frozenset[str]], _Pile]] = (
            defaultdict(dict)
        )
        #: How many steps are left of each demand, ready or not.
        self._left = Counter[Demand]()
        #: The model that each engine's process ran last, and the lanes that found nothing when they last asked.
        self._loaded: dict[str, str] = {}
        self._hungry: dict[str, Lane] = {}
        self._stopped: Failure | None = None
        self._assembly_stopped = False
        #: Lanes of hosts that are on their way: what nobody here can do waits for them.
        self._expected: tuple[Lane, ...] = ()
        #: Asked when a host is left out: the lanes of the one that comes in its place.
        self.replacement: Callable[[str], Iterable[Lane]] = lambda host: ()
        for step in steps:
            self.add(step)

    def add(self, step: Step) -> None:
        """Puts a step in the queue, where it is neither there nor done nor given up already."""
        if step.key in self.done or step.key in self._entries or step.key in self.failures:
            return
        waits_for = {key for key in (*step.needs, *step.after) if key not in self.done}
        entry = _Entry(step, waits_for, self._added)
        self._added += 1
        self._entries[step.key] = entry
        self._left[step.demand] += 1
        self._await(step.key, waits_for)
        self._place(entry)
        if failed := next((self.failures[key] for key in waits_for if key in self.failures), None):
            self._give_up(step.key, failed)
        elif step.engine != ASSEMBLY and self._stopped is not None:
            self._give_up(step.key, self._stopped)
        elif step.engine != ASSEMBLY and self.lanes and self._is_hopeless(entry):
            self._give_up(step.key, self._no_host(step))

    def drop(self, key: str) -> None:
        """Takes a step out that is not needed any more."""
        self._remove(key)

    def wait_for_also(self, key: str, needs: Iterable[str]) -> None:
        """Lets the step ``key`` wait for further takes, found necessary after it was planned."""
        entry = self._entries.get(key)
        if entry is None:
            return
        more = {need for need in needs if need not in self.done}
        entry.waits_for |= more
        self._await(key, more)
        self._place(entry)

    def stop_waiting_for(self, key: str, dropped: Iterable[str]) -> None:
        """Lets the step ``key`` go without takes that were dropped."""
        if entry := self._entries.get(key):
            entry.waits_for -= set(dropped)
            self._place(entry)

    def take(self, lane: Lane | None, within: int | None = None) -> Step | None:
        """The step that ``lane`` does next, marked as running; None for the lane that is this machine itself.

        A step that a lane without work waits for goes first; then those of the model that the engine has loaded;
        then those of the model that others wait for; then of the one with the most work left for each engine that
        has it. Among the steps of a model, those that others wait for go first, then the longest.

        Args:
            within: steps that take more slots of the host's GPU memory than this are left.
        """
        entry = self._best(lane, within)
        name = lane.name if lane else ASSEMBLY
        if entry is None:
            if lane is not None:
                self._hungry[name] = lane
            return None
        self._hungry.pop(name, None)
        entry.running_on = name
        self._place(entry)
        if lane is not None:
            self._loaded[lane.engine_name] = entry.step.signature
        return entry.step

    def peek(self, lane: Lane) -> Step | None:
        """The step that ``lane`` would take; it stays where it is."""
        entry = self._best(lane, None)
        return entry.step if entry else None

    def complete(self, key: str) -> None:
        """A take is there: what waited for it may go on."""
        self._remove(key)
        self.done.add(key)
        for user in self._users.pop(key, set()):
            if entry := self._entries.get(user):
                entry.waits_for.discard(key)
                self._place(entry)

    def requeue(self, step: Step, avoid: str = "") -> bool:
        """Puts a running step back for a retake, on another lane than ``avoid`` where there is one.

        Returns:
            Whether a lane is left that can take it; where none is, the step is still marked as running.
        """
        entry = self._entries.get(step.key)
        if entry is None or self._stopped or self._is_hopeless(entry):
            return False
        entry.running_on = None
        if avoid:
            entry.avoids.add(avoid)
        self._place(entry)
        return True

    def fail(self, step: Step, lane: Lane | None, error: BaseException) -> None:
        """A running step failed on ``lane`` for good: another lane takes it, or it is given up, as the policy says."""
        policy = policy_of(error)
        failure = Failure.of(step, error)
        if policy.stops_engines:
            self.stop(failure, assembly=policy.stops_assembly)
            self._give_up(step.key, failure)
            return
        entry = self._entries.get(step.key)
        if entry is None:
            return
        entry.running_on, entry.last_error = None, failure
        if lane is None or self._stopped is not None or not policy.other_lanes:
            self._give_up(step.key, failure)
            return
        entry.refused_by.add(lane.name)
        entry.is_refused |= isinstance(error, HostLacks | Refused)
        self._place(entry)
        if policy.quarantine:
            self.quarantine(lane.host.name, reason_of(error))
        elif self._is_hopeless(entry):
            self._give_up(step.key, failure)

    def pass_on(self, step: Step, lane: Lane, error: BaseException) -> bool:
        """A running step failed on ``lane``: puts it back for another one, where the policy says so.

        Returns:
            Whether there is another; where there is none, the step is still marked as running.
        """
        policy, entry = policy_of(error), self._entries.get(step.key)
        if entry is None:
            return False
        entry.refused_by.add(lane.name)
        entry.is_refused |= isinstance(error, HostLacks | Refused)
        if policy.quarantine:
            self.quarantine(lane.host.name, reason_of(error))
        if not policy.other_lanes or self._stopped or self._is_hopeless(entry):
            return False
        entry.running_on = None
        self._place(entry)
        return True

    def quarantine(self, host: str, reason: str) -> None:
        """Gives ``host`` no more steps, and gives up those that no other host can do, nor one that comes in its place."""
        if host not in self.quarantined:
            self.quarantined[host] = reason
            self._expected += tuple(self.replacement(host))
        self._give_up_hopeless()

    def join(self, lanes: Iterable[Lane]) -> None:
        """Lanes of a host that is here now."""
        self.lanes |= {lane.name: lane for lane in lanes}

    def expect(self, lanes: Iterable[Lane]) -> None:
        """The lanes of hosts that are on their way now; gives up what neither they nor others can do."""
        self._expected = tuple(lanes)
        self._give_up_hopeless()

    def expects_work(self) -> bool:
        """Whether something is left that lanes on their way could do."""
        return any(not self.is_idle(lane) for lane in self._expected)

    def _give_up_hopeless(self) -> None:
        for key, entry in list(self._entries.items()):
            if entry.step.engine == ASSEMBLY or entry.running_on is not None:
                continue
            if self._is_hopeless(entry):
                self._give_up(key, entry.last_error or self._no_host(entry.step))

    def stop(self, failure: Failure, *, assembly: bool) -> None:
        """Asks no engine any more, and with ``assembly`` builds nothing any more; what runs is awaited."""
        self._stopped = self._stopped or failure
        self._assembly_stopped |= assembly
        for key, entry in list(self._entries.items()):
            if entry.running_on is None and (assembly or entry.step.engine != ASSEMBLY):
                self._give_up(key, failure)

    def give_up(self, step: Step, failure: Failure) -> None:
        """Gives a step up, and with it all that needs it."""
        self._give_up(step.key, failure)

    @property
    def is_stopped(self) -> bool:
        """Whether no engine is asked any more."""
        return self._stopped is not None

    @property
    def is_empty(self) -> bool:
        return not self._entries

    def is_idle(self, lane: Lane | None) -> bool:
        """Whether there is nothing left that ``lane`` could ever do, so that it may be given back.

        While a narration is to be spoken, clips that cover it may be found necessary yet.
        """
        if self._is_out(lane):
            return True
        grows = lane is not None and SPEECH not in lane.engine.facts.makes
        return not any(_suits(demand, lane) or (grows and demand.is_speech) for demand in self._left)

    def unloaded(self, engine: str) -> None:
        """The engine (`Lane.engine_name`) has no model in its memory any more."""
        self._loaded.pop(engine, None)

    def is_urgent(self, lane: Lane) -> bool:
        """Whether what ``lane`` would take is waited for by another engine."""
        entry = self._best(lane, None)
        return entry is not None and self._is_awaited(entry.step.key)

    def _is_out(self, lane: Lane | None) -> bool:
        """Whether this lane (None: this machine) gets nothing any more."""
        if lane is None:
            return self._assembly_stopped
        return self._stopped is not None or lane.host.name in self.quarantined

    def _best(self, lane: Lane | None, within: int | None) -> _Entry | None:
        """The ready step that ``lane`` should do next."""
        if self._is_out(lane):
            return None
        loaded = self._loaded.get(lane.engine_name) if lane else None
        engines = Counter(
            model for process, model in self._loaded.items() if lane and process != lane.engine_name
        )
        best: tuple[tuple[bool, bool, bool, float, bool, float, int], _Entry] | None = None
        for signature, piles in self._piles.items():
            open_to_it = [pile for pile in piles.values() if self._may_take(lane, pile, within)]
            seconds = sum(pile.seconds for pile in open_to_it) / (1 + engines[signature])
            for entry in filter(None, (pile.top for pile in open_to_it)):
                awaited = self._is_awaited(entry.step.key)
                starves = awaited and signature != loaded and self._is_hungered_for(entry.step.key, lane)
                rank = (
                    starves,
                    signature == loaded,
                    awaited,
                    seconds,
                    awaited,
                    entry.step.seconds,
                    -entry.order,
                )
                if best is None or rank > best[0]:
                    best = rank, entry
        return best[1] if best else None

    def _may_take(self, lane: Lane | None, pile: _Pile, within: int | None) -> bool:
        if not pile.entries or not _suits(pile.demand, lane):
            return False
        if lane is None:
            return True
        if lane.name in pile.refused_by or (
            within is not None and vram_slots(lane, pile.demand.vram_gb) > within
        ):
            return False
        return lane.name not in pile.avoids or not self._lanes_for(pile.demand, pile.refused_by | pile.avoids)

    def _place(self, entry: _Entry) -> None:
        """Brings the step to the pile that it belongs to, or to none where it is not ready."""
        if self._entries.get(entry.step.key) is not entry:
            return
        step, pile = entry.step, None
        if entry.is_ready:
            sort = (step.demand, frozenset(entry.refused_by), frozenset(entry.avoids))
            pile = self._piles[step.signature].get(sort)
            if pile is None:
                pile = self._piles[step.signature][sort] = _Pile(*sort)
        if entry.pile is not pile and entry.pile is not None:
            entry.pile.remove(entry)
        if pile is not None:
            pile.push(entry, awaited=self._is_awaited(step.key))

    def _await(self, key: str, needs: Iterable[str]) -> None:
        """Notes that the step ``key`` waits for ``needs``, which may bring those further up."""
        for need in needs:
            self._users.setdefault(need, set()).add(key)
            if needed := self._entries.get(need):
                self._place(needed)

    def _users_of(self, key: str) -> Iterator[Step]:
        """The steps of engines that wait for this one (that the clip does says nothing)."""
        for user in self._users.get(key, ()):
            if (entry := self._entries.get(user)) and entry.step.engine != ASSEMBLY:
                yield entry.step

    def _is_awaited(self, key: str) -> bool:
        return any(True for _ in self._users_of(key))

    def _is_hungered_for(self, key: str, lane: Lane | None) -> bool:
        """Whether a lane other than ``lane`` has nothing to do and could do what waits for this step."""
        return any(
            other is not lane and not self._is_out(other) and user.runs_on(other)
            for user in self._users_of(key)
            for other in self._hungry.values()
        )

    def _lanes_for(self, demand: Demand, but_for: Iterable[str] = ()) -> list[Lane]:
        return [
            lane
            for lane in self.lanes.values()
            if demand.suits(lane) and lane.host.name not in self.quarantined and lane.name not in but_for
        ]

    def _is_hopeless(self, entry: _Entry) -> bool:
        """Whether no lane can take it, nor one that is on its way: those are like the ones that refused it."""
        demand = entry.step.demand
        is_expected = not entry.is_refused and any(map(demand.suits, self._expected))
        return not is_expected and not self._lanes_for(demand, entry.refused_by)

    def _remove(self, key: str) -> _Entry | None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        if entry.pile is not None:
            entry.pile.remove(entry)
        self._left[entry.step.demand] -= 1
        if not self._left[entry.step.demand]:
            del self._left[entry.step.demand]
        return entry

    def _no_host(self, step: Step) -> Failure:
        """Why nobody can do a step."""
        reasons = "; ".join(f"{name}: {why}" for name, why in self.quarantined.items())
        needs = f"no host has {step.vram_gb:g} GB for {step.signature}"
        return Failure.of(step, HostFault(f"no host is left for {step.engine} ({reasons or needs})"))

    def _give_up(self, key: str, failure: Failure) -> None:
        """Gives up the step and all that waits for it, directly or not."""
        waiting = [key]
        while waiting:
            key = waiting.pop()
            if self._remove(key) is not None:
                self.failures[key] = failure
                waiting += self._users.pop(key, set())


def _suits(demand: Demand, lane: Lane | None) -> bool:
    """Whether such steps are for ``lane``; None is this machine."""
    return demand.engine == ASSEMBLY if lane is None else demand.suits(lane)
