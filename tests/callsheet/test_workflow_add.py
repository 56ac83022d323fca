"""A graph exported from ComfyUI becomes a workflow that can be read, planned with and checked."""

import copy
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callsheet.errors import BadInput
from callsheet.exported import Adopted, adopt, toml
from callsheet.preflight import Kind, check_workflow, shipped_signatures
from callsheet.workflow import PLACEHOLDER, SHIPPED_WORKFLOWS, Workflow, read_workflow, read_workflows
from tests.callsheet.test_workflow import HOSTILE, SHIPPED, filled

SHIPPED_BY_NAME = read_workflows(SHIPPED_WORKFLOWS)


def link(node: str, output: int = 0) -> list[Any]:
    return [node, output]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


def picture_graph() -> dict[str, Any]:
    """Stable Diffusion's first graph, as ComfyUI opens with it."""
    return {
        "3": node(
            "KSampler", seed=156680208700286, steps=20, cfg=8, sampler_name="euler", scheduler="normal", denoise=1,
            model=link("4"), positive=link("6"), negative=link("7"), latent_image=link("5"),
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a bottle", clip=link("4", 1)),
        "7": node("CLIPTextEncode", text="text, watermark", clip=link("4", 1)),
        "8": node("VAEDecode", samples=link("3"), vae=link("4", 2)),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=link("8")),
    }  # fmt: skip


def made(graph: Any, **options: Any) -> Adopted:
    return adopt(graph, "mine", signatures=shipped_signatures(), known=SHIPPED_BY_NAME, **options)


def read(folder: Path, adopted: Adopted) -> Workflow:
    (folder / "mine.json").write_text(json.dumps(adopted.graph), "utf-8")
    (folder / "mine.toml").write_text(adopted.companion, "utf-8")
    return read_workflow(folder / "mine.json")


def values(adopted: Adopted) -> dict[str, Any]:
    return {found.variable: found.value for found in adopted.found}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_graph_that_was_filled_and_exported_comes_back(
    workflows: dict[str, Workflow], tmp_path: Path, name: str
) -> None:
    original = workflows[name]
    graph = filled(original)
    adopted = made(graph)
    workflow = read(tmp_path, adopted)
    assert workflow.render(values(adopted)) == graph
    assert (workflow.kind, workflow.output, workflow.fps) == (original.kind, original.output, original.fps)
    assert set(workflow.models_for({})) == set(original.models_for({}))
    assert {c: p.url for p in workflow.nodes for c in p.classes} == {
        c: p.url for p in original.nodes for c in p.classes if c in {b["class_type"] for b in graph.values()}
    }
    assert {"POSITIVE_PROMPT", "WIDTH", "HEIGHT", "SEED", "FILENAME_PREFIX"} <= set(workflow.variables)
    for variable in ("FRAMES", "FPS", "IMAGE", "AUDIO", "NEGATIVE_PROMPT"):
        assert (variable in workflow.variables) == (variable in original.variables)
    places = {(v.after, v.loader) for v in original.variables.values() if v.type == "loras"}
    assert {(v.after, v.loader) for v in workflow.variables.values() if v.type == "loras"} == places
    findings = check_workflow(workflow, shipped_signatures())
    assert {finding.kind for finding in findings} <= {Kind.NOT_CHECKED}


def test_what_is_found_can_be_set_and_reaches_its_node(tmp_path: Path) -> None:
    workflow = read(tmp_path, made(picture_graph()))
    graph = workflow.render(
        {"POSITIVE_PROMPT": "a lamp", "NEGATIVE_PROMPT": "rain", "WIDTH": 640, "HEIGHT": 448, "STEPS": 4, "CFG": 2.5,
         "SEED": 9, "CHECKPOINT": "mine.safetensors", "FILENAME_PREFIX": "x/y"}
    )  # fmt: skip
    assert graph["6"]["inputs"]["text"] == "a lamp"
    assert graph["7"]["inputs"]["text"] == "rain"
    assert graph["5"]["inputs"] == {"width": 640, "height": 448, "batch_size": 1}
    sampler = graph["3"]["inputs"]
    assert (sampler["seed"], sampler["steps"], sampler["cfg"]) == (9, 4, 2.5)
    assert graph["4"]["inputs"]["ckpt_name"] == "mine.safetensors"
    assert graph["9"]["inputs"]["filename_prefix"] == "x/y"
    assert workflow.kind == "image"
    assert not workflow.verified


def test_loras_of_an_added_workflow_leave_its_clip_and_vae_alone(tmp_path: Path) -> None:
    workflow = read(tmp_path, made(picture_graph()))
    assert workflow.variables["LORAS"].after == "4"
    graph = workflow.render(
        {**values(made(picture_graph())), "LORAS": workflow.variables["LORAS"].parse("a.pt:0.5")}
    )
    assert graph["3"]["inputs"]["model"] == ["4-lora-1", 0]
    assert graph["6"]["inputs"]["clip"] == ["4", 1]
    assert graph["8"]["inputs"]["vae"] == ["4", 2]


def test_prompts_are_told_apart_by_links_and_not_by_order() -> None:
    graph = picture_graph()
    graph["3"]["inputs"]["positive"], graph["3"]["inputs"]["negative"] = link("7"), link("6")
    found = values(made(graph))
    assert (found["POSITIVE_PROMPT"], found["NEGATIVE_PROMPT"]) == ("text, watermark", "a bottle")


def test_prompts_are_found_through_what_stands_between() -> None:
    graph = picture_graph()
    graph["10"] = node("FluxGuidance", conditioning=link("6"), guidance=3.5)
    graph["11"] = node("ControlNetApplyAdvanced", positive=link("10"), negative=link("7"), strength=1.0)
    graph["3"]["inputs"] |= {"positive": link("11", 0), "negative": link("11", 1)}
    found = {f.variable: f.places for f in made(graph).found}
    assert found["POSITIVE_PROMPT"] == ("6.text",)
    assert found["NEGATIVE_PROMPT"] == ("7.text",)


def test_prompt_of_a_guider_is_positive_alone() -> None:
    graph = picture_graph()
    del graph["3"], graph["7"]
    graph |= {
        "20": node("BasicGuider", model=link("4"), conditioning=link("6")),
        "21": node("RandomNoise", noise_seed=7),
        "22": node("KSamplerSelect", sampler_name="euler"),
        "23": node("BasicScheduler", model=link("4"), scheduler="simple", steps=20, denoise=1.0),
        "24": node(
            "SamplerCustomAdvanced", noise=link("21"), guider=link("20"), sampler=link("22"), sigmas=link("23"),
            latent_image=link("5"),
        ),
    }  # fmt: skip
    graph["8"]["inputs"]["samples"] = link("24")
    found = {f.variable: f.places for f in made(graph).found}
    assert found["POSITIVE_PROMPT"] == ("6.text",)
    assert "NEGATIVE_PROMPT" not in found
    assert (found["SEED"], found["STEPS"]) == (("21.noise_seed",), ("23.steps",))


def test_value_that_a_primitive_gives_is_replaced_there() -> None:
    graph = picture_graph()
    graph["30"] = node("PrimitiveStringMultiline", value="a bottle")
    graph["31"] = node("PrimitiveInt", value=11, control_after_generate="randomize")
    graph["6"]["inputs"]["text"] = link("30")
    graph["3"]["inputs"]["seed"] = link("31")
    found = {f.variable: f.places for f in made(graph).found}
    assert found["POSITIVE_PROMPT"] == ("30.value",)
    assert found["SEED"] == ("31.value",)


def test_first_of_two_images_is_the_variable_and_the_other_is_told(workflows: dict[str, Workflow]) -> None:
    graph = filled(workflows["wan_i2v_fp8"])
    graph["98"]["class_type"] = "WanFirstLastFrameToVideo"
    graph["99"] = node("LoadImage", image="last.png")
    graph["98"]["inputs"]["end_image"] = link("99")
    adopted = made(graph)
    assert {f.variable: f.places for f in adopted.found}["IMAGE"] == ("97.image",)
    assert any("99.image: a second image" in line for line in adopted.look_at)


def test_name_with_a_line_break_stays_within_its_comment(
    workflows: dict[str, Workflow], tmp_path: Path
) -> None:
    graph = filled(workflows["wan_i2v"], IMAGE='a\nvram_gb = 1\n[x]\r"""')
    graph["98"]["inputs"]["end_image"] = link("99")
    graph["99"] = node("LoadImage", image="last.png")
    adopted = made(graph)
    assert any("\nvram_gb" in line for line in adopted.look_at)
    assert read(tmp_path, adopted).vram_gb == 24


def test_sizes_that_differ_are_left_and_told() -> None:
    graph = picture_graph()
    graph["40"] = node(
        "ImageScale", image=link("8"), width=2048, height=2048, upscale_method="lanczos", crop="disabled"
    )
    graph["9"]["inputs"]["images"] = link("40")
    adopted = made(graph)
    assert adopted.graph["40"]["inputs"]["width"] == 2048
    assert adopted.graph["5"]["inputs"]["width"] == "{{WIDTH}}"
    assert any("in nodes 40" in line for line in adopted.look_at)


def test_nodes_that_do_not_lead_to_the_output_are_left_out_and_told() -> None:
    graph = picture_graph() | {
        "50": node("PreviewImage", images=link("8")),
        "51": node("Note", text="{{HELLO}}"),
    }
    adopted = made(graph)
    assert set(adopted.graph) == set(picture_graph())
    assert any("50, 51" in line for line in adopted.look_at)


def test_several_savers_are_told_and_one_can_be_chosen() -> None:
    graph = picture_graph() | {"60": node("SaveImage", images=link("8"), filename_prefix="b")}
    with pytest.raises(
        BadInput, match=r"2 nodes that save: 9 \(SaveImage\), 60 \(SaveImage\); .* --output NODE"
    ):
        made(graph)
    assert 'output = "60"' in made(graph, output="60").companion
    with pytest.raises(BadInput, match=r"--output 61: found no such node; expected one of 9"):
        made(graph, output="61")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda g: g.pop("9"), "no node that saves a picture or a video"),
        (lambda g: g["3"]["inputs"].pop("seed"), "found no seed"),
        (lambda g: g["9"]["inputs"].pop("filename_prefix"), "found no filename_prefix"),
        (lambda g: g["6"]["inputs"].update(text="{{POSITIVE_PROMPT}}"), "found {{POSITIVE_PROMPT}} in text"),
        (lambda g: g["3"]["inputs"].update(sampler_name="a {{NAME}}"), "found {{NAME}} in sampler_name"),
        (lambda g: g["9"].update(class_type="SaveAudio"), "saves sound"),
    ],
)
def test_graph_that_cannot_be_a_workflow_is_told(change: Any, told: str) -> None:
    graph = picture_graph()
    change(graph)
    with pytest.raises(BadInput) as caught:
        made(graph)
    assert told in str(caught.value)


@pytest.mark.parametrize("text", [text for text in HOSTILE if not PLACEHOLDER.search(text)])
def test_negative_prompt_of_any_text_survives_its_companion(tmp_path: Path, text: str) -> None:
    graph = picture_graph()
    graph["7"]["inputs"]["text"] = text
    assert read(tmp_path, made(graph)).variables["NEGATIVE_PROMPT"].default == text


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(), st.booleans())
def test_companion_is_toml_whatever_it_holds(text: str, number: int, truth: bool) -> None:
    tables = {
        "a": text,
        "list": [text, "b"],
        "estimate": [{"x": number}],
        "variables": {"A": {"default": text, "t": truth}},
    }
    assert tomllib.loads(toml(tables)) == tables


def test_frames_are_on_the_grid_and_no_more_than_exported(
    workflows: dict[str, Workflow], tmp_path: Path
) -> None:
    graph = filled(workflows["wan_t2v"], FRAMES=49, FPS=24.0)
    workflow = read(tmp_path, made(graph))
    frames = workflow.variables["FRAMES"]
    assert (frames.default, frames.max, frames.fit(80), frames.fit(46)) == (49, 49, 49, 45)
    assert (workflow.fps, workflow.frames({})) == (24.0, 49)


def test_grid_of_sizes_is_the_nodes_own(workflows: dict[str, Workflow], tmp_path: Path) -> None:
    graph = filled(workflows["wan_t2v"], WIDTH=1280, HEIGHT=704)
    graph["40"] = node(
        "Wan22ImageToVideoLatent", vae=link("39"), width=1280, height=704, length=81, batch_size=1
    )
    height = read(tmp_path, made(graph)).variables["HEIGHT"]
    assert (height.step, height.fit(720)) == (32, 704)
    graph["40"]["inputs"]["height"] = 720
    assert any("height 720 is no multiple of 32" in line for line in made(graph).look_at)


def test_clip_from_an_image_goes_on_from_its_last_frame(
    workflows: dict[str, Workflow], tmp_path: Path
) -> None:
    assert read(tmp_path, made(filled(workflows["wan_i2v"]))).continues_with == "mine"
    assert read(tmp_path, made(filled(workflows["wan_t2v"]))).continues_with == ""


def test_unknown_nodes_and_files_are_what_a_person_should_look_at() -> None:
    graph = picture_graph()
    graph["70"] = node("FancyUpscale", image=link("8"), factor=2, weights="fancy.pth")
    graph["9"]["inputs"]["images"] = link("70")
    adopted = made(graph)
    assert any("FancyUpscale: unknown here" in line for line in adopted.look_at)
    assert any("where fancy.pth is to be had" in line for line in adopted.look_at)
    assert (
        adopted.graph["70"]["inputs"]["weights"] == "{{MODEL}}"
        or "{{" in adopted.graph["70"]["inputs"]["weights"]
    )


def test_kind_is_what_the_person_says() -> None:
    assert made(picture_graph(), kind="video").kind == "video"
    assert "[length]" in made(picture_graph(), kind="video").companion


def test_graph_that_was_given_is_left_as_it_was() -> None:
    graph = picture_graph()
    before = copy.deepcopy(graph)
    made(graph)
    assert graph == before


def test_what_changes_the_size_after_the_model_is_told() -> None:
    graph = picture_graph()
    assert not any("after the model" in line for line in made(graph).look_at)
    graph["10"] = node("UpscaleModelLoader", model_name="4x.pth")
    graph["11"] = node("ImageUpscaleWithModel", upscale_model=link("10"), image=link("8"))
    graph["9"]["inputs"]["images"] = link("11")
    assert any("node 11 (ImageUpscaleWithModel) may change size" in line for line in made(graph).look_at)
