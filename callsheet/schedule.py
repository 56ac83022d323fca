"""The queue of a batch's steps: which step a lane takes next, and what becomes of those that fail.

Pure bookkeeping, without a clock, a thread or a server:

    queue = StepQueue(plan.steps.values(), lanes)
    step = queue.take(lane)          # None where this lane has nothing to do at present
    queue.complete(step.key)         # or queue.fail(step, lane, error)

Policies come from `callsheet.errors`; this module asks them and keeps count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from callsheet.errors import CallsheetError, HostFault, name_of, policy_of, reason_of
from callsheet.fleet import Lane
from callsheet.plan import ASSEMBLY, Step


@dataclass(frozen=True)
class Failure:
    """Why a step was given up: the step that failed first, the class of its error, and the reason."""

    step: str
    error: str
    reason: str


@dataclass
class _Entry:
    step: Step
    waits_for: set[str]
    running_on: str | None = None
    refused_by: set[str] = field(default_factory=set)
    avoids: set[str] = field(default_factory=set)
    last_error: Failure | None = None


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
        self._stopped: Failure | None = None
        self._assembly_stopped = False
        for step in steps:
            self.add(step)

    def add(self, step: Step) -> None:
        """Puts a step in the queue, where it is neither there nor done nor given up already."""
        if step.key in self.done or step.key in self._entries or step.key in self.failures:
            return
        waits_for = {key for key in (*step.needs, *step.after) if key not in self.done}
        self._entries[step.key] = _Entry(step, waits_for)
        for key in waits_for:
            self._users.setdefault(key, set()).add(step.key)
        if failed := next((self.failures[key] for key in waits_for if key in self.failures), None):
            self._give_up(step.key, failed)

    def drop(self, key: str) -> None:
        """Takes a step out that is not needed any more."""
        self._entries.pop(key, None)

    def wait_for_also(self, key: str, needs: Iterable[str]) -> None:
        """Lets the step ``key`` wait for further takes, found necessary after it was planned."""
        entry = self._entries.get(key)
        if entry is None:
            return
        more = {need for need in needs if need not in self.done}
        entry.waits_for |= more
        for need in more:
            self._users.setdefault(need, set()).add(key)

    def stop_waiting_for(self, key: str, dropped: Iterable[str]) -> None:
        """Lets the step ``key`` go without takes that were dropped."""
        if entry := self._entries.get(key):
            entry.waits_for -= set(dropped)

    def take(self, lane: Lane | None) -> Step | None:
        """The step that ``lane`` does next, marked as running; None for the lane that is this machine itself.

        Steps that others wait for go first; then those of the model that has the most work left; then the longest.
        """
        name = lane.name if lane else ASSEMBLY
        if self._is_out(lane):
            return None
        ready = [entry for entry in self._entries.values() if self._is_ready(entry, lane, name)]
        if not ready:
            return None
        work = Counter[str]()
        for entry in ready:
            work[entry.step.signature] += 1
        best = max(
            ready, key=lambda e: (self._is_awaited(e.step.key), work[e.step.signature], e.step.seconds)
        )
        best.running_on = name
        return best.step

    def complete(self, key: str) -> None:
        """A take is there: what waited for it may go on."""
        self._entries.pop(key, None)
        self.done.add(key)
        for user in self._users.pop(key, set()):
            if entry := self._entries.get(user):
                entry.waits_for.discard(key)

    def requeue(self, step: Step, avoid: str = "") -> bool:
        """Puts a running step back for a retake, on another lane than ``avoid`` where there is one.

        Returns:
            Whether a lane is left that can take it; where none is, the step is still marked as running.
        """
        entry = self._entries.get(step.key)
        if entry is None or self._stopped or not self._lanes_for(step, entry.refused_by):
            return False
        entry.running_on = None
        entry.avoids.add(avoid)
        return True

    def fail(self, step: Step, lane: Lane | None, error: BaseException) -> None:
        """A running step failed on ``lane`` for good: another lane takes it, or it is given up, as the policy says."""
        policy = policy_of(error)
        failure = Failure(step.name, name_of(error), reason_of(error))
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
        if policy.quarantine:
            self.quarantine(lane.host.name, reason_of(error))
        elif not self._lanes_for(step, entry.refused_by):
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
        if policy.quarantine:
            self.quarantine(lane.host.name, reason_of(error))
        if not policy.other_lanes or self._stopped or not self._lanes_for(step, entry.refused_by):
            return False
        entry.running_on = None
        return True

    def quarantine(self, host: str, reason: str) -> None:
        """Gives ``host`` no more steps, and gives up those that no other host can do."""
        self.quarantined.setdefault(host, reason)
        for key, entry in list(self._entries.items()):
            if entry.step.engine == ASSEMBLY or entry.running_on is not None:
                continue
            if not self._lanes_for(entry.step, entry.refused_by):
                reasons = "; ".join(f"{name}: {why}" for name, why in self.quarantined.items())
                fault = HostFault(f"no host is left for {entry.step.engine} ({reasons})")
                self._give_up(key, entry.last_error or Failure(entry.step.name, fault.name, str(fault)))

    def stop(self, failure: Failure, *, assembly: bool) -> None:
        """Asks no engine any more, and with ``assembly`` builds nothing any more; what runs is awaited."""
        self._stopped = self._stopped or failure
        self._assembly_stopped |= assembly
        for key, entry in list(self._entries.items()):
            if entry.running_on is None and (assembly or entry.step.engine != ASSEMBLY):
                self._give_up(key, failure)

    def give_up(self, step: Step, error: CallsheetError) -> None:
        """Gives a step up, and with it all that needs it."""
        self._give_up(step.key, Failure(step.name, error.name, str(error)))

    @property
    def is_empty(self) -> bool:
        return not self._entries

    def is_idle(self, lane: Lane | None) -> bool:
        """Whether there is nothing left that ``lane`` could ever do, so that it may be given back."""
        if self._is_out(lane):
            return True
        return not any(
            entry.step.engine == ASSEMBLY if lane is None else entry.step.runs_on(lane)
            for entry in self._entries.values()
        )

    def _is_out(self, lane: Lane | None) -> bool:
        """Whether this lane (None: this machine) gets nothing any more."""
        if lane is None:
            return self._assembly_stopped
        return self._stopped is not None or lane.host.name in self.quarantined

    def _is_ready(self, entry: _Entry, lane: Lane | None, name: str) -> bool:
        if entry.running_on is not None or entry.waits_for or name in entry.refused_by:
            return False
        if lane is None:
            return entry.step.engine == ASSEMBLY
        if not entry.step.runs_on(lane):
            return False
        return name not in entry.avoids or not self._lanes_for(entry.step, entry.refused_by | entry.avoids)

    def _is_awaited(self, key: str) -> bool:
        """Whether an engine's step waits for this one (that the clip does says nothing)."""
        return any(
            user in self._entries and self._entries[user].step.engine != ASSEMBLY
            for user in self._users.get(key, ())
        )

    def _lanes_for(self, step: Step, but_for: Iterable[str] = ()) -> list[Lane]:
        return [
            lane
            for lane in self.lanes.values()
            if step.runs_on(lane) and lane.host.name not in self.quarantined and lane.name not in but_for
        ]

    def _give_up(self, key: str, failure: Failure) -> None:
        """Gives up the step and all that waits for it, directly or not."""
        waiting = [key]
        while waiting:
            key = waiting.pop()
            if self._entries.pop(key, None) is not None:
                self.failures[key] = failure
                waiting += self._users.pop(key, set())
