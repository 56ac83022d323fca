import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callsheet.fleet import Fleet
from callsheet.inputs import Mistakes
from callsheet.loras import Lora, parse_loras
from callsheet.parameters import ProduceParameters
from callsheet.plan import PictureInputs, Plan
from callsheet.workflow import Workflow, canonical
from tests.callsheet.test_workflow import SHIPPED, filled

Write = Callable[..., Path]
PICTURE = {"shot_id": "p", "visual": "flux_dev", "prompt": "a lamp"}


@pytest.mark.parametrize(
    ("cell", "loras"),
    [
        ("", ()),
        (" ; ", ()),
        ("film.safetensors", (Lora("film.safetensors", 1.0),)),
        ("film.safetensors:0.8; grain.pt", (Lora("film.safetensors", 0.8), Lora("grain.pt", 1.0))),
        ("wan/雨 film.safetensors : -2 ;", (Lora("wan/雨 film.safetensors", -2.0),)),
        ("a.safetensors:-10;b.safetensors:10", (Lora("a.safetensors", -10.0), Lora("b.safetensors", 10.0))),
    ],
)
def test_cell_is_files_and_strengths(cell: str, loras: tuple[Lora, ...]) -> None:
    assert parse_loras(cell) == loras


@pytest.mark.parametrize(
    "cell",
    [
        "a.safetensors:11", "a.safetensors:-10.5", "a.safetensors:nan", "a.safetensors:inf", "a.safetensors:strong",
        "a.safetensors:", "../a.safetensors", "x/../a.safetensors", "./a.safetensors", "/a.safetensors", "x//a.safetensors",
        "C:/a.safetensors", "C:\\a.safetensors", "x\\a.safetensors", "a?.safetensors", 'a".safetensors', "a\x00.safetensors",
        "CON/a.safetensors", "nul.safetensors", "x./a.safetensors", "x /a.safetensors", "film", "film.exe", "a.safetensors, b",
    ],
)  # fmt: skip
def test_cell_that_no_host_could_have_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match="LoRA files under models/loras with strengths from -10 to 10"):
        parse_loras(cell)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_workflow_has_a_lora_list_for_each_model(
    workflows: dict[str, Workflow], name: str
) -> None:
    lists = {n: v for n, v in workflows[name].variables.items() if v.type == "loras"}
    experts = sum(model.folder in ("unet", "diffusion_models") for model in workflows[name].models)
    assert len(lists) == experts
    assert all(not variable.required and variable.default == () for variable in lists.values())


@pytest.mark.parametrize("name", SHIPPED)
def test_empty_list_adds_nothing(workflows: dict[str, Workflow], name: str) -> None:
    workflow = workflows[name]
    empty: dict[str, Any] = {n: () for n, v in workflow.variables.items() if v.type == "loras"}
    assert filled(workflow, **empty) == filled(workflow)
    assert not any("-lora-" in node for node in filled(workflow))


def test_loras_stand_in_order_between_the_model_and_who_takes_it(workflows: dict[str, Workflow]) -> None:
    graph = filled(workflows["flux_dev"], LORAS=parse_loras("a.safetensors:0.5; b.safetensors"))
    assert graph["1-lora-1"] == {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": "a.safetensors", "strength_model": 0.5},
    }
    assert graph["1-lora-2"]["inputs"]["model"] == ["1-lora-1", 0]
    assert graph["7"]["inputs"]["model"] == ["1-lora-2", 0]


@pytest.mark.parametrize("name", ["wan_i2v", "wan_i2v_fp8"])
def test_each_expert_has_its_own_loras_beside_the_four_step_ones(
    workflows: dict[str, Workflow], name: str
) -> None:
    lists = {"HIGH_NOISE_LORAS": parse_loras("h.pt:2"), "LOW_NOISE_LORAS": parse_loras("l.pt; m.pt")}
    graph = filled(workflows[name], **lists, HIGH_NOISE_LORA="mine.safetensors")

    def chain(node: str) -> list[tuple[Any, Any]]:
        body = graph[node]
        if "lora_name" not in body["inputs"]:
            return [(body["inputs"]["unet_name"], 0)]
        inputs = body["inputs"]
        return [*chain(inputs["model"][0]), (inputs["lora_name"], inputs["strength_model"])]

    sampling = {node: graph[node]["inputs"]["model"][0] for node in ("104", "103")}
    high, low = chain(sampling["104"]), chain(sampling["103"])
    assert high[1:] == [("mine.safetensors", 1.0), ("h.pt", 2.0)]
    assert [file for file, _ in low[1:]] == [
        "wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise.safetensors", "l.pt", "m.pt"
    ]  # fmt: skip
    assert "High" in high[0][0] or "high" in high[0][0]
    assert graph["86"]["inputs"]["model"] == ["104", 0], (
        "the sampler of the first steps has the high-noise expert"
    )


def test_longcat_takes_its_loras_by_its_own_nodes_in_every_window(workflows: dict[str, Workflow]) -> None:
    graph = filled(workflows["longcat_avatar"], 3, LORAS=parse_loras("a.pt:0.5"))
    assert graph["9-lora-1"]["class_type"] == "WanVideoLoraSelect"
    assert graph["9-lora-1"]["inputs"] == {
        "prev_lora": ["9", 0], "lora": "a.pt", "strength": 0.5, "low_mem_load": False, "merge_loras": False
    }  # fmt: skip
    assert graph["10"]["inputs"]["lora"] == ["9-lora-1", 0]
    assert {b["inputs"]["model"][0] for b in graph.values() if b["class_type"] == "WanVideoSamplerv2"} == {
        "10"
    }


def test_loras_reach_nodes_that_were_added_for_a_window(workflows: dict[str, Workflow]) -> None:
    graph = filled(workflows["wan_s2v"], 3, LORAS=parse_loras("a.pt"))
    assert graph["54"]["inputs"]["model"] == ["107-lora-1", 0]
    assert {b["inputs"]["model"][0] for b in graph.values() if b["class_type"] == "KSampler"} == {"54"}


def test_file_name_that_looks_like_a_placeholder_stays_a_file_name(workflows: dict[str, Workflow]) -> None:
    graph = filled(workflows["flux_dev"], LORAS=parse_loras("{{SEED}}.pt"))
    assert graph["1-lora-1"]["inputs"]["lora_name"] == "{{SEED}}.pt"


def test_key_has_one_spelling_for_one_list_and_is_json(workflows: dict[str, Workflow]) -> None:
    def key(cell: str) -> str:
        return canonical(workflows["flux_dev"].material({"LORAS": parse_loras(cell)}))

    assert key("a.pt") == key(" a.pt:1 ;") == key("a.pt:1.0")
    assert key("a.pt:0") == key("a.pt:-0")
    assert json.loads(key("a.pt; b.pt:2"))["variables"]["LORAS"] == [["a.pt", 1.0], ["b.pt", 2.0]]
    assert len({key(""), key("a.pt"), key("a.pt:0.5"), key("a.pt; b.pt"), key("b.pt; a.pt")}) == 5


def test_key_depends_on_the_model_that_a_list_is_for(workflows: dict[str, Workflow]) -> None:
    workflow = workflows["wan_i2v"]
    swapped = workflow.model_copy(
        update={
            "variables": {
                **workflow.variables,
                "HIGH_NOISE_LORAS": workflow.variables["LOW_NOISE_LORAS"],
            }
        }
    )
    values = {"HIGH_NOISE_LORAS": parse_loras("a.pt")}
    assert workflow.material(values)["loras"] == {"HIGH_NOISE_LORAS": ["101", "LoraLoaderModelOnly"]}
    assert canonical(workflow.material(values)) != canonical(swapped.material(values))


def planned(script: Path) -> Plan:
    return ProduceParameters(script=script).plan(Fleet())


def picture(plan: Plan) -> tuple[str, PictureInputs]:
    key = plan.shots["p"].pictures[0]
    inputs = plan.steps[key].inputs
    assert isinstance(inputs, PictureInputs)
    return key, inputs


def test_loras_of_a_script_are_in_the_key_and_in_the_graph(write_script: Write) -> None:
    plain, _ = picture(planned(write_script(PICTURE)))
    key, inputs = picture(planned(write_script(PICTURE | {"param.LORAS": "a.pt:0.5; b.pt"})))
    assert key != plain
    graph = inputs.workflow.render({**inputs.values, "SEED": 1, "FILENAME_PREFIX": "p"})
    assert graph["1-lora-2"]["inputs"]["lora_name"] == "b.pt"
    empty, _ = picture(planned(write_script(PICTURE | {"param.LORAS": " ; "})))
    assert empty == plain


def test_lora_list_that_is_wrong_is_a_mistake_of_its_row(write_script: Write) -> None:
    with pytest.raises(Mistakes) as caught:
        planned(write_script(PICTURE | {"param.LORAS": "../a.pt"}))
    mistake = caught.value.mistakes[0]
    assert (mistake.row, mistake.column) == (2, "param.LORAS")
    assert "such as film.safetensors:0.8" in mistake.expected


def test_frames_off_the_grid_are_snapped_and_said_so(write_script: Write) -> None:
    clip = {"shot_id": "p", "visual": "wan_t2v", "prompt": "x", "param.FRAMES": "80"}
    plan = planned(write_script(clip))
    assert picture(plan)[1].values["FRAMES"] == 81
    assert "p: wan_t2v makes FRAMES 81, not 80" in plan.script.notes
    assert not planned(write_script(clip | {"param.FRAMES": "81"})).script.notes


def test_size_off_the_grid_is_snapped_and_said_so(write_script: Write) -> None:
    plan = planned(write_script({"shot_id": "p", "visual": "wan_t2v", "prompt": "x", "param.WIDTH": "837"}))
    assert picture(plan)[1].size == (832, 480)
    assert "p: wan_t2v makes WIDTH 832, not 837" in plan.script.notes


def test_plan_says_once_that_a_workflow_is_unverified(write_script: Write, tmp_path: Path) -> None:
    spoken = {"text": "The keeper lit the lamp.", "voice": "anna", "visual": "longcat_avatar", "prompt": "x"}
    image = {"image": "shot:p"}
    rows = [PICTURE, *({"shot_id": name, **spoken, **image} for name in ("a", "b"))]
    notes = planned(write_script(*rows)).script.notes
    assert [note for note in notes if "longcat_avatar is unverified" in note] == list(notes)
    assert len(notes) == 1


def test_steps_of_the_row_count_in_the_estimate(write_script: Write) -> None:
    def seconds(row: dict[str, Any]) -> float:
        plan = planned(write_script(PICTURE | row))
        return plan.steps[picture(plan)[0]].seconds

    assert seconds({"param.STEPS": 40}) == pytest.approx(2 * seconds({}))
