"""The life of a batch without any engine: attempts, retakes, reuse, money."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callsheet.batch import Batch
from callsheet.errors import BadInput, BadOutput, HostFault, StoreFault, Transient
from callsheet.fleet import Lane, read_fleet
from callsheet.journal import journal_path
from callsheet.parameters import ProduceParameters
from callsheet.plan import Plan, Step
from callsheet.resume import find_takes
from callsheet.store import LocalFolder
from callsheet.takes import Attempt, Check, Sidecar, sidecar_path
from tests.conftest import write_fleet

SPOKEN = {
    "shot_id": "a",
    "title": "T",
    "text": "The keeper lit the lamp.",
    "voice": "anna",
    "engine": "lighttts",
}
FILM = SPOKEN | {"visual": "wan_t2v", "prompt": "x"}


@pytest.fixture
def plan(write_script: Callable[..., Path], tmp_path: Path) -> Callable[..., Plan]:
    def make(*rows: dict[str, Any], price: float = 3.6) -> Plan:
        fleet = write_fleet(
            tmp_path / "f.toml", {"a": "http://127.0.0.1:9", "b": "http://127.0.0.1:9"}, price=price
        )
        return ProduceParameters(script=write_script(*rows)).plan(read_fleet(str(fleet)))

    return make


def batch_of(plan: Plan, **settings: Any) -> Batch:
    return Batch("demo", plan, list(plan.fleet.lanes()), **settings)


def lane_for(batch: Batch, kind: str, number: int = 0) -> Lane:
    return [lane for lane in batch.queue.lanes.values() if lane.engine.kind == kind][number]


def attempt(
    batch: Batch, step: Step, lane: Lane | None = None, *, ok: bool = True, length: float = 2.0, sha: str = ""
) -> Attempt:
    n = batch.attempt_number(step)
    return Attempt(
        n=n, file=f"takes/{step.kind}/{step.key}.{n}.x", sha256=sha or f"{step.key[:8]}-{n}", bytes=3,
        lane=lane.name if lane else "", length=length, checks=(Check(name="c", value=1.0, ok=ok),),
    )  # fmt: skip


def make(batch: Batch, step: Step, lane: Lane | None = None, **settings: Any) -> Sidecar:
    sidecar = batch.add_attempt(step, attempt(batch, step, lane, **settings))
    assert sidecar is not None
    batch.commit(step, sidecar)
    return sidecar


def next_step(batch: Batch, lane: Lane | None) -> Step:
    step = batch.next_step(lane)
    assert step is not None
    return step


def finish(batch: Batch, **settings: Any) -> list[str]:
    """Does all that is left, and says what."""
    done = []
    workers: list[Lane | None] = [*batch.queue.lanes.values(), None]
    while any((step := batch.next_step(lane)) and (worker := lane, True) for lane in workers):
        assert step is not None
        make(batch, step, worker, **settings)
        done.append(step.name)
    return done


def test_everything_is_made_once(plan: Callable[..., Plan]) -> None:
    batch = batch_of(plan(SPOKEN | {"visual": "flux_dev", "prompt": "x"}))
    assert sorted(finish(batch)) == ["T programme", "a clip", "a image", "a speech"]
    assert batch.queue.is_empty
    assert (len(batch.made), batch.takes_reused, batch.failures) == (4, 0, {})


def test_take_that_fails_its_checks_is_made_again_elsewhere_with_another_seed(
    plan: Callable[..., Plan],
) -> None:
    batch = batch_of(plan({"shot_id": "p", "visual": "flux_dev", "prompt": "x", "seed": 5}))
    first, second = lane_for(batch, "comfyui", 0), lane_for(batch, "comfyui", 1)
    step = next_step(batch, first)
    assert batch.seed_of(step) == 5
    assert batch.add_attempt(step, attempt(batch, step, first, ok=False)) is None
    assert batch.next_step(first) is None
    assert next_step(batch, second) is step
    assert batch.seed_of(step) != 5
    sidecar = make(batch, step, second)
    assert (sidecar.chosen, sidecar.needs_review, len(sidecar.attempts)) == (1, False, 2)


def test_after_the_last_retake_the_best_is_kept_for_review(plan: Callable[..., Plan]) -> None:
    batch = batch_of(plan(SPOKEN), retakes=2)
    lanes = [lane_for(batch, "lighttts", n) for n in (0, 1)]
    step, sidecar = None, None
    for number in range(3):
        step = next_step(batch, lanes[number % 2])
        sidecar = batch.add_attempt(step, attempt(batch, step, lanes[number % 2], ok=False))
    assert step is not None
    assert sidecar is not None
    assert (sidecar.chosen, sidecar.needs_review, len(sidecar.attempts)) == (0, True, 3)


def test_engine_that_never_gives_anything_fails_the_shot(plan: Callable[..., Plan]) -> None:
    batch = batch_of(plan(SPOKEN), retakes=1)
    for number in range(2):
        step = next_step(batch, lane_for(batch, "lighttts", number))
        broken = Attempt(n=number, file="", sha256="", bytes=0, error="node 3 failed")
        assert batch.add_attempt(step, broken) is None
    assert batch.failures["a"].reason == "node 3 failed"
    assert batch.failures["a"].error == BadOutput.__name__
    assert batch.queue.is_empty


def test_host_that_fails_during_a_retake_leaves_it_to_another_and_in_the_end_the_first_attempt(
    plan: Callable[..., Plan],
) -> None:
    batch = batch_of(plan(SPOKEN))
    first, second = lane_for(batch, "lighttts", 0), lane_for(batch, "lighttts", 1)
    step = next_step(batch, first)
    batch.add_attempt(step, attempt(batch, step, first, ok=False))
    assert next_step(batch, second) is step
    assert batch.fail(step, second, HostFault("CUDA error")) is None
    assert batch.queue.quarantined == {"b": "CUDA error"}
    assert next_step(batch, first) is step, "the host of the first attempt is well"
    sidecar = batch.fail(step, first, Transient("502"))
    assert sidecar is not None
    assert sidecar.needs_review


def test_failed_shot_does_not_stop_the_others_but_its_programme(plan: Callable[..., Plan]) -> None:
    batch = batch_of(plan(SPOKEN, SPOKEN | {"shot_id": "b", "text": "Other words.", "title": "U"}))
    lane = lane_for(batch, "lighttts")
    step = next_step(batch, lane)
    batch.fail(step, lane, BadInput("417: too long"))
    finish(batch)
    (failed,) = batch.failures
    assert batch.failures[failed].reason == "417: too long"
    assert len(batch.made) == 3


def test_number_of_clips_follows_the_spoken_length(plan: Callable[..., Plan]) -> None:
    batch = batch_of(plan(FILM))
    speech = next_step(batch, lane_for(batch, "lighttts"))
    make(batch, speech, length=12.0)
    names = finish(batch, length=5.0)
    assert names == ["a video", "a video 2", "a video 3", "a clip", "T programme"]


def test_clips_that_a_short_narration_does_not_need_are_not_made(plan: Callable[..., Plan]) -> None:
    batch = batch_of(plan(FILM | {"text": "A sentence of some length. " * 7}))
    assert len(batch.plan.shots["a"].pictures) == 3
    make(batch, next_step(batch, lane_for(batch, "lighttts")), length=4.0)
    assert finish(batch) == ["a video", "a clip", "T programme"]


def stored(batch: Batch, store: LocalFolder) -> None:
    for sidecar in batch.made:
        store.put(sidecar.take.file, b"xyz")
        store.put(sidecar_path(sidecar.kind, sidecar.key), sidecar.model_dump_json().encode())


@pytest.mark.parametrize("length", [2.0, 12.0])
def test_second_run_makes_nothing(plan: Callable[..., Plan], tmp_path: Path, length: float) -> None:
    store, first = LocalFolder(tmp_path / "out"), batch_of(plan(FILM))
    finish(first, length=length)
    stored(first, store)
    again = plan(FILM)
    second = batch_of(again, found=find_takes(again, store, "demo"))
    assert finish(second) == []
    assert second.queue.is_empty
    assert second.takes_reused == len(first.made)


def test_takes_are_found_by_journal_and_by_other_batches(plan: Callable[..., Plan], tmp_path: Path) -> None:
    store, batch = LocalFolder(tmp_path / "out"), batch_of(plan(SPOKEN))
    finish(batch)
    lines = [sidecar.model_dump_json() for sidecar in batch.made]
    for sidecar in batch.made:
        store.put(sidecar.take.file, b"xyz")
    assert find_takes(plan(SPOKEN), store, "demo") == {}
    store.put(journal_path("demo", "r1"), "\n".join([*lines, lines[0][:50]]).encode())
    assert len(find_takes(plan(SPOKEN), store, "demo")) == 3
    stored(batch, store)
    assert len(find_takes(plan(SPOKEN), store, "another")) == 3


@pytest.mark.parametrize("damage", ["gone", "cut", "sidecar cut"])
def test_take_that_is_not_whole_is_no_take(plan: Callable[..., Plan], tmp_path: Path, damage: str) -> None:
    store, batch = LocalFolder(tmp_path / "out"), batch_of(plan(SPOKEN))
    finish(batch)
    stored(batch, store)
    speech = batch.made[0]
    if damage == "gone":
        store.delete(speech.take.file)
    elif damage == "cut":
        store.put(speech.take.file, b"x")
    else:
        store.put(sidecar_path("speech", speech.key), speech.model_dump_json().encode()[:80])
    again = plan(SPOKEN)
    second = batch_of(again, found=find_takes(again, store, "demo"))
    lane = lane_for(second, "lighttts")
    make(second, next_step(second, lane), sha=speech.take.sha256)
    assert finish(second) == [], "what was made from the same speech is still good"


def test_what_was_made_from_another_take_is_made_again(plan: Callable[..., Plan], tmp_path: Path) -> None:
    store, batch = LocalFolder(tmp_path / "out"), batch_of(plan(SPOKEN))
    finish(batch)
    stored(batch, store)
    store.delete(batch.made[0].take.file)
    again = plan(SPOKEN)
    second = batch_of(again, found=find_takes(again, store, "demo"))
    make(second, next_step(second, lane_for(second, "lighttts")), sha="another recording")
    clip = next_step(second, None)
    assert (clip.name, second.attempt_number(clip)) == ("a clip", 1), (
        "it must not overwrite the file of the old take"
    )


def test_budget_is_never_passed(plan: Callable[..., Plan]) -> None:
    rows = [{"shot_id": f"p{n}", "visual": "flux_dev", "prompt": str(n)} for n in range(5)]
    # 15 s at $3.6 an hour: $0.015 each.
    batch = batch_of(plan(*rows), max_cost=0.04)
    lanes = [lane_for(batch, "comfyui", n) for n in (0, 1)]
    running = [(next_step(batch, lane), lane) for lane in lanes]
    for step, lane in running:
        batch.charge(step, lane, 15.0)
        make(batch, step, lane)
    assert batch.next_step(lanes[0]) is None
    assert batch.is_idle(lanes[1])
    assert batch.spent == pytest.approx(0.03)
    assert {failure.error for failure in batch.failures.values()} == {"Budget"}
    assert len(batch.failures) == 3
    assert len(finish(batch)) == 2, "the clips of what is paid for"


def test_two_lanes_do_not_promise_the_same_money(plan: Callable[..., Plan]) -> None:
    rows = [{"shot_id": f"p{n}", "visual": "flux_dev", "prompt": str(n)} for n in range(2)]
    batch = batch_of(plan(*rows), max_cost=0.02)
    assert batch.next_step(lane_for(batch, "comfyui", 0)) is not None
    assert batch.next_step(lane_for(batch, "comfyui", 1)) is None


def test_time_that_came_to_nothing_is_paid_for_too(plan: Callable[..., Plan]) -> None:
    batch = batch_of(plan(SPOKEN))
    lane = lane_for(batch, "lighttts")
    step = next_step(batch, lane)
    batch.charge(step, lane, 100.0)
    batch.fail(step, lane, Transient("reset"))
    assert batch.spent == pytest.approx(0.1)
    assert batch.meters[lane.name].seconds == 100.0


def test_full_disk_stops_the_batch_and_names_every_shot(plan: Callable[..., Plan]) -> None:
    batch = batch_of(plan(SPOKEN, SPOKEN | {"shot_id": "b", "text": "Other words."}))
    step = next_step(batch, lane_for(batch, "lighttts"))
    batch.fail(step, None, StoreFault("disk full"))
    assert set(batch.failures) == {"a", "b"}
    assert all(batch.is_idle(lane) for lane in [*batch.queue.lanes.values(), None])
