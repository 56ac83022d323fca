"""ComfyUI workflows as data: a graph with ``{{VARIABLES}}`` and, beside it, the declaration of each.

``workflows/wan_t2v.json`` is a graph in ComfyUI's API format; ``workflows/wan_t2v.toml`` says what its
variables are, which model files and custom nodes it needs and about how long it takes. Filling a graph replaces
whole JSON values, never text inside JSON, so no prompt can break a graph or reach another field:

    workflow = read_workflows(Path("workflows"))["flux_dev"]
    graph = workflow.render({"POSITIVE_PROMPT": 'a "quoted" {{SEED}}', "SEED": 7, ...})
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError

from callsheet.declaration import (
    Declaration,
    Estimate,
    Length,
    Model,
    NodePack,
    Value,
    Variable,
    Windows,
    is_node,
)
from callsheet.errors import BadInput
from callsheet.loras import add_loras

__all__ = [
    "COUNTERS", "FILE_VARIABLES", "OWN_VARIABLES", "PLACEHOLDER", "SHIPPED_WORKFLOWS", "Graph", "Value", "Variable",
    "Workflow", "canonical", "is_link", "make_workflow", "number", "read_graph", "read_workflow", "read_workflows",
]  # fmt: skip

#: A graph in API format: node id to {"class_type", "inputs"}.
Graph = dict[str, Any]

#: The workflows that come with Callsheet.
SHIPPED_WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"

PLACEHOLDER = re.compile(r"\{\{([A-Z][A-Z0-9_]*)\}\}")
#: Variables that Callsheet fills by itself for each attempt; they are no part of a person's choice.
OWN_VARIABLES = ("SEED", "FILENAME_PREFIX")
#: Variables whose value is a file that is uploaded to the host.
FILE_VARIABLES = ("IMAGE", "AUDIO")
#: What a graph with windows may count on, filled when it is grown: the frames that were made before the window
#: that a node stands in, and all frames of the grown graph.
COUNTERS = ("FRAMES_BEFORE", "FRAMES_TOTAL")
#: Where a link is moved to: a node, and its output where that is another one than before.
_End = tuple[str, int | None]


class Workflow(Declaration):
    """A graph and its declaration."""

    kind: Literal["image", "video", "avatar"]
    description: str
    output: str = Field(description="id of the node that saves the result")
    vram_gb: float = Field(gt=0)
    licence: str = ""
    signature: str = Field(description="the model it loads; steps of one signature share loaded weights")
    continues_with: str = Field(default="", description="workflow that goes on from its last frame")
    verified: bool = Field(default=True, description="whether a real ComfyUI has accepted the graph")
    note: str = Field(default="", description="what a person should know who uses it")
    length: Length | None = None
    windows: Windows | None = None
    estimates: Annotated[
        tuple[Estimate, ...], BeforeValidator(lambda given: [given] if isinstance(given, dict) else given)
    ] = Field(alias="estimate", min_length=1, description="one or more; the first is what speeds relate to")
    variables: dict[str, Variable]
    models: tuple[Model, ...] = ()
    nodes: tuple[NodePack, ...] = ()

    _name: str = PrivateAttr()
    _graph: Graph = PrivateAttr()
    _declared: dict[str, Any] = PrivateAttr()
    _sha256: str = PrivateAttr()

    @property
    def name(self) -> str:
        return self._name

    @property
    def source(self) -> tuple[dict[str, Any], Graph]:
        """The declaration and the graph as they were read, for `make_workflow`."""
        return self._declared, self._graph

    @property
    def sha256(self) -> str:
        """Hash of the graph and of what grows it, in hex: the part of the workflow that take keys hold."""
        return self._sha256

    @property
    def estimate(self) -> Estimate:
        """The estimate of the card that hosts' relative speeds relate to."""
        return self.estimates[0]

    @property
    def needs_image(self) -> bool:
        return "IMAGE" in self.variables and self.variables["IMAGE"].required

    @property
    def needs_audio(self) -> bool:
        return "AUDIO" in self.variables

    @property
    def fps(self) -> float:
        """Frames per second that the model makes; 0 for a still picture."""
        return self.length.fps if self.length else 0.0

    @property
    def doubts(self) -> str:
        """What to know before money is spent on it; nothing where it was verified."""
        if self.verified:
            return ""
        return f"the workflow {self.name} is unverified" + (f": {self.note}" if self.note else "")

    def pack_of(self, class_type: str) -> NodePack | None:
        """The pack that a class comes from; None where it is ComfyUI's own."""
        return next((pack for pack in self.nodes if class_type in pack.classes), None)

    def models_for(self, values: Mapping[str, Value]) -> tuple[Model, ...]:
        """The model files that the graph loads when filled with ``values``, LoRA lists included.

        Address and size are those of the declared default; of another file they are not known.
        """
        found = []
        for model in self.models:
            name = _variable_of(model.file)
            file = str(values.get(name, self.variables[name].default)) if name else model.file
            declared = not name or file == self.variables[name].default
            found.append(
                Model(folder=model.folder, file=file, url=model.url, gigabytes=model.gigabytes)
                if declared
                else Model(folder=model.folder, file=file)
            )
        return tuple(dict.fromkeys(found + [Model(folder="loras", file=f) for f in self._lora_files(values)]))

    def material(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """What a take key holds of the workflow and of its variables.

        An empty LoRA list adds no node and is left out, so takes from before there were such lists keep their keys.
        """
        given = {name: value for name, value in values.items() if value != ()}
        lists = {name: self.variables[name] for name, value in given.items() if isinstance(value, tuple)}
        places = {name: [variable.after, variable.loader] for name, variable in lists.items()}
        return {"workflow": self.sha256, "variables": given, **({"loras": places} if places else {})}

    def frames(self, values: Mapping[str, Value]) -> int:
        """Frames of the graph filled with ``values``, before it is grown by windows."""
        if self.length is None:
            return 1
        if "FRAMES" in self.variables:
            return int(number(values, "FRAMES", self.variables["FRAMES"].default or self.length.frames))
        return self.length.frames

    def steps(self, values: Mapping[str, Value]) -> int:
        """Sampling steps of the graph filled with ``values``; 0 where no variable says it."""
        variable = self.variables.get("STEPS")
        return int(number(values, "STEPS", variable.default or 0)) if variable else 0

    def windows_for(self, seconds: float) -> int:
        """How many windows cover ``seconds`` of audio. Raises BadInput where the workflow cannot grow so far."""
        if self.length is None:
            return 1
        missing = math.ceil(seconds * self.length.fps - 1e-6) - self.length.frames
        more, most = (self.windows.more, self.windows.max) if self.windows else (1, 1)
        windows = 1 + max(0, math.ceil(missing / more))
        if windows > most:
            longest = self.frames_of_windows(most) / self.length.fps
            raise BadInput(
                f"workflow {self.name}: found {seconds:.1f} s of narration; expected at most {longest:.0f} s in one shot"
            )
        return windows

    def frames_of_windows(self, windows: int) -> int:
        """Frames of the graph grown to ``windows``."""
        if self.length is None:
            return 1
        return self.length.frames + (windows - 1) * (self.windows.more if self.windows else 0)

    def seconds(self, width: int, height: int, frames: int, *, steps: int = 0, card: str = "") -> float:
        """About how many seconds a result of this size takes on ``card``, or on the first estimate's card.

        ``steps`` of 0 are those of the measured run.
        """
        known = (e for e in self.estimates if e.card.casefold() == card.casefold())
        reference = next(known, self.estimate)
        size = (width * height * frames) / (reference.width * reference.height * reference.frames)
        return reference.seconds * size * (steps / reference.steps if steps and reference.steps else 1.0)

    def render(self, values: Mapping[str, Value], windows: int = 1) -> Graph:
        """The graph, grown to ``windows`` and filled.

        A string that is one placeholder becomes the typed value; a placeholder inside a longer string
        becomes text. Values are never looked at again, so ``{{`` in a prompt stays as it is.

        Raises:
            BadInput: a variable is missing, or one is given that the workflow does not declare.
        """
        if unknown := sorted(set(values) - set(self.variables)):
            raise BadInput(
                f"workflow {self.name}: found the variable {unknown[0]}; expected one of {', '.join(self.variables)}"
            )
        filled = {name: v.default for name, v in self.variables.items() if v.default is not None} | dict(
            values
        )
        if missing := sorted(set(self.variables) - set(filled)):
            raise BadInput(
                f"workflow {self.name}: found no value for {{{{{missing[0]}}}}}; expected {self.variables[missing[0]].description}"
            )
        graph = {node: _fill(body, filled) for node, body in self.grown(windows).items()}
        return self.with_loras(graph, filled)

    def with_loras(self, graph: Graph, values: Mapping[str, Value]) -> Graph:
        """The graph with the nodes of the LoRA lists; after it was filled, so that no file name is looked at."""
        for name, variable in self.variables.items():
            value = values.get(name, variable.default)
            if variable.type == "loras" and isinstance(value, tuple):
                graph = add_loras(graph, variable.after, variable.loader, value)
        return graph

    def grown(self, windows: int = 1) -> Graph:
        """The graph with the nodes of the windows after the first, not filled: placeholders stand where they stood."""
        graph = copy.deepcopy(self._graph)
        if self.windows is None:
            return graph
        spec = self.windows
        ends: dict[str, _End] = {chain: (node, None) for chain, node in spec.start.items()}
        for window in range(2, windows + 1):
            names = {name: f"{name}-{window}" for name in spec.nodes}
            targets: dict[str, _End] = {name: (node, None) for name, node in names.items()}
            targets |= {f"@{chain}": end for chain, end in ends.items()}
            before = {"FRAMES_BEFORE": self.frames_of_windows(window - 1)}
            for name, body in spec.nodes.items():
                graph[names[name]] = _fill(_relink(body, targets), before)
            ends = {chain: _end(carrier, names) for chain, carrier in spec.chains.items()}
        moved = {spec.start[chain]: ends[chain] for chain in (spec.ends or spec.start)} if windows > 1 else {}
        for node in self._graph:
            graph[node] = _relink(graph[node], moved)
        counts = {"FRAMES_BEFORE": 0, "FRAMES_TOTAL": self.frames_of_windows(windows)}
        return {node: _fill(body, counts) for node, body in graph.items()}

    def _lora_files(self, values: Mapping[str, Value]) -> Iterator[str]:
        for name, variable in self.variables.items():
            value = values.get(name, variable.default)
            if isinstance(value, tuple):
                yield from (lora.file for lora in value)


def number(values: Mapping[str, Value], name: str, fallback: Value) -> float:
    """The number that the variable is set to, or ``fallback``; a value of another type is a defect of ours."""
    value = values.get(name, fallback)
    assert isinstance(value, int | float), f"{name} is {value!r}"
    return value


def is_link(value: object) -> TypeGuard[list[Any]]:
    """Whether an input's value says that it comes from another node: ``[node id, output]``."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def _end(carrier: str | tuple[str, int], names: Mapping[str, str]) -> _End:
    return (names[carrier], None) if isinstance(carrier, str) else (names[carrier[0]], carrier[1])


def _relink(body: dict[str, Any], ends: Mapping[str, _End]) -> dict[str, Any]:
    def moved(link: list[Any]) -> list[Any]:
        node, output = ends.get(link[0], (link[0], None))
        return [node, link[1] if output is None else output]

    inputs = {name: moved(value) if is_link(value) else value for name, value in body["inputs"].items()}
    return {**body, "inputs": inputs}


def _fill(value: Any, values: Mapping[str, Any]) -> Any:
    """A copy with the placeholders of ``values`` filled; others are left, and what is filled in is not looked at."""
    if isinstance(value, dict):
        return {key: _fill(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, values) for item in value]
    if not isinstance(value, str):
        return value
    if whole := PLACEHOLDER.fullmatch(value):
        return values.get(whole[1], value)
    return PLACEHOLDER.sub(lambda match: str(values.get(match[1], match[0])), value)


def _placeholders(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _placeholders(item)
    elif isinstance(value, list):
        for item in value:
            yield from _placeholders(item)
    elif isinstance(value, str):
        yield from PLACEHOLDER.findall(value)


def _variable_of(text: str) -> str:
    """The variable that the text is the placeholder of; nothing where it is none."""
    whole = PLACEHOLDER.fullmatch(text)
    return whole[1] if whole else ""


def canonical(value: Any) -> str:
    """JSON with one spelling for one value: sorted keys, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read_workflows(folder: Path) -> dict[str, Workflow]:
    """All workflows of ``folder``, by name. Raises BadInput that names the file and what is wrong in it."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: found no such folder; expected the folder of the workflows")
    return {path.stem: read_workflow(path) for path in sorted(folder.glob("*.json"))}


def read_workflow(path: Path) -> Workflow:
    """The workflow of the graph ``path`` and of its companion, the TOML file of the same name."""
    companion = path.with_suffix(".toml")
    try:
        declared = tomllib.loads(companion.read_text("utf-8"))
        graph = read_graph(path)
    except FileNotFoundError as error:
        raise BadInput(
            f"{path.name}: found no {Path(error.filename).name} beside it; expected the graph and its declaration"
        ) from None
    except ValueError as error:
        raise BadInput(
            f"{companion.name}: found TOML that does not parse ({error}); expected a declaration"
        ) from None
    return make_workflow(path.stem, declared, graph)


def make_workflow(name: str, declared: dict[str, Any], graph: Graph) -> Workflow:
    """The workflow of a graph and its declaration as read. Raises BadInput that names the declaration's file."""
    companion = f"{name}.toml"
    try:
        workflow = Workflow.model_validate(declared)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        raise BadInput(f"{companion}: found {'.'.join(map(str, first['loc']))}: {reason}") from None
    workflow._name, workflow._graph, workflow._declared = name, graph, declared
    # The table as it is written, so that a field which it may have one day changes no key of today.
    workflow._sha256 = hashlib.sha256(canonical([graph, declared.get("windows")]).encode()).hexdigest()
    for found, expected in _mistakes(workflow, graph):
        raise BadInput(f"{companion}: found {found}; expected {expected}")
    return workflow


def read_graph(path: Path) -> Graph:
    """The graph in API format that the file ``path`` holds.

    Raises:
        FileNotFoundError: there is no such file.
        BadInput: it holds something else; a workflow in the editor's format gets its own message.
    """
    try:
        graph = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise BadInput(
            f"{path.stem}: found JSON that does not parse ({error}); expected a workflow"
        ) from None
    if isinstance(graph, dict) and "nodes" in graph and "links" in graph:
        raise BadInput(
            f"{path.name}: found a workflow in the editor's format; expected the API format (in ComfyUI: Workflow → Export (API))"
        )
    nodes = graph.values() if isinstance(graph, dict) else [None]
    if not graph or not all(map(is_node, nodes)):
        raise BadInput(f"{path.name}: found JSON that is no graph; expected nodes with class_type and inputs")
    return dict(graph)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _mistakes(workflow: Workflow, graph: Graph) -> Iterator[tuple[str, str]]:
    """What graph and declaration do not agree about: what was found and what would be right."""
    nodes = {**graph, **(workflow.windows.nodes if workflow.windows else {})}
    yield from _variable_mistakes(workflow, nodes)
    yield from _lora_mistakes(workflow, graph)
    yield from _need_mistakes(workflow, nodes)
    if workflow.windows:
        yield from _window_mistakes(workflow.windows, graph)
    if workflow.output not in graph:
        yield f"output = {workflow.output!r}", "a node of the graph"
    if workflow.kind != "image" and workflow.length is None:
        yield "no [length]", f"one, because the workflow makes a {workflow.kind}"


def _variable_mistakes(workflow: Workflow, nodes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    used = set(_placeholders(nodes)) - set(COUNTERS if workflow.windows else ())
    lists = {name for name, variable in workflow.variables.items() if variable.type == "loras"}
    for name in sorted(used - set(workflow.variables)):
        yield f"no declaration of {{{{{name}}}}}", f"[variables.{name}]"
    for name in sorted(set(workflow.variables) & set(COUNTERS)):
        yield f"[variables.{name}]", "another name: it is counted by Callsheet"
    for name in sorted(set(workflow.variables) - used - lists):
        yield f"[variables.{name}], which the graph does not use", "only variables of the graph"
    for name in sorted(lists & used):
        yield f"{{{{{name}}}}} in the graph", f"variables.{name}.after alone to say where its LoRAs go"
    for name in sorted(set(OWN_VARIABLES) - set(workflow.variables)):
        # Without a seed of its own each retake would be the same; without a name, one file for two takes.
        yield f"no [variables.{name}]", "one, which Callsheet sets for each attempt"


def _lora_mistakes(workflow: Workflow, graph: Graph) -> Iterator[tuple[str, str]]:
    for name, variable in workflow.variables.items():
        if variable.type == "loras" and variable.after not in graph:
            yield f"variables.{name}.after = {variable.after!r}", "a node of the graph"
        if variable.type != "loras" and variable.after:
            yield f"variables.{name}.after = {variable.after!r}", 'type = "loras"'


def _need_mistakes(workflow: Workflow, nodes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    loaders = {v.loader for v in workflow.variables.values() if v.type == "loras"}
    used = {body["class_type"] for body in nodes.values()} | loaders
    for pack in workflow.nodes:
        for class_type in sorted(set(pack.classes) - used):
            yield (
                f"the class {class_type} of {pack.pack}, which the graph does not use",
                "classes of the graph",
            )
    for model in workflow.models:
        name = _variable_of(model.file)
        if name and (
            name not in workflow.variables or workflow.variables[name].type not in ("text", "choice")
        ):
            yield f"the model file {model.file}", "a file name, or the placeholder of a text variable"


def _window_mistakes(windows: Windows, graph: Graph) -> Iterator[tuple[str, str]]:
    carriers = {c: node if isinstance(node, str) else node[0] for c, node in windows.chains.items()}
    for chain in sorted(set(windows.chains) ^ set(windows.start)):
        yield f"the chain {chain} in one of windows.chains and windows.start", "every chain in both"
    for chain in sorted(set(windows.ends or ()) - set(windows.start)):
        yield f"windows.ends with {chain}", "chains of windows.start"
    for chain, node in carriers.items():
        if node not in windows.nodes:
            yield f"windows.chains.{chain} = {node!r}", "a node of [windows.nodes]"
    for chain, node in windows.start.items():
        if node not in graph:
            yield f"windows.start.{chain} = {node!r}", "a node of the graph"
    known = {*windows.nodes, *graph, *(f"@{chain}" for chain in windows.chains)}
    links = {v[0] for body in windows.nodes.values() for v in body["inputs"].values() if is_link(v)}
    for source in sorted(links - known):
        yield f"windows.nodes linked to {source!r}", "a node, or @ and the name of a chain"
