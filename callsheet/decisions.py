"""What people decided about takes, as the report saves it: a CSV, and what it does to the takes' sidecars.

    decisions = read_decisions(Path("demo-decisions.csv"))
    decided = decide(decisions, plan, store, when="2026-11-21T22:00:00+00:00")
    decided.changed            # the sidecars that are written anew
    decided.notes              # rows that say nothing any more, and why

``accept`` makes an attempt the take and takes it off the list of those to review; ``retake`` has the take made again, under
another seed and the next number; ``reject`` leaves the shot out, and with it its programme, until its row is changed.
What is decided stands in the sidecar (`Sidecar.review`), so every later run knows it, on whatever machine.
A row is about one attempt. Where another has become the take since, the row is done with: the same file may be given twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from callsheet.errors import StoreFault
from callsheet.inputs import Mistake, Mistakes, quoted
from callsheet.plan import ASSEMBLY, Plan, Step
from callsheet.store import Store
from callsheet.table import read_table
from callsheet.takes import Review, Sidecar, sidecar_path

#: How often a sidecar is written anew where others write it at the same time.
_ATTEMPTS = 5


class Decision(BaseModel):
    """One row: what was decided about a step of a shot."""

    model_config = ConfigDict(frozen=True)

    shot_id: str = Field(description="the shot's id")
    step: str = Field(default="", description="the step, such as speech, image or clip; for people")
    take: str = Field(pattern="^[0-9a-f]{64}$", description="the key of the take, 64 hexadecimal digits")
    attempt: int = Field(ge=0, description="the number of the attempt that was looked at, 0 and up")
    decision: Literal["accept", "retake", "reject"] = Field(description="accept, retake or reject")
    note: str = Field(default="", description="free text")

    _where: str = PrivateAttr(default="")

    def __str__(self) -> str:
        return f"{self._where}: {self.decision} of {self.shot_id} {self.step}".rstrip()


@dataclass
class Decided:
    """What came of decisions."""

    changed: list[Sidecar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_decisions(path: Path) -> list[Decision]:
    """Reads a CSV of decisions.

    Raises:
        Mistakes: all that is wrong in it, with row and column.
    """
    table = read_table(
        path, columns=tuple(Decision.model_fields), required=("shot_id", "take", "attempt", "decision")
    )
    mistakes, decisions = list(table.mistakes), list[Decision]()
    rows: dict[str, int] = {}
    for row, cells in table.rows:
        try:
            decision = Decision.model_validate(cells)
        except ValidationError as error:
            mistakes += _mistakes(error, table.name, row, cells)
            continue
        decision._where = f"{table.name} row {row}"
        if decision.take in rows:
            expected = f"one decision for a take (row {rows[decision.take]} has this one)"
            mistakes.append(Mistake(table.name, quoted(decision.take, 16), expected, row, "take"))
        rows.setdefault(decision.take, row)
        decisions.append(decision)
    if mistakes:
        raise Mistakes(mistakes)
    return decisions


def _mistakes(error: ValidationError, file: str, row: int, cells: dict[str, str]) -> Iterable[Mistake]:
    for detail in error.errors():
        column = str(detail["loc"][0])
        found = quoted(cells[column], 40) if column in cells else "nothing"
        yield Mistake(file, found, Decision.model_fields[column].description or "", row, column)


def decide(decisions: Iterable[Decision], plan: Plan, store: Store, when: str) -> Decided:
    """Writes decisions into the sidecars of the plan's takes.

    Args:
        when: the time, as sidecars give it.

    Raises:
        StoreFault: the store cannot be read or written; what was written stands.
    """
    decided = Decided()
    rows = [*decisions, *_accepted_clips(decisions, plan)]
    with ThreadPoolExecutor(store.at_once) as pool:
        for outcome in pool.map(lambda row: _decide(row, plan.steps.get(row.take), store, when), rows):
            if isinstance(outcome, Sidecar):
                decided.changed.append(outcome)
            elif outcome:
                decided.notes.append(outcome)
    return decided


def _accepted_clips(decisions: Iterable[Decision], plan: Plan) -> list[Decision]:
    """Who accepts a shot's takes takes back that the shot was rejected, which is said of its clip."""
    told = {decision.take for decision in decisions}
    clips: dict[str, Decision] = {}
    for decision in decisions:
        shot = plan.shots.get(decision.shot_id)
        if shot is not None and decision.decision == "accept" and shot.clip not in told:
            clips[shot.clip] = Decision(
                shot_id=decision.shot_id, step="clip", take=shot.clip, attempt=0, decision="accept"
            )
    return list(clips.values())


def _decide(decision: Decision, step: Step | None, store: Store, when: str) -> Sidecar | str:
    """The sidecar as it is now, or why nothing is done; empty where nothing is to be said."""
    if step is None:
        return f"{decision}: is of a take that the script does not need any more"
    path = sidecar_path(step.kind, step.key)
    for _ in range(_ATTEMPTS):
        version = store.version(path)
        try:
            sidecar = Sidecar.model_validate_json(store.get(path))
        except (FileNotFoundError, ValidationError):
            return f"{decision}: its take is not there; it is made anew" if decision._where else ""
        outcome = _reviewed(decision, step, sidecar, when)
        if not isinstance(outcome, Sidecar):
            return outcome
        if store.put_if(path, outcome.model_dump_json(indent=1).encode(), version):
            return outcome
    raise StoreFault(f"store {store}: {path} is changed by others all the time", may_pass=True)


def _reviewed(decision: Decision, step: Step, sidecar: Sidecar, when: str) -> Sidecar | str:
    """The sidecar with the decision in it; a text where it changes nothing."""
    if not decision._where:  # a clip whose takes are accepted
        was_rejected = sidecar.review is not None and sidecar.review.decision == "reject"
        return sidecar.model_copy(update={"review": None}) if was_rejected else ""
    if (seen := next((one for one in sidecar.attempts if one.n == decision.attempt), None)) is None:
        return f"{decision}: found no attempt {decision.attempt} of it"
    if decision.decision == "retake":
        if step.engine == ASSEMBLY:
            return f"{decision}: is built from other takes; retake one of those"
        if sidecar.chosen != decision.attempt:
            return f"{decision}: was made again since"
    elif decision.decision == "accept" and not seen.file:
        return f"{decision}: attempt {decision.attempt} has no media"
    elif decision.decision == "reject" and step.kind != "clip":
        return f"{decision}: is of a {step.kind}; expected that of the shot's clip"
    review = Review(decision=decision.decision, attempt=decision.attempt, note=decision.note, at=when)
    if sidecar.review is not None and sidecar.review.model_copy(update={"at": when}) == review:
        return ""
    if decision.decision != "accept":
        return sidecar.model_copy(update={"review": review})
    return sidecar.model_copy(update={"review": review, "chosen": decision.attempt, "needs_review": False})
