"""Checks a graph before it is sent, against what a server's ``/object_info`` says of its nodes.

    findings = check_graph(graph, Signatures(await comfy.object_info(), "a10-1"), workflow)
    if fault := host_fault(findings, "a10-1/comfyui"):
        raise fault                                     # HostLacks names the pack, the file, its address

    check_workflow(workflow, shipped_signatures())      # offline: the graph as it is declared, not filled

ComfyUI itself answers a bad graph with 400, but says neither where a missing file is to be had nor which pack a
missing node is in, and it ignores what it does not know. Nothing here talks to a server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from callsheet.declaration import Model, NodePack, is_node
from callsheet.errors import BadInput, CallsheetError, HostLacks
from callsheet.workflow import COUNTERS, PLACEHOLDER, Graph, Value, Workflow, is_link

#: ``/object_info`` of ComfyUI 0.3.64 with ComfyUI-GGUF, VideoHelperSuite and KJNodes: the nodes of the shipped
#: workflows and others that exported graphs often have, unchanged, but for the lists of files, which are empty.
SHIPPED_SIGNATURES = Path(__file__).with_name("comfyui_signatures.json")

#: Which input of which node names a model file, and in which folder under ``models/`` ComfyUI looks for it.
MODEL_FOLDERS: Mapping[tuple[str, str], str] = {
    ("AudioEncoderLoader", "audio_encoder_name"): "audio_encoders",
    ("CheckpointLoaderSimple", "ckpt_name"): "checkpoints",
    ("CLIPLoader", "clip_name"): "text_encoders",
    ("CLIPLoaderGGUF", "clip_name"): "text_encoders",
    ("CLIPVisionLoader", "clip_name"): "clip_vision",
    ("ControlNetLoader", "control_net_name"): "controlnet",
    ("DualCLIPLoader", "clip_name1"): "text_encoders",
    ("DualCLIPLoader", "clip_name2"): "text_encoders",
    ("DualCLIPLoaderGGUF", "clip_name1"): "text_encoders",
    ("DualCLIPLoaderGGUF", "clip_name2"): "text_encoders",
    ("LoadWanVideoT5TextEncoder", "model_name"): "text_encoders",
    ("LoraLoader", "lora_name"): "loras",
    ("LoraLoaderModelOnly", "lora_name"): "loras",
    ("MelBandRoFormerModelLoader", "model_name"): "diffusion_models",
    ("UNETLoader", "unet_name"): "diffusion_models",
    ("UnetLoaderGGUF", "unet_name"): "unet",
    ("UnetLoaderGGUFAdvanced", "unet_name"): "unet",
    ("UpscaleModelLoader", "model_name"): "upscale_models",
    ("VAELoader", "vae_name"): "vae",
    ("WanVideoLoraSelect", "lora"): "loras",
    ("WanVideoModelLoader", "model"): "diffusion_models",
    ("WanVideoTextEncodeCached", "model_name"): "text_encoders",
    ("WanVideoVAELoader", "model_name"): "vae",
    ("Wav2VecModelLoader", "model"): "wav2vec2",
    ("WhisperModelLoader", "model"): "audio_encoders",
}
#: Endings that tell a model file in the nodes that we do not know.
MODEL_ENDINGS = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin", ".onnx")
#: Types that only another node can give; a value in their place passes ComfyUI's check and fails when run.
_SOCKETS = frozenset(
    "AUDIO AUDIO_ENCODER AUDIO_ENCODER_OUTPUT CLIP CLIP_VISION CLIP_VISION_OUTPUT CONDITIONING CONTROL_NET "
    "GUIDER IMAGE LATENT MASK MODEL NOISE SAMPLER SIGMAS VAE VIDEO".split()
)
#: Options of a list of files that a client uploads: what is in it now says nothing.
_UPLOADS = ("image_upload", "audio_upload", "video_upload", "file_upload")
_SHOWN_CHOICES = 8
_SHOWN_FINDINGS = 5

Weight = Literal["missing", "wrong", "note"]


class Kind(StrEnum):
    """What was found. `WEIGHTS` says which are the host's lack, which the graph's mistake."""

    UNKNOWN_NODE = "unknown_node"
    MISSING_MODEL = "missing_model"
    BAD_NODE = "bad_node"
    MISSING_INPUT = "missing_input"
    BAD_LINK = "bad_link"
    LINK_TYPE = "link_type"
    NOT_LINKED = "not_linked"
    WRONG_TYPE = "wrong_type"
    OUT_OF_RANGE = "out_of_range"
    NOT_IN_LIST = "not_in_list"
    CYCLE = "cycle"
    NO_OUTPUT = "no_output"
    UNKNOWN_INPUT = "unknown_input"
    NOT_CHECKED = "not_checked"


#: A missing node or file is the host's; all else is the graph's, but for notes, which stop nothing.
WEIGHTS: Mapping[Kind, Weight] = {
    **dict.fromkeys(Kind, "wrong"),
    Kind.UNKNOWN_NODE: "missing",
    Kind.MISSING_MODEL: "missing",
    Kind.UNKNOWN_INPUT: "note",
    Kind.NOT_CHECKED: "note",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is missing, wrong or worth a note. ``message`` is one line that names node and input."""

    kind: Kind
    message: str
    node: str = ""
    class_type: str = ""
    input: str = ""

    @property
    def weight(self) -> Weight:
        return WEIGHTS[self.kind]


@dataclass(frozen=True)
class Signatures:
    """What a server says of its nodes.

    Attributes:
        nodes: class name to its signature, as ``/object_info`` gives it.
        source: whose they are, for people.
        complete: whether a class or file that is not in them is not there; not so of the shipped ones.
    """

    nodes: Mapping[str, Any]
    source: str
    complete: bool = True


def shipped_signatures() -> Signatures:
    """The signatures that come with Callsheet."""
    nodes = json.loads(SHIPPED_SIGNATURES.read_text("utf-8"))
    return Signatures(nodes, "ComfyUI 0.3.64", complete=False)


def check_workflow(
    workflow: Workflow, signatures: Signatures, values: Mapping[str, Value] | None = None
) -> list[Finding]:
    """Checks a workflow as it is declared, grown by one window where it grows: each variable with its value of
    ``values`` or its default, and with the ends of its range and all its choices."""
    graph = workflow.with_loras(workflow.grown(2 if workflow.windows else 1), values or {})
    return check_graph(graph, signatures, workflow, values)


def check_graph(
    graph: Graph,
    signatures: Signatures,
    workflow: Workflow | None = None,
    values: Mapping[str, Value] | None = None,
) -> list[Finding]:
    """Checks a graph, filled or not.

    Args:
        workflow: whose declaration names packs and files, and what may stand for placeholders.
        values: what the placeholders of a graph that is not filled are to be.

    Returns:
        What was found, each once: first what is missing, then what is wrong, then notes.
    """
    found = dict.fromkeys(_Check(graph, signatures, workflow, values or {}).findings())
    order: tuple[Weight, ...] = ("missing", "wrong", "note")
    return sorted(found, key=lambda finding: order.index(finding.weight))


def host_fault(findings: Iterable[Finding], host: str) -> CallsheetError | None:
    """The error that findings mean for a host: BadInput where the graph is wrong, HostLacks where only
    something is missing there, None where there are only notes."""
    wrong = [finding.message for finding in findings if finding.weight == "wrong"]
    missing = [finding.message for finding in findings if finding.weight == "missing"]
    if wrong:
        return BadInput(f"{host}: {_joined(wrong)}")
    return HostLacks(f"{host} lacks what the graph needs: {_joined(missing)}") if missing else None


def choices_of(spec: Any) -> list[Any] | None:
    """What an input's list allows; None where the input is no list.

    A list is ``[[…], {…}]`` (V1), ``["COMBO", {"options": […]}]`` or, with inputs of its own behind each choice,
    ``["COMFY_DYNAMICCOMBO…", {"options": [{"key": …}]}]`` (V3).
    """
    kind, options = _kind_of(spec), options_of(spec)
    if isinstance(kind, list):
        return kind
    if kind == "COMBO":
        return list(options.get("options") or ())
    if _is_dynamic_combo(kind):
        return [o.get("key") if isinstance(o, dict) else o for o in options.get("options") or ()]
    return None


def options_of(spec: Any) -> dict[str, Any]:
    """An input's options (default, min, max, …); none where the signature gives none."""
    return spec[1] if isinstance(spec, list) and len(spec) > 1 and isinstance(spec[1], dict) else {}


def inputs_of(
    signature: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The required and the optional inputs of a node, with those that its choices bring with them."""
    declared = signature.get("input") or {}
    required, optional = dict(declared.get("required") or {}), dict(declared.get("optional") or {})
    waiting = list({**optional, **required}.items())
    while waiting:
        name, spec = waiting.pop()
        more_required, more_optional = _inputs_behind(name, spec, given.get(name))
        required |= more_required
        optional |= more_optional
        waiting += [*more_required.items(), *more_optional.items()]
    return required, optional


def saves(signature: Mapping[str, Any]) -> bool:
    """Whether a node of this signature saves something."""
    return bool(signature.get("output_node"))


def find_cycle(graph: Graph) -> list[str]:
    """The nodes of a circle, in the order of their links; nothing where there is none."""
    state: dict[str, bool] = {}  # False while what a node takes from is followed, True once it is done
    for start in graph:
        path: list[tuple[str, Iterator[str]]] = [] if start in state else [(start, _sources(graph, start))]
        state.setdefault(start, False)
        while path:
            node, sources = path[-1]
            source = next(sources, None)
            if source is None:
                state[node] = True
                path.pop()
            elif state.get(source) is False:
                nodes = [name for name, _ in path]
                return nodes[nodes.index(source) :]
            elif source not in state:
                state[source] = False
                path.append((source, _sources(graph, source)))
    return []


def _sources(graph: Graph, node: str) -> Iterator[str]:
    body = graph[node]
    values = body["inputs"].values() if is_node(body) else ()
    return (value[0] for value in values if is_link(value) and value[0] in graph)


def _joined(messages: list[str]) -> str:
    more = len(messages) - _SHOWN_FINDINGS
    return "; ".join(messages[:_SHOWN_FINDINGS]) + (f"; and {more} more" if more > 0 else "")


def _kind_of(spec: Any) -> Any:
    if isinstance(spec, list):
        return spec[0] if spec else None
    return spec


def _is_dynamic_combo(kind: Any) -> bool:
    return isinstance(kind, str) and kind.startswith("COMFY_DYNAMICCOMBO")


def _inputs_behind(name: str, spec: Any, value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The required and optional inputs that a choice brings: V3's ``format.codec``, VideoHelperSuite's ``crf``."""
    options = options_of(spec)
    if _is_dynamic_combo(_kind_of(spec)):
        chosen = (o for o in options.get("options") or () if isinstance(o, dict) and o.get("key") == value)
        inputs = next(chosen, {}).get("inputs") or {}
        parts = inputs if {"required", "optional"} & inputs.keys() else {"required": inputs}
        required, optional = (
            {f"{name}.{n}": s for n, s in (parts.get(part) or {}).items()}
            for part in ("required", "optional")
        )
        return required, optional
    formats = options.get("formats")
    widgets = formats.get(value) if isinstance(formats, dict) and isinstance(value, str) else None
    # The node fills in what is not given, so none of them is required.
    known = [w for w in widgets or () if isinstance(w, list) and len(w) > 1 and isinstance(w[0], str)]
    return {}, {widget[0]: widget[1:] for widget in known}


def _fits(given: Any, taken: Any) -> bool:
    """Whether an output's type may go where an input takes ``taken``; types of V3 can be several, with commas."""
    if not isinstance(given, str) or not isinstance(taken, str):
        return True  # a list of choices as a type: ComfyUI lets it pass
    if "*" in (given, taken) or given.startswith("COMFY_") or taken.startswith("COMFY_"):
        return True
    return bool({part.strip() for part in given.split(",")} & {part.strip() for part in taken.split(",")})


@dataclass(frozen=True)
class _Place:
    """An input of a node, as messages name it."""

    node: str
    class_type: str
    input: str = ""

    def __str__(self) -> str:
        return f"node {self.node} ({self.class_type})"

    def finding(self, kind: Kind, message: str) -> Finding:
        return Finding(kind, f"{self}: {message}", self.node, self.class_type, self.input)


@dataclass(frozen=True)
class _Candidate:
    """A value of an input, or one of those that its variable may have."""

    value: Any
    variable: str = ""

    def __str__(self) -> str:
        return f"may be {self.value!r} ({{{{{self.variable}}}}})" if self.variable else f"is {self.value!r}"


class _Check:
    """One check of one graph."""

    def __init__(
        self,
        graph: Graph,
        signatures: Signatures,
        workflow: Workflow | None,
        values: Mapping[str, Value],
    ) -> None:
        self.graph = graph
        self.signatures = signatures
        self.workflow = workflow
        self.values = values
        self.models = workflow.models_for(values) if workflow else ()

    def findings(self) -> Iterator[Finding]:
        yield from self._class_findings()
        for node, body in self.graph.items():
            if is_node(body):
                yield from self._node_findings(node, body)
            else:
                message = f"node {node}: no class_type and inputs; expected a node of the API format"
                yield Finding(Kind.BAD_NODE, message, node)
        if cycle := find_cycle(self.graph):
            circle = " → ".join([*cycle, cycle[0]])
            yield Finding(Kind.CYCLE, f"nodes {circle}: they take from each other in a circle", cycle[0])
        yield from self._output_findings()

    def _class_findings(self) -> Iterator[Finding]:
        """The classes that the signatures do not have: one finding for each pack, as one installation mends it."""
        first = {body["class_type"]: node for node, body in reversed(self.graph.items()) if is_node(body)}
        unknown: dict[NodePack | str, list[str]] = {}
        for class_type in sorted(c for c in first if c not in self.signatures.nodes):
            pack = self.workflow.pack_of(class_type) if self.workflow else None
            unknown.setdefault(pack or class_type, []).append(class_type)
        for pack_or_class, classes in unknown.items():
            names, node = ", ".join(classes), first[classes[0]]
            pack = pack_or_class if isinstance(pack_or_class, NodePack) else None
            if self.signatures.complete:
                cure = (
                    f"install or update {pack.pack}: {pack.url}"
                    if pack
                    else "update ComfyUI, or declare its pack"
                )
                yield Finding(Kind.UNKNOWN_NODE, f"no node {names} there; {cure}", node, names)
            else:
                where = f" (of {pack.pack}, {pack.url})" if pack else ""
                message = f"{names}{where}: not checked, Callsheet brings no signature of it; ask a host"
                yield Finding(Kind.NOT_CHECKED, message, node, names)

    def _node_findings(self, node: str, body: Mapping[str, Any]) -> Iterator[Finding]:
        class_type, given = body["class_type"], body["inputs"]
        signature = self.signatures.nodes.get(class_type)
        required, optional = inputs_of(signature, given) if signature else ({}, {})
        for name, spec in required.items():
            if name not in given and not self._grows(spec):
                place = _Place(node, class_type, name)
                yield place.finding(Kind.MISSING_INPUT, f"no value for {name}; expected one, it is required")
        specs = optional | required
        for name, value in given.items():
            place = _Place(node, class_type, name)
            if isinstance(value, list):
                yield from self._link_findings(place, value, specs.get(name))
            elif name in specs:
                yield from self._value_findings(place, value, specs[name])
            if specs and name not in specs and not self._is_known(name, specs, signature or {}):
                yield place.finding(Kind.UNKNOWN_INPUT, f"it has no input {name}; ComfyUI ignores it")

    @staticmethod
    def _grows(spec: Any) -> bool:
        """Whether an input of V3 stands for others, as many as are linked, and has no value itself."""
        kind = _kind_of(spec)
        return isinstance(kind, str) and kind.startswith("COMFY_") and not _is_dynamic_combo(kind)

    @staticmethod
    def _is_known(name: str, specs: Mapping[str, Any], signature: Mapping[str, Any]) -> bool:
        """Hidden inputs, and ``format.codec`` on a server that has no inputs behind ``format`` yet: a graph that
        is to run on both sends both (facts, 2.6)."""
        return name in ((signature.get("input") or {}).get("hidden") or {}) or name.split(".")[0] in specs

    def _link_findings(self, place: _Place, value: list[Any], spec: Any) -> Iterator[Finding]:
        if not is_link(value):
            message = f"{place.input} is {value!r}; expected a link of a node's id and an output's number"
            yield place.finding(Kind.BAD_LINK, message)
            return
        source, output = value
        body = self.graph.get(source)
        if not is_node(body):
            message = f"{place.input} is linked to node {source}, which is not there"
            yield place.finding(Kind.BAD_LINK, message)
            return
        signature = self.signatures.nodes.get(body["class_type"])
        types = signature.get("output") or [] if signature else []
        if signature and not 0 <= output < len(types):
            message = f"{place.input} is linked to output {output} of {_Place(source, body['class_type'])}, which has {len(types)}"
            yield place.finding(Kind.BAD_LINK, message)
        elif signature and spec is not None and not _fits(types[output], _kind_of(spec)):
            message = f"{place.input} takes {_kind_of(spec)}; {_Place(source, body['class_type'])} gives {types[output]}"
            yield place.finding(Kind.LINK_TYPE, message)

    def _value_findings(self, place: _Place, value: Any, spec: Any) -> Iterator[Finding]:
        for candidate in self._candidates(value):
            if choices_of(spec) is not None:
                yield from self._choice_findings(place, candidate, spec)
            elif _kind_of(spec) in ("INT", "FLOAT"):
                yield from self._number_findings(place, candidate, spec)
            elif _kind_of(spec) in _SOCKETS:
                message = f"{place.input} {candidate}; expected a link to a node that gives {_kind_of(spec)}"
                yield place.finding(Kind.NOT_LINKED, message)

    def _candidates(self, value: Any) -> Iterator[_Candidate]:
        """What the value may be: itself, or what the variable may be that it is the placeholder of."""
        if not isinstance(value, str) or not PLACEHOLDER.search(value):
            yield _Candidate(value)
            return
        whole = PLACEHOLDER.fullmatch(value)
        if whole is None or self.workflow is None or whole[1] in COUNTERS:
            return
        variable = self.workflow.variables.get(whole[1])
        if variable is None:
            return
        likely = self.values.get(whole[1], variable.default)
        for possible in dict.fromkeys((likely, variable.min, variable.max, *variable.choices)):
            if possible is not None:
                yield _Candidate(possible, whole[1])

    def _choice_findings(self, place: _Place, given: _Candidate, spec: Any) -> Iterator[Finding]:
        choices = choices_of(spec) or []
        if given.value in choices or any(options_of(spec).get(upload) for upload in _UPLOADS):
            return
        if not choices and not self.signatures.complete:
            return  # a list of the host's files; the shipped signatures are of a host without any
        if model := self._model(place, given.value):
            yield self._missing_model(place, model, choices)
            return
        shown = ", ".join(map(str, choices[:_SHOWN_CHOICES])) + (
            f" and {len(choices) - _SHOWN_CHOICES} more" if len(choices) > _SHOWN_CHOICES else ""
        )
        message = f"{place.input} {given}; expected one of {shown or 'none, the list is empty'}"
        yield place.finding(Kind.NOT_IN_LIST, message)

    def _model(self, place: _Place, value: Any) -> Model | None:
        """The model file that a value names, with what the workflow declares of it; None where it names none."""
        folder = MODEL_FOLDERS.get((place.class_type, place.input), "")
        declared = [model for model in self.models if model.file == value]
        if declared:
            return next((model for model in declared if model.folder == folder), declared[0])
        if isinstance(value, str) and (folder or value.lower().endswith(MODEL_ENDINGS)):
            return Model(folder=folder, file=value)
        return None

    def _missing_model(self, place: _Place, model: Model, choices: list[Any]) -> Finding:
        path = f"models/{model.folder}/{model.file}" if model.folder else f"the model {model.file}"
        size = f" ({model.gigabytes:g} GB)" if model.gigabytes else ""
        source = f"; get it{size} from {model.url}" if model.url else "; no address is declared for it"
        bare = model.file.replace("\\", "/").rpartition("/")[2]
        elsewhere = [c for c in choices if isinstance(c, str) and c.replace("\\", "/").endswith(f"/{bare}")]
        hint = f", but {elsewhere[0]} is: give that name" if elsewhere else source
        return place.finding(Kind.MISSING_MODEL, f"{path} is not there{hint}")

    def _number_findings(self, place: _Place, given: _Candidate, spec: Any) -> Iterator[Finding]:
        kind, options = _kind_of(spec), options_of(spec)
        try:
            number = int(given.value) if kind == "INT" else float(given.value)
        except (TypeError, ValueError, OverflowError):
            what = "a whole number" if kind == "INT" else "a number"
            yield place.finding(Kind.WRONG_TYPE, f"{place.input} {given}; expected {what}")
            return
        low, high = options.get("min"), options.get("max")
        if low is not None and number < low:
            yield place.finding(Kind.OUT_OF_RANGE, f"{place.input} {given}; expected at least {low}")
        if high is not None and number > high:
            yield place.finding(Kind.OUT_OF_RANGE, f"{place.input} {given}; expected at most {high}")

    def _output_findings(self) -> Iterator[Finding]:
        classes = {n: body["class_type"] for n, body in self.graph.items() if is_node(body)}
        known = {n: self.signatures.nodes[c] for n, c in classes.items() if c in self.signatures.nodes}
        if self.workflow and self.workflow.output in known and not saves(known[self.workflow.output]):
            place = _Place(self.workflow.output, classes[self.workflow.output])
            yield place.finding(Kind.NO_OUTPUT, "it is declared as the output, and saves nothing")
        elif len(known) == len(classes) and not any(map(saves, known.values())):
            yield Finding(
                Kind.NO_OUTPUT, "no node saves anything; expected one such as SaveImage or SaveVideo"
            )
