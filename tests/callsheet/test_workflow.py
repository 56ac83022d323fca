import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callsheet.errors import BadInput
from callsheet.workflow import SHIPPED_WORKFLOWS, Workflow, canonical, read_workflow, read_workflows
from gpu_service.app import draft_signatures
from gpu_service.comfyui import with_models
from gpu_service.graph import scene_of, validate

SHIPPED = sorted(path.stem for path in SHIPPED_WORKFLOWS.glob("*.json"))
#: Texts that break out of JSON, TOML or a template where one is careless.
HOSTILE = (
    'a "quoted" word', "back\\slash \\u0041", "two\nlines\r\n\tand a tab", "{{SEED}}", "{{", "}} {{POSITIVE_PROMPT}}",
    "{{FRAMES_TOTAL}} {{NEGATIVE_PROMPT}}", "\u2028\u2029\x00\x7f", "🎬 雨 é", '"],"class_type":"Evil"', "${HOME} %s {0}", "null", "[1, 0]",
)  # fmt: skip

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


NO_SEED = json.loads(json.dumps(GRAPH).replace("SEED", "STEPS"))
LORAS = COMPANION + '[variables.LORAS]\ntype = "loras"\ndescription = "more"\nafter = "2"\n'
WINDOWS = (
    COMPANION
    + """
[length]
fps = 10
frames = 10
[windows]
more = 5
max = 3
chains = { chain = "join" }
start = { chain = "1" }
[windows.nodes.join]
class_type = "J"
inputs = { before = ["@chain", 0] }
"""
)


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


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", SHIPPED)
def test_hostile_text_changes_no_shipped_graph_but_for_its_own_fields(
    workflows: dict[str, Workflow], name: str, text: str
) -> None:
    workflow = workflows[name]
    texts = {n for n, v in workflow.variables.items() if v.type in ("text", "image", "audio")}
    windows = 2 if workflow.windows else 1
    plain = filled(workflow, windows, **{n: f"<{n}>" for n in texts})
    graph = filled(workflow, windows, **{n: f"{text}{n}" for n in texts})
    assert json.loads(json.dumps(graph)) == graph
    assert set(graph) == set(plain)
    for node, body in graph.items():
        assert body["class_type"] == plain[node]["class_type"]
        for field, value in body["inputs"].items():
            was = plain[node]["inputs"][field]
            known = isinstance(was, str) and was[0] == "<"
            assert value == (f"{text}{was[1:-1]}" if known else was), f"{node}.{field}"


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
        ({**GRAPH, "1": {"class_type": 7, "inputs": {}}}, COMPANION, "no graph"),
        (
            GRAPH,
            COMPANION.replace("max = 100", "max = 1\ndefault = 7"),
            "the default 7; expected a whole",
        ),
        (GRAPH, COMPANION.replace("SEED]", "FRAMES_TOTAL]"), "no declaration of {{SEED}}"),
        (NO_SEED, COMPANION.replace("[variables.SEED]", "[variables.STEPS]"), "no [variables.SEED]"),
        (GRAPH, LORAS.replace('after = "2"', 'after = "7"'), "variables.LORAS.after = '7'"),
        (GRAPH, LORAS.replace("[variables.LORAS]", "[variables.SEED]"), "TOML that does not parse"),
        ({**GRAPH, "3": {"class_type": "X", "inputs": {"l": "{{LORAS}}"}}}, LORAS, "{{LORAS}} in the graph"),
        (GRAPH, COMPANION + '[[models]]\nfolder = "vae"\nfile = "{{VAE}}"', "the model file {{VAE}}"),
        (GRAPH, COMPANION + '[[nodes]]\npack = "P"\nurl = ""\nclasses = ["Y"]', "the class Y of P"),
        (GRAPH, WINDOWS.replace("@chain", "@other"), "linked to '@other'"),
        (GRAPH, WINDOWS.replace('chain = "join"', 'chain = "jion"'), "windows.chains.chain = 'jion'"),
        (GRAPH, WINDOWS.replace('chain = "1"', 'chain = "7"'), "windows.start.chain = '7'"),
        (GRAPH, WINDOWS.replace('class_type = "J"\n', ""), "join is no node"),
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


def filled(workflow: Workflow, windows: int = 1, **given: Any) -> Any:
    values: dict[str, Any] = {"POSITIVE_PROMPT": "a tree", "SEED": 5, "FILENAME_PREFIX": "p"}
    if workflow.needs_image:
        values["IMAGE"] = "in.png"
    if workflow.needs_audio:
        values["AUDIO"] = "in.wav"
    return workflow.render(values | given, windows)


@pytest.mark.parametrize("name", SHIPPED)
def test_draft_host_takes_every_shipped_graph(workflows: dict[str, Workflow], name: str) -> None:
    signatures = with_models(draft_signatures(), workflows)
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


def test_longcat_windows_overlap_by_thirteen_frames_and_cover_the_narration(
    workflows: dict[str, Workflow],
) -> None:
    avatar = workflows["longcat_avatar"]
    for seconds, windows, frames in ((1.0, 1, 93), (3.72, 1, 93), (3.73, 2, 173), (10.0, 3, 253)):
        assert avatar.windows_for(seconds) == windows
        scene = scene_of(filled(avatar, windows), avatar.output)
        assert (scene.frames, scene.fps, scene.prompt, scene.speaks) == (frames, 25, "a tree", True)
    graph = filled(avatar, 3)
    embeds = [body["inputs"] for body in graph.values() if body["class_type"].endswith("ExtendEmbeds")]
    assert [(e["overlap"], e["frames_processed"]) for e in embeds] == [(1, 0), (13, 93), (13, 173)]
    assert "ref_latent" not in embeds[0], "with a reference and no window before, the node fails"
    assert graph["7"]["inputs"]["num_frames"] == 253, "the sound is taken up to the last window"
    with pytest.raises(BadInput, match="at most 39 s"):
        avatar.windows_for(40)


def test_each_longcat_window_goes_on_from_the_one_before(workflows: dict[str, Workflow]) -> None:
    graph = filled(workflows["longcat_avatar"], 3)
    assert graph["extend-2"]["inputs"]["prev_latents"] == ["17", 0]
    assert graph["extend-3"]["inputs"]["prev_latents"] == ["sampler-2", 0]
    assert graph["extend-3"]["inputs"]["prev_images"] == ["decode-2", 0]
    assert graph["join-2"]["inputs"]["source_images"] == ["18", 0]
    assert graph["join-3"]["inputs"]["source_images"] == ["join-2", 2]
    assert graph["19"]["inputs"]["images"] == ["join-3", 2]
    assert graph["18"]["inputs"]["samples"] == ["17", 0], "the first window is decoded from its own samples"


def test_avatar_that_cannot_grow_refuses_a_narration_longer_than_itself(tmp_path: Path) -> None:
    companion = COMPANION.replace('"image"', '"avatar"') + "[length]\nfps = 10\nframes = 20\n"
    workflow = write(tmp_path, GRAPH, companion)
    assert workflow.windows_for(2.0) == 1
    with pytest.raises(BadInput, match="at most 2 s"):
        workflow.windows_for(2.1)


def test_seconds_follow_size_frames_steps_and_card(workflows: dict[str, Workflow]) -> None:
    avatar = workflows["longcat_avatar"]
    assert avatar.seconds(832, 480, 105) == 600
    assert avatar.seconds(832, 480, 210, steps=5) == 600
    assert avatar.seconds(960, 544, 101, steps=24, card="rtx 3090") == 2120
    assert avatar.seconds(832, 480, 105, card="never heard of") == 600
    assert [round(estimate.seconds_per_step) for estimate in avatar.estimates] == [60, 88]


def test_an_estimate_may_be_one_table(tmp_path: Path) -> None:
    one = write(tmp_path, GRAPH, COMPANION)
    many = write(tmp_path, GRAPH, COMPANION.replace("[estimate]", "[[estimate]]"))
    assert one.estimate == many.estimate
    with pytest.raises(BadInput, match="estimate"):
        write(tmp_path, GRAPH, COMPANION.replace("[estimate]", "[[models]]"))


def test_models_are_those_that_the_variables_name(workflows: dict[str, Workflow]) -> None:
    workflow = workflows["wan_i2v"]
    standard = {model.file: model for model in workflow.models_for({})}
    assert "Wan2.2-I2V-A14B-LowNoise-Q4_K_M.gguf" in standard
    chosen = {m.file: m for m in workflow.models_for({"LOW_NOISE_UNET": "mine.gguf"})}
    assert "Wan2.2-I2V-A14B-LowNoise-Q4_K_M.gguf" not in chosen
    assert (chosen["mine.gguf"].folder, chosen["mine.gguf"].url) == ("unet", "")


def test_every_shipped_model_file_has_an_address(workflows: dict[str, Workflow]) -> None:
    for workflow in workflows.values():
        assert all(model.url.startswith("https://") for model in workflow.models_for({})), workflow.name


def test_only_longcat_is_unverified(workflows: dict[str, Workflow]) -> None:
    assert [name for name, workflow in workflows.items() if workflow.doubts] == ["longcat_avatar"]


def test_takes_that_were_paid_for_keep_their_keys(workflows: dict[str, Workflow]) -> None:
    """A changed hash makes every picture of the workflow anew, in every batch: change it knowingly or not at all."""
    assert {name: workflow.sha256[:12] for name, workflow in workflows.items()} == {
        "flux_dev": "0d3ea27a5be9",
        "longcat_avatar": "984372679806",
        "wan_i2v": "5db3f1ff6d88",
        "wan_i2v_fp8": "2afaedab1a51",
        "wan_s2v": "f0f803cc4cf7",
        "wan_t2v": "75c7753e26eb",
    }
    values = {"POSITIVE_PROMPT": "x", "STEPS": 20}
    plain = {"workflow": workflows["flux_dev"].sha256, "variables": values}
    assert workflows["flux_dev"].material({**values, "LORAS": ()}) == plain
    assert canonical(plain) == canonical(workflows["flux_dev"].material(values))
