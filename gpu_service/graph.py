"""Reads a ComfyUI graph: validates it as ComfyUI 0.3.64 does, and works out what it asks for.

    problems = validate(graph, signatures)     # None, or ComfyUI's 400 body
    scenes = {node: scene_of(graph, node) for node in output_nodes(graph, signatures)}

A draft does not sample anything; it follows the graph from the node that saves to the nodes that
say prompt, seed, size, frames, first image and sound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

Graph = dict[str, Any]
Signatures = Mapping[str, Any]

#: Inputs through which what is *not* wanted comes; they do not describe the picture.
_NEGATIVE = ("negative", "negative_prompt")
#: ComfyUI hides the list of choices in an error when there are more than this.
_LONGEST_LIST = 20
#: Nodes by which a head comes to move its mouth to a sound.
_SPEAKING = ("WanSoundImageToVideo", "WanVideoLongCatAvatar")
_DECODERS = ("VAEDecode", "WanVideoDecode")


@dataclass(frozen=True)
class Scene:
    """What a graph asks for, as far as a draft can show it.

    ``latents`` counts latent frames: a video model packs four frames into each but the first.
    ``image`` and ``audio`` are names in the input folder.
    """

    prompt: str = ""
    seed: int = 0
    width: int = 512
    height: int = 512
    latents: int = 0
    frames: int = 1
    fps: float = 0.0
    image: str = ""
    audio: str = ""
    speaks: bool = False


def output_nodes(graph: Graph, signatures: Signatures) -> list[str]:
    """The nodes that save something."""
    return [n for n, body in graph.items() if signatures.get(body["class_type"], {}).get("output_node")]


def unseen(class_type: str, pack: str) -> dict[str, Any]:
    """The signature of a node whose own is not at hand: it takes anything, and gives whatever is asked of it."""
    slots = 8
    return {
        "input": {"required": {}, "optional": {}},
        "input_order": {"required": [], "optional": []},
        "output": ["*"] * slots,
        "output_is_list": [False] * slots,
        "output_name": ["*"] * slots,
        "name": class_type,
        "display_name": class_type,
        "python_module": f"custom_nodes.{pack}",
        "category": "draft",
        "output_node": False,
    }


def validate(graph: Graph, signatures: Signatures, inputs: frozenset[str]) -> dict[str, Any] | None:
    """ComfyUI's 400 body, or None where the graph is valid. ``inputs`` are the uploaded files' names."""
    for node, body in graph.items():
        if not isinstance(body, dict) or "class_type" not in body:
            return _refused(
                "invalid_prompt",
                "Cannot execute because a node is missing the class_type property.",
                f"Node ID '#{node}'",
            )
        if body["class_type"] not in signatures:
            return _refused(
                "invalid_prompt",
                f"Cannot execute because node {body['class_type']} does not exist.",
                f"Node ID '#{node}'",
            )
    outputs = output_nodes(graph, signatures)
    if not outputs:
        return _refused("prompt_no_outputs", "Prompt has no outputs", "")
    if _has_cycle(graph):
        return _refused("prompt_outputs_failed_validation", "Prompt outputs failed validation", "")
    problems = {
        node: errors for node in graph if (errors := list(_node_errors(graph, node, signatures, inputs)))
    }
    if not problems:
        return None
    answer = _refused("prompt_outputs_failed_validation", "Prompt outputs failed validation", "")
    answer["node_errors"] = {
        node: {"errors": errors, "dependent_outputs": outputs, "class_type": graph[node]["class_type"]}
        for node, errors in problems.items()
    }
    return answer


def scene_of(graph: Graph, node: str) -> Scene:
    """What the node and all that leads to it ask for."""
    return _scene(graph, node, {})


def _refused(kind: str, message: str, details: str) -> dict[str, Any]:
    return {
        "error": {"type": kind, "message": message, "details": details, "extra_info": {}},
        "node_errors": {},
    }


def _has_cycle(graph: Graph) -> bool:
    """Whether following links leads back to where one came from; ComfyUI 0.3.64 answers that with an empty list."""
    state: dict[str, bool] = {}  # False while a node's sources are being followed, True once they are done
    stack = [(node, False) for node in graph]
    while stack:
        node, followed = stack.pop()
        if followed:
            state[node] = True
        elif state.get(node) is False:
            return True
        elif node not in state:
            state[node] = False
            stack.append((node, True))
            links = [str(v[0]) for v in graph[node]["inputs"].values() if isinstance(v, list) and v]
            if any(state.get(source) is False for source in links):
                return True
            stack += [(source, False) for source in links if source in graph and source not in state]
    return False


def _node_errors(
    graph: Graph, node: str, signatures: Signatures, inputs: frozenset[str]
) -> Iterator[dict[str, Any]]:
    body = graph[node]
    declared = signatures[body["class_type"]]["input"]
    for name in declared.get("required", {}):
        if name not in body["inputs"]:
            yield _error("required_input_missing", "Required input is missing", name, {"input_name": name})
    for name, value in body["inputs"].items():
        spec = declared.get("required", {}).get(name) or declared.get("optional", {}).get(name)
        if spec is None:
            continue  # unknown keys are ignored
        if isinstance(value, list):
            yield from _link_errors(graph, name, value, spec, signatures)
        elif body["class_type"] in ("LoadImage", "LoadAudio"):
            if str(value) not in inputs:
                kind = "image" if name == "image" else "audio"
                details = f"{name} - Invalid {kind} file: {value}"
                yield _error(
                    "custom_validation_failed",
                    "Custom validation failed for node",
                    details,
                    {"input_name": name, "received_value": value},
                )
        else:
            yield from _value_errors(name, value, spec)


def _link_errors(
    graph: Graph, name: str, value: list[Any], spec: list[Any], signatures: Signatures
) -> Iterator[dict[str, Any]]:
    if len(value) != 2:
        yield _error(
            "bad_linked_input",
            "Bad linked input, must be a length-2 list of [node_id, slot_index]",
            name,
            {"input_name": name, "received_value": value},
        )
        return
    source, slot = str(value[0]), value[1]
    if source not in graph:
        yield _error(
            "exception_during_validation",
            "Exception when validating node",
            f"'{source}'",
            {"input_name": name, "exception_type": "KeyError"},
        )
        return
    types = signatures[graph[source]["class_type"]]["output"]
    received = types[slot] if slot < len(types) else None
    if received != spec[0] and "*" not in (received, spec[0]):
        details = f"{name}, received_type({received}) mismatch input_type({spec[0]})"
        yield _error(
            "return_type_mismatch",
            "Return type mismatch between linked nodes",
            details,
            {"input_name": name, "received_type": received, "linked_node": value},
        )


def _value_errors(name: str, value: Any, spec: list[Any]) -> Iterator[dict[str, Any]]:
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    extra = {"input_name": name, "input_config": spec, "received_value": value}
    if isinstance(kind, list) or kind == "COMBO":
        choices = kind if isinstance(kind, list) else options.get("options", [])
        if value not in choices:
            shown = f"{choices}" if len(choices) <= _LONGEST_LIST else f"(list of length {len(choices)})"
            extra["input_config"] = spec if len(choices) <= _LONGEST_LIST else None
            yield _error("value_not_in_list", "Value not in list", f"{name}: '{value}' not in {shown}", extra)
        return
    if kind not in ("INT", "FLOAT"):
        return
    try:
        number = int(value) if kind == "INT" else float(value)
    except (TypeError, ValueError) as error:
        yield _error(
            "invalid_input_type",
            f"Failed to convert an input value to a {kind} value",
            f"{name}, {value}, {error}",
            extra,
        )
        return
    if "min" in options and number < options["min"]:
        yield _error(
            "value_smaller_than_min", f"Value {number} smaller than min of {options['min']}", name, extra
        )
    if "max" in options and number > options["max"]:
        yield _error(
            "value_bigger_than_max", f"Value {number} bigger than max of {options['max']}", name, extra
        )


def _error(kind: str, message: str, details: str, extra: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def _scene(graph: Graph, node: str, known: dict[str, Scene]) -> Scene:
    if node in known:
        return known[node]
    body = graph[node]
    sources = {
        name: _scene(graph, str(value[0]), known)
        for name, value in body["inputs"].items()
        if isinstance(value, list) and name not in _NEGATIVE
    }
    merged = Scene()
    for source in sources.values():
        merged = _merge(merged, source)
    known[node] = _applied(body["class_type"], body["inputs"], sources, merged)
    return known[node]


def _merge(first: Scene, second: Scene) -> Scene:
    """Both, the first's word holding where both say something."""
    blank = Scene()
    changes = {
        name: value
        for name, value in vars(second).items()
        if value != getattr(blank, name) and getattr(first, name) == getattr(blank, name)
    }
    return replace(first, **changes)


def _applied(kind: str, inputs: dict[str, Any], sources: dict[str, Scene], scene: Scene) -> Scene:
    """The scene after the node: what its own widgets say, and what it does to the number of frames."""
    changes: dict[str, Any] = {}
    for widget, attribute in _WIDGETS.items():
        if widget in inputs and not isinstance(inputs[widget], list):
            changes[attribute] = inputs[widget]
    if kind not in ("LoadImage", "LoadAudio"):
        changes.pop("image", None)
        changes.pop("audio", None)
    if kind == "KSamplerAdvanced" and inputs.get("add_noise") == "disable":
        changes.pop("seed", None)  # the second sampler goes on from the first one's noise
    if "width" in changes and "height" in changes:
        # Latents are eighths of a pixel size; video models take pairs of them.
        grid = 16 if "length" in inputs else 8
        changes["width"] = int(changes["width"]) // grid * grid
        changes["height"] = int(changes["height"]) // grid * grid
    if kind != "ImageFromBatch" and (frames := inputs.get("length", inputs.get("num_frames"))):
        changes["latents"] = (int(frames) - 1) // 4 + 1
    return _counted(kind, inputs, sources, replace(scene, **changes))


_WIDGETS = {
    "text": "prompt",
    "t5xxl": "prompt",
    "positive_prompt": "prompt",
    "seed": "seed",
    "noise_seed": "seed",
    "width": "width",
    "height": "height",
    "fps": "fps",
    "frame_rate": "fps",
    "image": "image",
    "audio": "audio",
}


def _counted(kind: str, inputs: dict[str, Any], sources: dict[str, Scene], scene: Scene) -> Scene:
    """The scene with the frames that the node adds, takes away or decodes."""
    if kind.startswith(_SPEAKING):
        return replace(scene, speaks=True)
    if kind == "LatentConcat":
        return replace(scene, latents=sources["samples1"].latents + sources["samples2"].latents)
    if kind == "LatentCut":
        return replace(scene, latents=min(int(inputs["amount"]), scene.latents))
    if kind == "ImageBatchExtendWithOverlap" and "new_images" in sources:
        joined = sources["source_images"].frames + sources["new_images"].frames - int(inputs["overlap"])
        return replace(scene, frames=joined)
    if kind.startswith(_DECODERS):
        return replace(scene, frames=4 * (scene.latents - 1) + 1 if scene.latents else 1)
    if kind == "ImageFromBatch":
        left = scene.frames - int(inputs["batch_index"])
        return replace(scene, frames=max(1, min(left, int(inputs["length"]))))
    return scene
