"""What people decide about takes, from the CSV to the sidecars and the batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callsheet.batch import Batch
from callsheet.decisions import Decided, decide, read_decisions
from callsheet.inputs import Mistakes
from callsheet.plan import Plan
from callsheet.resume import find_takes
from callsheet.store import LocalFolder
from callsheet.takes import Attempt, Sidecar, sidecar_path
from tests.callsheet.published import keep_takes, plan_of
from tests.conftest import write_csv

ROWS = (
    {"shot_id": "p", "visual": "flux_dev", "prompt": "a lamp", "seed": 5, "title": "T"},
    {"shot_id": "q", "visual": "flux_dev", "prompt": "a door", "title": "T"},
)
WHEN = "2026-11-21T22:00:00+00:00"


class Desk:
    """A batch that is done, and somebody who looks at it."""

    def __init__(self, folder: Path, script: Path) -> None:
        self.folder, self.script = folder, script
        self.store = LocalFolder(folder / "out")
        keep_takes(self.plan, self.store)

    @property
    def plan(self) -> Plan:
        return plan_of(self.script)

    def key(self, shot_id: str, kind: str) -> str:
        plan = self.plan
        return next(key for key in plan.shots[shot_id].keys if plan.steps[key].kind == kind)

    def row(self, shot_id: str, kind: str, decision: str, attempt: int = 0, **more: str) -> dict[str, Any]:
        return {
            "shot_id": shot_id,
            "step": kind,
            "take": self.key(shot_id, kind),
            "attempt": attempt,
            "decision": decision,
            **more,
        }

    def decide(self, *rows: dict[str, Any]) -> Decided:
        path = write_csv(self.folder / "d.csv", rows, encoding="utf-8-sig")
        return decide(read_decisions(path), self.plan, self.store, WHEN)

    def sidecar(self, shot_id: str, kind: Any) -> Sidecar:
        return Sidecar.model_validate_json(self.store.get(sidecar_path(kind, self.key(shot_id, kind))))

    def batch(self) -> Batch:
        plan = self.plan
        return Batch("demo", plan, list(plan.fleet.lanes()), found=find_takes(plan, self.store, "none"))


@pytest.fixture
def desk(tmp_path: Path, write_script: Callable[..., Path]) -> Desk:
    return Desk(tmp_path, write_script(*ROWS))


def test_an_accepted_attempt_is_the_take_and_needs_no_review(desk: Desk) -> None:
    sidecar = desk.sidecar("p", "image")
    other = Attempt(n=1, file="takes/image/other.png", sha256="x", bytes=3)
    bad = sidecar.model_copy(update={"needs_review": True, "attempts": [sidecar.take, other]})
    desk.store.put(sidecar_path("image", sidecar.key), bad.model_dump_json().encode())
    decided = desk.decide(desk.row("p", "image", "accept", attempt=1, note="better light"))
    after = desk.sidecar("p", "image")
    assert decided.changed == [after]
    assert (after.chosen, after.needs_review) == (1, False)
    assert after.review is not None
    assert after.review.note == "better light"
    assert desk.decide(desk.row("p", "image", "accept", attempt=1, note="better light")) == Decided()


def test_a_take_that_is_not_wanted_is_made_again_with_another_seed(desk: Desk) -> None:
    assert desk.batch().queue.is_empty
    desk.decide(desk.row("p", "image", "retake"))
    batch = desk.batch()
    lane = next(lane for lane in batch.queue.lanes.values() if lane.engine.kind == "comfyui")
    step = batch.next_step(lane)
    assert step is not None
    assert step.key == desk.key("p", "image")
    assert batch.next_step(lane) is None
    assert (batch.attempt_number(step), batch.seed_of(step) != 5) == (1, True)
    attempt = Attempt(n=1, file="takes/image/again.png", sha256="y", bytes=3)
    sidecar = batch.add_attempt(step, attempt)
    assert sidecar is not None
    assert ([one.n for one in sidecar.attempts], sidecar.chosen, sidecar.review) == ([0, 1], 1, None)
    desk.store.put(sidecar_path("image", step.key), sidecar.model_dump_json().encode())
    told = desk.decide(desk.row("p", "image", "retake"))
    assert (told.changed, len(told.notes)) == ([], 1)
    assert "was made again since" in told.notes[0]


def test_a_rejected_shot_is_left_out_and_with_it_its_programme_until_it_is_accepted(desk: Desk) -> None:
    desk.decide(desk.row("p", "clip", "reject", note="wrong lamp"))
    batch = desk.batch()
    failures = batch.failures
    assert (failures["p"].error, failures["p"].reason) == ("Rejected", "wrong lamp")
    assert "q" not in failures
    assert desk.plan.programmes["T"] in batch.queue.failures
    assert batch.queue.is_empty
    assert len(desk.decide(desk.row("p", "image", "accept")).changed) == 2
    assert desk.batch().failures == {}
    assert desk.sidecar("p", "clip").review is None


def test_what_says_nothing_any_more_is_told_and_changes_nothing(
    desk: Desk, write_script: Callable[..., Path]
) -> None:
    gone = desk.row("q", "image", "retake")
    later = desk.row("p", "image", "accept", attempt=7)
    built = desk.row("p", "clip", "retake")
    write_script(ROWS[0])
    told = desk.decide(gone, later, built)
    assert told.changed == []
    assert [note.partition(": ")[2].partition(": ")[2] for note in told.notes] == [
        "is of a take that the script does not need any more",
        "found no attempt 7 of it",
        "is built from other takes; retake one of those",
    ]
    desk.store.delete(sidecar_path("image", desk.key("p", "image")))
    assert "its take is not there" in desk.decide(desk.row("p", "image", "accept")).notes[0]


def test_every_mistake_is_told_with_row_and_column(desk: Desk) -> None:
    good = desk.row("p", "image", "accept")
    rows = [good, good | {"take": "nonsense"}, good | {"decision": "maybe"}, good | {"attempt": "-1"}, good]
    with pytest.raises(Mistakes) as caught:
        desk.decide(*rows)
    text = str(caught.value)
    for part in (
        "row 3",
        "take",
        "row 4",
        "maybe",
        "accept, retake or reject",
        "row 5",
        "row 6",
        "row 2 has this one",
    ):
        assert part in text
    with pytest.raises(Mistakes, match="no column decision"):
        desk.decide({"shot_id": "p", "take": good["take"], "attempt": 0})
