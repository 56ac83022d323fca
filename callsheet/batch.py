"""A running batch: its queue, the takes it has, what it spends, and what became of every step.

Plain bookkeeping, changed by one thread: whoever runs the engines asks `next_step`, and tells what came
of it (`add_attempt`, `fail`). Files are written by the caller; this module says which and when.

    batch = Batch("demo", plan, lanes, found=find_takes(plan, store, "demo"))
    step = batch.next_step(lane)
    sidecar = batch.add_attempt(step, attempt)      # None while the step is to be made once more
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from callsheet.errors import BadOutput, Budget, HostFault, Transient, policy_of
from callsheet.fleet import Lane
from callsheet.manifest import LEFT_OUT, ManifestLane
from callsheet.meter import LaneMeter
from callsheet.plan import (
    ASSEMBLY,
    PictureInputs,
    Plan,
    ProgrammeInputs,
    ShotPlan,
    SpeechInputs,
    Step,
    TakeFrame,
)
from callsheet.schedule import Failure, StepQueue
from callsheet.shards import ShardResult
from callsheet.takes import Attempt, Sidecar, attempt_seed, best_of


@dataclass
class Batch:
    """The state of a run of one script.

    Attributes:
        found: takes that were in the store when the run began. One is used when what it was made from
            is there too and is still the same; until that is known it waits.
        retakes: how often a take that fails its checks is made again.
        max_cost: $ that this run may spend; None for no limit.
        leave_out: shots that are not made in this run.
        hosts_cost: tells what each rented host costs this run so far, in $: more than its engines' time.
    """

    name: str
    plan: Plan
    lanes: Iterable[Lane]
    found: Mapping[str, Sidecar] = field(default_factory=dict)
    retakes: int = 2
    max_cost: float | None = None
    leave_out: Collection[str] = ()
    hosts_cost: Callable[[], Mapping[str, float]] = dict

    takes: dict[str, Sidecar] = field(default_factory=dict, init=False)
    made: list[Sidecar] = field(default_factory=list, init=False)
    attempts: dict[str, list[Attempt]] = field(default_factory=dict, init=False)
    meters: dict[str, LaneMeter] = field(default_factory=dict, init=False)
    spent: float = field(default=0.0, init=False)
    lanes_elsewhere: list[ManifestLane] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        for step in self.plan.steps.values():
            self._reuse(step)
        self._promised: dict[str, float] = {}
        self._lost = Counter[str]()
        self.queue = StepQueue(self.plan.steps.values(), self.lanes, done=self.takes)
        for step in self.plan.steps.values():
            self._give_up_rejected(step)
        self._leave_out_shots()

    def next_step(self, lane: Lane | None, within: int | None = None) -> Step | None:
        """What ``lane`` (None: this machine) does next; None where there is nothing at present.

        Args:
            within: steps that take more slots of the host's GPU memory than this are left.
        """
        while step := self.queue.take(lane, within):
            if self._reuse(step):
                self._complete(step)
                continue
            if self._give_up_rejected(step):
                continue
            if lane is not None and not self._affordable(step, lane):
                return None
            return step
        return None

    def is_idle(self, lane: Lane | None) -> bool:
        return self.queue.is_idle(lane)

    def seed_of(self, step: Step) -> int:
        """The seed of the attempt that is made next: for a person who wants another take, one that it had not yet."""
        earlier = self._unwanted(step)
        return attempt_seed(
            step.key, step.requested_seed, len(self.attempts.get(step.key, ())) + len(earlier)
        )

    def attempt_number(self, step: Step) -> int:
        """The number of the attempt that is made next: above those of a take that was found and is out of date."""
        found = self.found.get(step.key)
        first = max((one.n for one in found.attempts), default=-1) + 1 if found else 0
        return first + len(self.attempts.get(step.key, ()))

    def charge(self, step: Step | None, lane: Lane, seconds: float) -> float:
        """Notes engine time that was used, whether or not anything came of it, and what it cost in $.

        None is for what no step asked for: a canary.
        """
        cost = seconds * lane.price_per_second
        if step is not None:
            self._promised.pop(step.key, None)
        self.spent += cost
        if step is not None:
            self.meter(lane).add_step(seconds, step.seconds, step.signature)
        else:
            self.meter(lane).add_canary(seconds)
        return cost

    def meter(self, lane: Lane) -> LaneMeter:
        """Where the time of ``lane`` goes."""
        return self.meters.setdefault(lane.name, LaneMeter())

    def lane_times(self) -> list[ManifestLane]:
        """What the time of each lane went into, in this process and where its shards were made."""
        here = (ManifestLane.of(self.queue.lanes[name], meter) for name, meter in self.meters.items())
        return ManifestLane.joined([*self.lanes_elsewhere, *here])

    def take_over(self, results: Iterable[ShardResult], before: Collection[str]) -> None:
        """Counts what the runs of its shards came to as this run's own; what engines did not make there is given up.

        Args:
            before: keys of the takes that were there when the shards were cut.
        """
        self.made += [sidecar for key, sidecar in self.takes.items() if key not in before]
        told: set[str] = set()
        for result in results:
            self.spent += result.spent
            self.lanes_elsewhere += result.lanes
            told |= set(result.made)
            for key, failure in result.failures.items():
                if key not in self.takes and (step := self.plan.steps.get(key)):
                    self.queue.give_up(step, Failure(failure.step, failure.error, failure.reason))
        # Runs that were killed told nothing: what their takes cost is known.
        self.spent += sum(sidecar.cost for sidecar in self.made if sidecar.key not in told)
        for step in list(self.plan.steps.values()):
            if step.engine != ASSEMBLY and step.key not in self.takes:
                self.queue.give_up(step, Failure.of(step, HostFault("no shard came back with it")))

    def unloaded(self, engine: str) -> None:
        """An engine (`Lane.engine_name`) was told to unload its model: its next step loads one."""
        self.queue.unloaded(engine)
        for name, meter in self.meters.items():
            if self.queue.lanes[name].engine_name == engine:
                meter.forget_model()

    def add_attempt(self, step: Step, attempt: Attempt) -> Sidecar | None:
        """Notes an attempt that was made, checked and stored.

        Returns:
            The sidecar to write, when the take is settled: the attempt passed, or no retake is left and the
            best is kept for review. None when the step is back in the queue, or given up because nothing was made.
        """
        attempts = self.attempts.setdefault(step.key, [])
        attempts.append(attempt)
        if attempt.passed:
            return self._sidecar(step, attempt, needs_review=False)
        worth_it = step.engine != ASSEMBLY and len(attempts) <= self.retakes
        if worth_it and self.queue.requeue(step, avoid=attempt.lane):
            return None
        if all(one.error for one in attempts):
            fault = BadOutput(attempt.error or "no attempt could be used")
            self.queue.give_up(step, Failure.of(step, fault))
            return None
        return self._sidecar(step, best_of(attempts), needs_review=True)

    def sidecar_with(self, step: Step, attempt: Attempt) -> Sidecar:
        """The sidecar of a step whose take this attempt is to be; nothing is noted."""
        earlier = self.attempts.get(step.key, [])
        return self._sidecar(step, attempt, needs_review=False, attempts=[*earlier, attempt])

    def again(self, step: Step) -> bool:
        """What was made of a step is lost before it could be looked at: puts the step back, a few times."""
        self._lost[step.key] += 1
        return self._lost[step.key] <= policy_of(Transient()).retries_here and self.queue.requeue(step)

    def commit(self, step: Step, sidecar: Sidecar, *, ours: bool = True) -> None:
        """The sidecar is written, by us or by another run: the take is there, and what waited for it may go on."""
        if ours:
            self.made.append(sidecar)
        self.takes[step.key] = sidecar
        self._complete(step)

    def fail(self, step: Step, lane: Lane | None, error: BaseException) -> Sidecar | None:
        """A step failed for good on ``lane``. Returns the best of its earlier attempts to be kept, if there is one."""
        self._promised.pop(step.key, None)
        kept = [one for one in self.attempts.get(step.key, ()) if one.error is None]
        if kept and not policy_of(error).stops_engines:
            if lane is not None and self.queue.pass_on(step, lane, error):
                return None  # the retake is made on another lane
            return self._sidecar(step, best_of(kept), needs_review=True)
        self.queue.fail(step, lane, error)
        return None

    @property
    def paid(self) -> float:
        """$ that the run costs: the time of engines, or of rented hosts whether their engines work or not."""
        return max(self.spent, sum(self.hosts_cost().values()))

    @property
    def load_factor(self) -> float:
        """What the run paid for each $ that its takes cost: boot, loading, waiting and canaries are in it."""
        takes = sum(sidecar.cost for sidecar in self.made)
        return self.paid / takes if takes else 1.0

    @property
    def told(self) -> str:
        """How much there is of it, for a person: ``11 shots, 37 takes, of which 12 are there``."""
        return f"{len(self.plan.shots)} shots, {len(self.plan.steps)} takes, of which {len(self.takes)} are there"

    @property
    def progress(self) -> tuple[int, int]:
        """Steps done and steps given up: changes whenever somebody may have something new to do."""
        return len(self.takes), len(self.queue.failures)

    @property
    def failures(self) -> dict[str, Failure]:
        """Shots that are not done, by shot_id, and the step that failed first."""
        failed: dict[str, Failure] = {}
        for shot_id, shot in self.plan.shots.items():
            if failure := next((f for key in shot.keys if (f := self.queue.failures.get(key))), None):
                failed[shot_id] = failure
        return failed

    def is_done(self, shot: ShotPlan) -> bool:
        return shot.clip in self.takes

    @property
    def takes_reused(self) -> int:
        made = {sidecar.key for sidecar in self.made}
        return sum(1 for key in self.plan.steps if key in self.takes and key not in made)

    def sources_of(self, step: Step) -> dict[str, str] | None:
        """The takes that the step is made from, key to sha256; None while one of them is not there."""
        # As planned now: how many clips cover a narration may have changed since the step was queued.
        keys = self.plan.steps[step.key].needs
        if any(key not in self.takes for key in keys):
            return None
        return {key: self.takes[key].take.sha256 for key in keys}

    def _reuse(self, step: Step) -> bool:
        """Uses the take that was found, where it was made from the takes that are there now and nobody is against it."""
        sidecar = self._found(step)
        if sidecar is None or step.key in self.takes:
            return False
        if sidecar.is_decided("retake") or sidecar.is_decided("reject"):
            return False
        self.takes[step.key] = sidecar
        return True

    def _found(self, step: Step) -> Sidecar | None:
        """The take that was found, where it was made from the takes that are there now."""
        sidecar = self.found.get(step.key)
        return sidecar if sidecar is not None and self.sources_of(step) == sidecar.sources else None

    def _give_up_rejected(self, step: Step) -> bool:
        """Gives up a clip that a person rejected: it is not made again, for it would be the same."""
        sidecar = self._found(step)
        if sidecar is None or not sidecar.is_decided("reject"):
            return False
        assert sidecar.review is not None
        reason = sidecar.review.note or "a person does not want it; change its row, or accept it"
        self.queue.give_up(step, Failure(step.name, "Rejected", reason))
        return True

    def _leave_out_shots(self) -> None:
        """Gives up what is needed by none but shots that are left out."""
        kept = [
            key
            for shot_id, shot in self.plan.shots.items()
            if shot_id not in self.leave_out
            for key in shot.keys
        ]
        needed: set[str] = set()
        while kept:
            key = kept.pop()
            if key not in needed:
                needed.add(key)
                kept += self.plan.steps[key].needs
        for shot_id in self.leave_out:
            for key in self.plan.shots[shot_id].keys:
                if key not in needed and key not in self.takes:
                    step = self.plan.steps[key]
                    self.queue.give_up(
                        step, Failure(step.name, LEFT_OUT, "the shot was left out of this run")
                    )

    def _unwanted(self, step: Step) -> list[Attempt]:
        """The attempts of a take that a person wants another one of."""
        sidecar = self._found(step)
        return sidecar.attempts if sidecar is not None and sidecar.is_decided("retake") else []

    def _complete(self, step: Step) -> None:
        if step.kind == "speech":
            for shot in self.plan.shots_with(step.key):
                self._fit(shot, shot.narration_seconds(self.takes[step.key].take))
        self.queue.complete(step.key)

    def _fit(self, shot: ShotPlan, narration: float) -> None:
        """Adds and drops the clips that cover a narration, now that its length is known."""
        new, dropped = self.plan.fit_to_narration(shot.shot.shot_id, narration)
        self.queue.wait_for_also(shot.clip, (step.key for step in new))
        self.queue.stop_waiting_for(shot.clip, dropped)
        for key in dropped:
            self.queue.drop(key)
        for step in new:
            self._reuse(step)
            if step.key not in self.takes:
                self.queue.add(step)
            else:
                self.queue.complete(step.key)

    def _affordable(self, step: Step, lane: Lane) -> bool:
        """Whether the step fits under the cap together with what runs; where it does not, the batch stops."""
        if self.max_cost is None:
            return True
        cost = step.seconds * lane.price_per_second
        spent = self.paid
        if spent + sum(self._promised.values()) + cost <= self.max_cost:
            self._promised[step.key] = cost
            return True
        reason = (
            f"${spent:.4f} spent, and the next step may cost ${cost:.4f}; the cap is ${self.max_cost:.4f}"
        )
        self.queue.requeue(step)
        self.queue.stop(Failure(step.name, Budget.__name__, reason), assembly=False)
        return False

    def _sidecar(
        self, step: Step, chosen: Attempt, *, needs_review: bool, attempts: list[Attempt] | None = None
    ) -> Sidecar:
        return Sidecar(
            key=step.key,
            kind=step.kind,
            engine=step.engine,
            revision=step.revision,
            requested_seed=step.requested_seed,
            inputs=_described(step),
            sources=self.sources_of(step) or {},
            chosen=chosen.n,
            needs_review=needs_review,
            # What a person did not want stays on the record, and may be chosen after all.
            attempts=[*self._unwanted(step), *(self.attempts[step.key] if attempts is None else attempts)],
        )


def _described(step: Step) -> dict[str, Any]:
    """What the take was made from: what its key holds, and names for people."""
    described = step.inputs.material()
    if isinstance(step.inputs, SpeechInputs):
        described["voice"] = step.inputs.voice.voice
    if isinstance(step.inputs, PictureInputs):
        described["workflow_name"] = step.inputs.workflow.name
        if isinstance(step.inputs.image, TakeFrame):
            described["image"] = step.inputs.image.mark
    if isinstance(step.inputs, ProgrammeInputs):
        described["title"] = step.inputs.title
    return described
