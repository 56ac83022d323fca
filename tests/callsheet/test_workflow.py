import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callsheet.errors import BadInput
from callsheet.workflow import SHIPPED_WORKFLOWS, Workflow, read_workflow, read_workflows
from gpu_service.graph import scene_of, validate

GRAPH = {
    "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "{{POSITIVE_PROMPT}}", "clip": ["2", 0]}},
    "2": {"class_type": "CLIPLoader", "inputs": {"clip_name": "x", "type": "wan", "seed": "{{SEED}}"}},
    "9": {
        "class_type": "SaveImage",
        "inputs": {"images": ["1", 0], "filename_prefix": "a/{{FILENAME_PREFIX}}-{{SEED}}"},
    },
}
COMPANION = """
kind = "image"
description = "test"
output = "9"
vram_gb = 1
signature = "test"
[estimate]
card = "none"
seconds = 1
width = 64
height = 64
[variables.POSITIVE_PROMPT]
type = "text"
description = "the prompt"
[variables.SEED]
type = "int"
description = "the seed"
min = 0
max = 100
[variables.FILENAME_PREFIX]
type = "text"
description = "the prefix"
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    return write(tmp_path_factory.mktemp("workflow"), GRAPH, COMPANION)


def write(folder: Path, graph: Any, companion: str) -> Workflow:
    (folder / "small.json").write_text(json.dumps(graph))
    (folder / "small.toml").write_text(companion)
    return read_workflow(folder / "small.json")


def test_placeholder_that_is_the_whole_string_becomes_a_typed_value(small: Workflow) -> None:
    graph = small.render({"POSITIVE_PROMPT": "x", "SEED": 7, "FILENAME_PREFIX": "f"})
    assert graph["2"]["inputs"]["seed"] == 7
    assert graph["9"]["inputs"]["filename_prefix"] == "a/f-7"


@given(prompt=st.text())
def test_no_prompt_breaks_the_graph_or_reaches_another_field(small: Workflow, prompt: str) -> None:
    graph = small.render({"POSITIVE_PROMPT": prompt, "SEED": 7, "FILENAME_PREFIX": prompt})
    assert json.loads(json.dumps(graph)) == graph
    assert graph["1"]["inputs"] == {"text": prompt, "clip": ["2", 0]}
    assert graph["2"] == {"class_type": "CLIPLoader", "inputs": {"clip_name": "x", "type": "wan", "seed": 7}}
    assert graph["9"]["inputs"]["filename_prefix"] == f"a/{prompt}-7"


def test_placeholder_in_a_prompt_stays_a_prompt(small: Workflow) -> None:
    graph = small.render({"POSITIVE_PROMPT": '{{SEED}} "and" \n 🎬', "SEED": 7, "FILENAME_PREFIX": "f"})
    assert graph["1"]["inputs"]["text"] == '{{SEED}} "and" \n 🎬'


def test_missing_and_undeclared_variables_are_named(small: Workflow) -> None:
    with pytest.raises(BadInput, match=r"no value for \{\{POSITIVE_PROMPT\}\}"):
        small.render({"SEED": 1, "FILENAME_PREFIX": "f"})
    with pytest.raises(BadInput, match="the variable STEPS"):
        small.render({"POSITIVE_PROMPT": "x", "SEED": 1, "FILENAME_PREFIX": "f", "STEPS": 3})


@pytest.mark.parametrize(
    ("graph", "companion", "told"),
    [
        ({"nodes": [], "links": []}, COMPANION, "the editor's format"),
        ({"1": {"class_type": "X"}}, COMPANION, "no graph"),
        ([], COMPANION, "no graph"),
        (GRAPH, COMPANION.split("[variables.FILENAME_PREFIX]")[0], "no declaration of {{FILENAME_PREFIX}}"),
        (GRAPH, COMPANION + '[variables.EXTRA]\ntype = "text"\ndescription = "x"\n', "[variables.EXTRA]"),
        (GRAPH, COMPANION.replace('output = "9"', 'output = "7"'), "output = '7'"),
        (GRAPH, COMPANION.replace("vram_gb = 1", "vram = 1"), "vram"),
        (GRAPH, COMPANION.replace('kind = "image"', 'kind = "video"'), "[length]"),
        (GRAPH, "kind = ", "TOML that does not parse"),
    ],
)
def test_a_workflow_that_is_wrong_is_told_when_it_is_read(
    tmp_path: Path, graph: Any, companion: str, told: str
) -> None:
    with pytest.raises(BadInput) as caught:
        write(tmp_path, graph, companion)
    assert told in str(caught.value)


def test_graph_without_companion_is_told(tmp_path: Path) -> None:
    (tmp_path / "lonely.json").write_text("{}")
    with pytest.raises(BadInput, match=r"no lonely.toml beside it"):
        read_workflows(tmp_path)


def test_values_of_the_script_are_checked_against_their_declaration(workflows: dict[str, Workflow]) -> None:
    steps = workflows["flux_dev"].variables["STEPS"]
    assert steps.parse("20") == 20
    for wrong in ("0", "101", "2.5", "many", "nan"):
        with pytest.raises(ValueError, match="a whole number from 1 to 100"):
            steps.parse(wrong)
    with pytest.raises(ValueError, match="a number from 0 to 20"):
        workflows["flux_dev"].variables["GUIDANCE"].parse("inf")
    with pytest.raises(ValueError, match="one of default"):
        workflows["flux_dev"].variables["WEIGHT_DTYPE"].parse("fp4")


@pytest.mark.parametrize(
    ("asked", "made"), [(81, 81), (80, 81), (82, 81), (5, 5), (1, 5), (500, 81), (33.2, 33)]
)
def test_frames_are_snapped_to_4n_plus_1(workflows: dict[str, Workflow], asked: float, made: int) -> None:
    assert workflows["wan_t2v"].variables["FRAMES"].fit(asked) == made


def filled(workflow: Workflow, windows: int = 1) -> Any:
    values: dict[str, Any] = {"POSITIVE_PROMPT": "a tree", "SEED": 5, "FILENAME_PREFIX": "p"}
    if workflow.needs_image:
        values["IMAGE"] = "in.png"
    if workflow.needs_audio:
        values["AUDIO"] = "in.wav"
    return workflow.render(values, windows)


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED_WORKFLOWS.glob("*.json")))
def test_shipped_graphs_pass_the_signatures_of_a_real_comfyui(
    workflows: dict[str, Workflow], name: str
) -> None:
    """Signatures of ComfyUI 0.3.64 with ComfyUI-GGUF; model files are filled in from the declarations."""
    from gpu_service.app import SIGNATURES
    from gpu_service.comfyui import with_models

    signatures = with_models(json.loads(SIGNATURES.read_text("utf-8")), workflows)
    for windows in (1, 3) if workflows[name].windows else (1,):
        assert validate(filled(workflows[name], windows), signatures, frozenset({"in.png", "in.wav"})) is None


def test_graph_of_an_avatar_grows_until_it_covers_the_narration(workflows: dict[str, Workflow]) -> None:
    avatar = workflows["wan_s2v"]
    for seconds, windows, frames in ((1.0, 1, 78), (4.875, 1, 78), (4.9, 2, 158), (14.0, 3, 238)):
        assert avatar.windows_for(seconds) == windows
        assert avatar.frames_of_windows(windows) == frames
        scene = scene_of(filled(avatar, windows), avatar.output)
        assert (scene.frames, scene.seed, scene.speaks) == (frames, 5, True)
    with pytest.raises(BadInput, match="at most 125 s"):
        avatar.windows_for(126)
