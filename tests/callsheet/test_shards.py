"""Cutting a plan: every missing take in one shard, none in two, programmes whole where they fit."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callsheet.errors import BadInput, StoreFault
from callsheet.fleet import Fleet, read_fleet
from callsheet.packed import pack, unpack
from callsheet.parameters import ProduceParameters
from callsheet.plan import Plan
from callsheet.shards import cut, shards_path, shared_first
from callsheet.store import LocalFolder
from tests.conftest import write_fleet

Write = Callable[..., Path]
PLAN = "batches/b/shards/0123abcd/plan-0.json"
AC, B = PLAN.replace("-0", "-1"), PLAN.replace("-0", "-2")


def row(shot_id: str, title: str = "", **cells: Any) -> dict[str, Any]:
    return {
        "shot_id": shot_id,
        "title": title,
        "text": f"The line of {shot_id} is spoken.",
        "voice": "anna",
        **cells,
    }


@pytest.fixture
def plan(write_script: Write) -> Callable[..., Plan]:
    def make(*rows: dict[str, Any], fleet: Fleet | None = None) -> Plan:
        return ProduceParameters(script=write_script(*rows)).plan(fleet or Fleet())

    return make


def test_programmes_stay_whole_where_they_fit(plan: Callable[..., Plan]) -> None:
    made = plan(*(row(f"{title}{n}", title) for title in "abc" for n in range(3)))
    assert cut(made, made.steps, 4) == [("a0", "a1", "a2"), ("b0", "b1", "b2"), ("c0", "c1", "c2")]
    assert cut(made, made.steps, 6) == [("a0", "a1", "a2", "b0", "b1", "b2"), ("c0", "c1", "c2")]


def test_a_programme_larger_than_a_shard_is_cut(plan: Callable[..., Plan]) -> None:
    made = plan(*(row(f"a{n}", "A") for n in range(5)))
    assert cut(made, made.steps, 2) == [("a0", "a1"), ("a2", "a3"), ("a4",)]


def test_shots_that_share_a_missing_take_are_made_by_one_shard(plan: Callable[..., Plan]) -> None:
    hero = row("hero", "A", visual="flux_dev", prompt="a lamp")
    made = plan(
        hero,
        row("b", "B"),
        row("c", "C", visual="wan_i2v", prompt="it moves", image="shot:hero"),
        row("d", "D", text="The line of b is spoken."),
    )
    assert cut(made, made.steps, 1) == [("hero", "c"), ("b", "d")]
    image = made.shots["hero"].pictures[0]
    assert cut(made, set(made.steps) - {image}, 1) == [("hero",), ("b", "d"), ("c",)], (
        "it is there: nobody waits"
    )


def test_what_more_share_than_a_shard_holds_is_made_first(plan: Callable[..., Plan]) -> None:
    """One presenter in every shot would otherwise put the whole script into one shard."""
    hero = row("hero", visual="flux_dev", prompt="a lamp")
    others = [row(f"s{n}", visual="wan_i2v", prompt=f"turn {n}", image="shot:hero") for n in range(9)]
    made = plan(hero, *others)
    missing = set(made.steps)
    assert cut(made, missing, 3) == [("hero", *(f"s{n}" for n in range(9)))]
    first = shared_first(made, missing, 3)
    assert first == ["hero"]
    assert cut(made, missing, 3, first) == [("hero",)]
    missing -= set(made.shots["hero"].keys)
    assert shared_first(made, missing, 3) == []
    assert [len(shots) for shots in cut(made, missing, 3)] == [3, 3, 3]


def test_what_fits_into_a_shard_needs_not_be_made_first(plan: Callable[..., Plan]) -> None:
    made = plan(row("a"), row("b", text="The line of a is spoken."), row("c"))
    assert shared_first(made, made.steps, 2) == []
    assert shared_first(made, made.steps, 1) == ["a"]


def test_what_is_done_is_in_no_shard(plan: Callable[..., Plan]) -> None:
    made = plan(row("a", "A"), row("b", "A"))
    programme = made.programmes["A"]
    assert cut(made, {programme}, 9) == [], "programmes are joined by whoever cut the plan"
    assert cut(made, {made.shots["b"].clip, programme}, 9) == [("b",)]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_missing_take_is_in_exactly_one_shard(write_script: Write, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 14))
    rows = [
        row(
            f"s{n}",
            data.draw(st.sampled_from(["", "A", "B", "C"])),
            text=f"Line {data.draw(st.integers(0, 9))} is said.",
        )
        for n in range(count)
    ]
    made = ProduceParameters(script=write_script(*rows)).plan(Fleet())
    missing = data.draw(st.sets(st.sampled_from(list(made.steps))))
    size = data.draw(st.integers(1, 6))
    shards = cut(made, missing, size)
    takes = [{key for shot_id in shard for key in made.shots[shot_id].keys} & missing for shard in shards]
    assert set(chain(*takes)) == missing - set(made.programmes.values())
    assert sum(len(keys) for keys in takes) == len(set(chain(*takes))), "no take in two shards"
    assert all(takes), "no shard without work"


def test_a_shard_is_planned_without_the_others(plan: Callable[..., Plan]) -> None:
    made = plan(row("a", "A"), row("b", "A"), row("c", "A", text="The line of a is spoken."))
    made.leave_only({"a"})
    assert [step.name for step in made.steps.values()] == ["a speech", "a clip"]
    assert [shot.shot.shot_id for shot in made.shots_with(made.shots["a"].clip)] == ["a"]


def test_a_shard_knows_the_takes_of_others_that_it_is_made_from(plan: Callable[..., Plan]) -> None:
    made = plan(
        row("hero", "A", visual="flux_dev", prompt="a lamp"),
        row("c", "C", visual="wan_i2v", prompt="it moves", image="shot:hero"),
    )
    made.leave_only({"c"})
    assert {step.name for step in made.steps.values()} >= {"hero image", "c video", "c clip"}
    assert "hero clip" not in {step.name for step in made.steps.values()}


@pytest.mark.parametrize("run", ["../..", "a/b", "x"])
def test_no_path_of_a_shard_leaves_its_batch(run: str) -> None:
    with pytest.raises(ValueError, match="is no id of a run"):
        shards_path("b", run, "plan.json")


@pytest.fixture
def packed(plan: Callable[..., Plan], tmp_path: Path, script_folder: Path) -> tuple[Plan, LocalFolder]:
    """A plan with everything in it, in a store; the files it was made from are gone."""
    PIL.Image.new("RGB", (64, 64), "red").save(script_folder / "first.png")
    fleet = read_fleet(str(write_fleet(tmp_path / "fleet.toml", {"h": "http://127.0.0.1:9"})))
    made = plan(
        row("a", "A", visual="flux_dev", prompt="a lamp", seed=7),
        row("b", "A", visual="wan_i2v", prompt="it moves", image="first.png", pause_after=0.5),
        row("c", "B", text="It costs $3.50. [pause 400ms] 一共三块五。", voice="wei", speed=1.1),
        fleet=fleet,
    )
    store = LocalFolder(tmp_path / "out")
    pack(made, store, {PLAN: ["a", "b", "c"], AC: ["a", "c"], B: ["b"]})
    for file in script_folder.iterdir():
        file.unlink()
    return made, store


def test_a_plan_that_travelled_is_the_same(packed: tuple[Plan, LocalFolder], tmp_path: Path) -> None:
    made, store = packed
    there = unpack(store, PLAN, tmp_path)
    assert there.steps.keys() == made.steps.keys() - set(made.programmes.values())
    for step in there.steps.values():
        other = made.steps[step.key]
        assert (step.name, step.seconds, step.demand) == (other.name, other.seconds, other.demand)
        assert step.inputs.material() == other.inputs.material()
    assert there.fleet == made.fleet
    assert there.script.voices["anna"].prompt_audio.path.is_file()
    assert there.script.images["first.png"].path.is_file()


def test_a_shard_brings_what_it_is_made_from_and_no_more(
    packed: tuple[Plan, LocalFolder], tmp_path: Path
) -> None:
    store = packed[1]
    for file in list(store.list("inputs/")):
        if file.path.endswith(".png"):
            store.delete(file.path)
    there = unpack(store, AC, tmp_path)
    assert {step.name.split()[0] for step in there.steps.values()} == {"a", "c"}
    with pytest.raises(StoreFault, match="is gone"):
        unpack(store, B, tmp_path)


def test_a_part_of_a_programme_has_the_frame_of_the_whole(plan: Callable[..., Plan], tmp_path: Path) -> None:
    size = {"visual": "flux_dev", "prompt": "a lamp", "width": 640, "height": 384}
    made = plan(row("a", "A", **size | {"width": 512}), row("b", "A", **size), row("c", "A", **size))
    store = LocalFolder(tmp_path / "out")
    pack(made, store, {PLAN: ["a"]})
    there = unpack(store, PLAN, tmp_path)
    assert there.shots.keys() == {"a"}
    assert there.shots["a"].canvas == made.shots["b"].canvas
    assert there.shots["a"].clip == made.shots["a"].clip


def test_a_travelling_plan_names_no_path_of_this_machine(
    packed: tuple[Plan, LocalFolder], tmp_path: Path
) -> None:
    assert str(tmp_path) not in packed[1].get(PLAN).decode()


def test_damaged_inputs_are_not_used(packed: tuple[Plan, LocalFolder], tmp_path: Path) -> None:
    made, store = packed
    recording = made.script.voices["anna"].prompt_audio
    store.put(f"inputs/{recording.sha256}.wav", b"RIFF")
    with pytest.raises(StoreFault, match=r"inputs/.*wav is damaged"):
        unpack(store, PLAN, tmp_path)
    store.delete(f"inputs/{recording.sha256}.wav")
    with pytest.raises(StoreFault, match="is gone; produce the batch again"):
        unpack(store, PLAN, tmp_path)


def test_a_worker_of_another_version_refuses(packed: tuple[Plan, LocalFolder], tmp_path: Path) -> None:
    store = packed[1]
    plan = json.loads(store.get(PLAN))
    store.put(PLAN, json.dumps(plan | {"mark": "0" * 64}).encode())
    with pytest.raises(BadInput, match="another version of Callsheet"):
        unpack(store, PLAN, tmp_path)
    store.put(PLAN, json.dumps({"script": {}}).encode())
    with pytest.raises(BadInput, match="another version of Callsheet"):
        unpack(store, PLAN, tmp_path)
