import copy
from collections.abc import Callable
from typing import Any

import pytest

from callsheet.errors import BadInput, HostLacks
from callsheet.loras import parse_loras
from callsheet.preflight import (
    Finding,
    Kind,
    Signatures,
    check_graph,
    check_workflow,
    choices_of,
    find_cycle,
    host_fault,
    shipped_signatures,
)
from callsheet.workflow import Workflow
from gpu_service.app import draft_signatures
from gpu_service.comfyui import with_models
from tests.callsheet.test_workflow import SHIPPED, filled


@pytest.fixture
def host(workflows: dict[str, Workflow]) -> Signatures:
    """A server that has every file of the workflows, and all nodes whose signatures are at hand."""
    bare = {name: workflow.model_copy(update={"nodes": ()}) for name, workflow in workflows.items()}
    nodes = with_models(draft_signatures(), bare)
    nodes["LoraLoaderModelOnly"]["input"]["required"]["lora_name"] = [
        [m.file for w in workflows.values() for m in w.models_for({}) if m.folder == "loras"]
    ]
    return Signatures(nodes, "a10-1")


@pytest.fixture
def flux(workflows: dict[str, Workflow]) -> Any:
    return filled(workflows["flux_dev"])


def kinds(findings: list[Finding]) -> list[Kind]:
    return [finding.kind for finding in findings]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_workflow_passes_the_signatures_of_a_real_comfyui(
    workflows: dict[str, Workflow], name: str
) -> None:
    """As declared, with all that its variables may be; only nodes without a signature are left out, and named."""
    findings = check_workflow(workflows[name], shipped_signatures())
    assert kinds(findings) == ([Kind.NOT_CHECKED] if name == "longcat_avatar" else [])


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("windows", [1, 3])
def test_shipped_graph_passes_when_it_is_filled(
    workflows: dict[str, Workflow], host: Signatures, name: str, windows: int
) -> None:
    workflow = workflows[name]
    graph = filled(workflow, windows if workflow.windows else 1)
    findings = check_graph(graph, host, workflow)
    if name == "longcat_avatar":
        assert kinds(findings) == [Kind.UNKNOWN_NODE], "what the file does hold of it passes"
        fault = host_fault(findings, "a10-1/comfyui")
        assert isinstance(fault, HostLacks)
        assert "install or update ComfyUI-WanVideoWrapper: https://github.com/kijai/" in str(fault)
    else:
        assert findings == []


def test_lists_of_loras_pass_with_their_nodes(workflows: dict[str, Workflow]) -> None:
    for workflow in workflows.values():
        lists = {
            n: parse_loras("a.pt:10; b.pt:-10") for n, v in workflow.variables.items() if v.type == "loras"
        }
        findings = check_workflow(workflow, shipped_signatures(), lists)
        assert [f for f in findings if f.kind is not Kind.NOT_CHECKED] == []


Break = Callable[[Any], Any]
#: How flux_dev's filled graph is broken, what is found, and what the message says.
BROKEN: list[tuple[Break, Kind, str]] = [
    (lambda g: g["7"].update(class_type="KSamplr"), Kind.UNKNOWN_NODE, "no node KSamplr there; update ComfyUI, or declare"),
    (lambda g: g["7"].pop("class_type"), Kind.BAD_NODE, "node 7: no class_type and inputs"),
    (lambda g: g["7"]["inputs"].pop("steps"), Kind.MISSING_INPUT, "node 7 (KSampler): no value for steps"),
    (lambda g: g["7"]["inputs"].update(stepz=1), Kind.UNKNOWN_INPUT, "node 7 (KSampler): it has no input stepz"),
    (lambda g: g["8"]["inputs"].update(samples=["99", 0]), Kind.BAD_LINK, "samples is linked to node 99, which is not there"),
    (lambda g: g["8"]["inputs"].update(samples=["7", 1]), Kind.BAD_LINK, "to output 1 of node 7 (KSampler), which has 1"),
    (lambda g: g["8"]["inputs"].update(samples=["7"]), Kind.BAD_LINK, "samples is ['7']; expected a link"),
    (lambda g: g["8"]["inputs"].update(samples=[7, 0]), Kind.BAD_LINK, "samples is [7, 0]; expected a link"),
    (lambda g: g["8"]["inputs"].update(samples=["3", 0]), Kind.LINK_TYPE, "samples takes LATENT; node 3 (VAELoader) gives VAE"),
    (lambda g: g["8"]["inputs"].update(samples="latent"), Kind.NOT_LINKED, "samples is 'latent'; expected a link to a node"),
    (lambda g: g["7"]["inputs"].update(steps="many"), Kind.WRONG_TYPE, "steps is 'many'; expected a whole number"),
    (lambda g: g["7"]["inputs"].update(cfg={}), Kind.WRONG_TYPE, "cfg is {}; expected a number"),
    (lambda g: g["6"]["inputs"].update(width=8), Kind.OUT_OF_RANGE, "width is 8; expected at least 16"),
    (lambda g: g["7"]["inputs"].update(denoise=1.5), Kind.OUT_OF_RANGE, "denoise is 1.5; expected at most 1"),
    (lambda g: g["7"]["inputs"].update(scheduler="simpel"), Kind.NOT_IN_LIST, "scheduler is 'simpel'; expected one of simple, sgm_uniform"),
    (lambda g: g["3"]["inputs"].update(vae_name="mine.pt"), Kind.MISSING_MODEL, "models/vae/mine.pt is not there; no address"),
    (lambda g: g["4"]["inputs"].update(clip=["4", 0]), Kind.CYCLE, "nodes 4 → 4: they take from each other in a circle"),
    (lambda g: g.pop("9"), Kind.NO_OUTPUT, "no node saves anything"),
]  # fmt: skip


@pytest.mark.parametrize(("breaks", "kind", "message"), BROKEN)
def test_broken_graph_is_found_out(
    host: Signatures, flux: Any, breaks: Break, kind: Kind, message: str
) -> None:
    breaks(flux)
    found = check_graph(flux, host)
    assert kind in kinds(found)
    told = next(finding for finding in found if finding.kind is kind)
    assert message in told.message
    assert "\n" not in told.message


def test_whole_graph_has_no_findings_without_its_workflow(host: Signatures, flux: Any) -> None:
    assert check_graph(flux, host) == []


def test_missing_model_is_named_with_folder_size_and_address(workflows: dict[str, Workflow]) -> None:
    bare = Signatures(draft_signatures(), "a10-1")
    findings = check_graph(filled(workflows["wan_i2v"]), bare, workflows["wan_i2v"])
    assert set(kinds(findings)) == {Kind.MISSING_MODEL}
    assert len(findings) == 6
    assert findings[0].message == (
        "node 95 (UnetLoaderGGUF): models/unet/Wan2.2-I2V-A14B-HighNoise-Q4_K_M.gguf is not there; "
        "get it (9.6 GB) from https://huggingface.co/QuantStack/Wan2.2-I2V-A14B-GGUF"
    )


def test_file_that_a_variable_names_is_what_is_looked_for(
    workflows: dict[str, Workflow], host: Signatures
) -> None:
    chosen = {"LOW_NOISE_UNET": "mine.gguf", "LOW_NOISE_LORAS": parse_loras("style.pt")}
    findings = check_workflow(workflows["wan_i2v"], host, chosen)
    assert [finding.message.split(": ", 1)[1] for finding in findings] == [
        "models/unet/mine.gguf is not there; no address is declared for it",
        "models/loras/style.pt is not there; no address is declared for it",
    ]


def test_file_in_a_subfolder_is_pointed_at(host: Signatures, flux: Any) -> None:
    host.nodes["VAELoader"]["input"]["required"]["vae_name"][0] = ["flux\\ae.safetensors"]
    (finding,) = check_graph(flux, host)
    assert finding.message.endswith("is not there, but flux\\ae.safetensors is: give that name")


def test_missing_pack_is_named_once_with_all_its_nodes(
    workflows: dict[str, Workflow], host: Signatures
) -> None:
    del host.nodes["UnetLoaderGGUF"]  # type: ignore[attr-defined]
    (finding,) = check_workflow(workflows["wan_i2v"], host)
    assert (finding.kind, finding.weight) == (Kind.UNKNOWN_NODE, "missing")
    assert finding.message == (
        "no node UnetLoaderGGUF there; install or update ComfyUI-GGUF: https://github.com/city96/ComfyUI-GGUF"
    )


def test_range_and_choices_of_a_variable_must_be_within_the_nodes_own(workflows: dict[str, Workflow]) -> None:
    workflow = workflows["flux_dev"]

    def with_variable(name: str, **changed: Any) -> Workflow:
        variable = workflow.variables[name].model_copy(update=changed)
        return workflow.model_copy(update={"variables": {**workflow.variables, name: variable}})

    def messages(changed: Workflow) -> list[str]:
        return [finding.message for finding in check_workflow(changed, shipped_signatures())]

    assert messages(with_variable("STEPS", max=20000)) == [
        "node 7 (KSampler): steps may be 20000 ({{STEPS}}); expected at most 10000"
    ]
    assert (
        "weight_dtype may be 'fp4' ({{WEIGHT_DTYPE}}); expected one of default"
        in messages(with_variable("WEIGHT_DTYPE", choices=("fp4",)))[0]
    )
    assert messages(with_variable("SEED", max=2**64)) == [
        f"node 7 (KSampler): seed may be {2**64} ({{{{SEED}}}}); expected at most {2**64 - 1}"
    ]


def test_declared_output_must_save(workflows: dict[str, Workflow]) -> None:
    workflow = workflows["flux_dev"].model_copy(update={"output": "8"})
    (finding,) = check_workflow(workflow, shipped_signatures())
    assert (finding.kind, finding.node) == (Kind.NO_OUTPUT, "8")


def test_wrong_comes_before_missing_as_no_other_host_would_mend_it(host: Signatures, flux: Any) -> None:
    flux["3"]["inputs"]["vae_name"] = "mine.pt"
    assert isinstance(host_fault(check_graph(flux, host), "h/comfyui"), HostLacks)
    flux["6"]["inputs"]["width"] = 8
    fault = host_fault(check_graph(flux, host), "h/comfyui")
    assert isinstance(fault, BadInput)
    assert str(fault) == "h/comfyui: node 6 (EmptySD3LatentImage): width is 8; expected at least 16"


def test_notes_alone_are_no_fault(host: Signatures, flux: Any) -> None:
    flux["7"]["inputs"]["note"] = "x"
    found = check_graph(flux, host)
    assert [finding.weight for finding in found] == ["note"]
    assert host_fault(found, "h") is None


def test_long_list_of_findings_is_cut_in_the_error() -> None:
    found = [Finding(Kind.BAD_LINK, f"link {n}") for n in range(7)]
    assert str(host_fault(found, "h")) == "h: link 0; link 1; link 2; link 3; link 4; and 2 more"


def test_uploaded_files_are_not_looked_for(workflows: dict[str, Workflow], host: Signatures) -> None:
    host.nodes["LoadImage"]["input"]["required"]["image"][0] = ["another.png"]
    assert check_graph(filled(workflows["wan_i2v"]), host, workflows["wan_i2v"]) == []


@pytest.mark.parametrize(
    ("spec", "choices"),
    [
        ([["a", "b"]], ["a", "b"]),
        ([["a"], {"default": "a"}], ["a"]),
        (["COMBO", {"options": ["a"]}], ["a"]),
        (["COMBO", {}], []),
        (["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "mp4", "inputs": {}}]}], ["mp4"]),
        (["INT", {"min": 1}], None),
        (["MODEL"], None),
        ("STRING", None),
        ([], None),
    ],
)
def test_lists_of_both_generations_are_read(spec: Any, choices: list[str] | None) -> None:
    assert choices_of(spec) == choices


def newer_save_video(nodes: dict[str, Any]) -> None:
    """SaveVideo of recent masters: a dynamic list with inputs behind each choice (facts, 2.6)."""
    codec = ["COMBO", {"options": ["h264", "av1"]}]
    crf = ["INT", {"min": 0, "max": 51}]
    nodes["SaveVideo"]["input"]["required"]["format"] = [
        "COMFY_DYNAMICCOMBO_V3",
        {
            "options": [
                {"key": "mp4", "inputs": {"required": {"codec": codec}, "optional": {"crf": crf}}},
                {"key": "webm", "inputs": {"quality": ["INT", {"min": 1}]}},
            ]
        },
    ]
    nodes["SaveVideo"]["input"]["optional"] = {"codec": ["COMBO", {"options": ["h264"]}]}
    del nodes["SaveVideo"]["input"]["required"]["codec"]


def test_inputs_behind_a_choice_are_checked(workflows: dict[str, Workflow], host: Signatures) -> None:
    newer_save_video(host.nodes)  # type: ignore[arg-type]
    graph = filled(workflows["wan_t2v"])
    assert check_graph(graph, host, workflows["wan_t2v"]) == []
    inputs = graph["50"]["inputs"]
    inputs["format.codec"] = "vp8"
    inputs["format.crf"] = 99
    assert kinds(check_graph(graph, host)) == [Kind.NOT_IN_LIST, Kind.OUT_OF_RANGE]
    del inputs["format.codec"], inputs["format.crf"]
    assert kinds(check_graph(graph, host)) == [Kind.MISSING_INPUT]
    inputs["format"] = "webm"
    assert "format.quality" in check_graph(graph, host)[0].message
    inputs["format"] = "gif"
    assert kinds(check_graph(graph, host)) == [Kind.NOT_IN_LIST]


def test_video_helper_suites_inputs_behind_its_format_are_checked(
    workflows: dict[str, Workflow], host: Signatures
) -> None:
    graph = filled(workflows["longcat_avatar"])
    graph["19"]["inputs"]["crf"] = 101
    graph["19"]["inputs"]["pix_fmt"] = "yuv999"
    found = [f for f in check_graph(graph, host, workflows["longcat_avatar"]) if f.node == "19"]
    assert kinds(found) == [Kind.NOT_IN_LIST, Kind.OUT_OF_RANGE]


def test_types_with_commas_and_stars_fit_what_they_name(host: Signatures, flux: Any) -> None:
    nodes: Any = copy.deepcopy(host.nodes)
    nodes["VAEDecode"]["input"]["required"]["samples"] = ["IMAGE,LATENT", {}]
    assert check_graph(flux, Signatures(nodes, "h")) == []
    nodes["VAEDecode"]["input"]["required"]["samples"] = ["*"]
    assert check_graph(flux, Signatures(nodes, "h")) == []
    nodes["VAEDecode"]["input"]["required"]["samples"] = ["IMAGE,MASK"]
    assert kinds(check_graph(flux, Signatures(nodes, "h"))) == [Kind.LINK_TYPE]


def test_input_that_stands_for_others_needs_no_value_itself(host: Signatures, flux: Any) -> None:
    host.nodes["VAEDecode"]["input"]["required"]["images"] = ["COMFY_AUTOGROW_V3", {"template": {}}]
    assert check_graph(flux, host) == []
    flux["8"]["inputs"]["images.image0"] = ["8", 0]
    assert kinds(check_graph(flux, host)) == [Kind.CYCLE]


@pytest.mark.parametrize(
    "signature",
    [
        {},
        {"input": None, "output": None},
        {"input": {"required": {"steps": "INT"}}},
        {"input": {"required": {"x": []}}},
    ],
)
def test_strange_signatures_of_custom_nodes_do_not_stop_the_check(
    host: Signatures, flux: Any, signature: Any
) -> None:
    nodes = {**host.nodes, "KSampler": signature}
    check_graph(flux, Signatures(nodes, "h"))


@pytest.mark.parametrize(
    "graph", [{}, {"1": None}, {"1": {"class_type": "X"}}, {"1": {"class_type": "X", "inputs": 3}}]
)
def test_what_is_no_graph_is_told_and_does_not_stop_the_check(host: Signatures, graph: Any) -> None:
    assert {Kind.BAD_NODE, Kind.NO_OUTPUT} & set(kinds(check_graph(graph, host)))


def test_prompt_that_looks_like_a_placeholder_is_no_finding(
    workflows: dict[str, Workflow], host: Signatures
) -> None:
    graph = filled(workflows["flux_dev"], POSITIVE_PROMPT="{{SEED}}")
    assert check_graph(graph, host, workflows["flux_dev"]) == []


def test_cycle_is_named_node_by_node_however_long_it_is() -> None:
    def chain(length: int, back_to: int) -> Any:
        links = {n: n + 1 for n in range(length)} | {length: back_to}
        return {str(n): {"class_type": "X", "inputs": {"i": [str(to), 0]}} for n, to in links.items()}

    assert find_cycle(chain(3, 1)) == ["1", "2", "3"]
    assert len(find_cycle(chain(5000, 0))) == 5001, "no recursion"
    straight = chain(5000, 0)
    del straight["5000"]["inputs"]["i"]
    assert find_cycle(straight) == []
