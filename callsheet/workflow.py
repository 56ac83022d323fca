"""ComfyUI workflows as data: a graph with ``{{VARIABLES}}`` and, beside it, the declaration of each.

``workflows/wan_t2v.json`` is a graph in ComfyUI's API format; ``workflows/wan_t2v.toml`` says what its
variables are, which model files it loads and about how long it takes. Filling a graph replaces
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
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from callsheet.errors import BadInput

#: A graph in API format: node id to {"class_type", "inputs"}.
Graph = dict[str, Any]
Value = str | int | float | bool

#: The workflows that come with Callsheet.
SHIPPED_WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"

PLACEHOLDER = re.compile(r"\{\{([A-Z][A-Z0-9_]*)\}\}")
#: Variables that Callsheet fills by itself for each attempt; they are no part of a person's choice.
OWN_VARIABLES = ("SEED", "FILENAME_PREFIX")
#: Variables whose value is a file that is uploaded to the host.
FILE_VARIABLES = ("IMAGE", "AUDIO")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Declaration(BaseModel):
    """A table of a companion file; an unknown field is a misspelling, so it is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Variable(Declaration):
    """What may stand for one ``{{NAME}}``."""

    type: Literal["text", "int", "float", "bool", "choice", "image", "audio"]
    description: str
    default: Value | None = None
    min: float | None = None
    max: float | None = None
    step: int | None = Field(default=None, description="allowed values are offset, offset + step, …")
    offset: int = 0
    choices: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        return self.default is None

    def parse(self, text: str) -> Value:
        """The value that ``text`` (a cell of the script) means. Raises ValueError saying what would be right."""
        try:
            value = self._convert(text)
        except ValueError:
            raise ValueError(self.expected) from None
        if self.type in ("int", "float") and not self._in_range(float(value)):
            raise ValueError(self.expected)
        if self.type == "choice" and value not in self.choices:
            raise ValueError(self.expected)
        return value

    def fit(self, value: float) -> int:
        """The nearest allowed whole number: a multiple of the step, within the range."""
        step = self.step or 1
        low = self.offset if self.min is None else self.min
        fitted = self.offset + round((value - self.offset) / step) * step
        while fitted < low:
            fitted += step
        while self.max is not None and fitted > self.max:
            fitted -= step
        return fitted

    @property
    def expected(self) -> str:
        """What would be right, for an error message."""
        if self.type == "choice":
            return f"one of {', '.join(self.choices)}"
        kind = {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(self.type, "text")
        if self.min is not None and self.max is not None:
            return f"{kind} from {self.min:g} to {self.max:g}"
        return kind

    def _convert(self, text: str) -> Value:
        if self.type == "int":
            return int(text)
        if self.type == "float":
            number = float(text)
            if not math.isfinite(number):
                raise ValueError
            return number
        if self.type == "bool":
            if text.lower() not in _TRUTH:
                raise ValueError(text)
            return _TRUTH[text.lower()]
        return text

    def _in_range(self, number: float) -> bool:
        return (self.min is None or number >= self.min) and (self.max is None or number <= self.max)


class Model(Declaration):
    """A model file that the graph loads."""

    folder: str = Field(description="folder under ComfyUI's models/, such as unet or loras")
    file: str
    url: str = ""
    gigabytes: float = 0.0


class Estimate(Declaration):
    """Measured seconds of one run, from which those of other sizes are guessed in proportion."""

    card: str
    seconds: float = Field(gt=0)
    width: int
    height: int
    frames: int = 1
    source: str = Field(default="", description="who measured it")


class Length(Declaration):
    """How many frames the graph gives."""

    fps: float = Field(gt=0, description="frames per second that the model makes")
    frames: int = Field(gt=0, description="frames of the graph as it stands, where FRAMES does not say it")


class Windows(Declaration):
    """Nodes that are added once for each further stretch of time, until the audio is covered.

    In a node's inputs, ``"@latent"`` stands for what the chain ``latent`` gave before, and ``"extend"``
    (a name of this table) for the node of the same window.
    """

    more: int = Field(gt=0, description="frames that each further window adds")
    max: int = Field(gt=0, description="windows at most, the first included")
    chains: dict[str, str] = Field(description="chain name to the window's node that carries it on")
    start: dict[str, str] = Field(description="chain name to the node of the first window")
    nodes: dict[str, dict[str, Any]]


class Workflow(Declaration):
    """A graph and its declaration."""

    kind: Literal["image", "video", "avatar"]
    description: str
    output: str = Field(description="id of the node that saves the result")
    vram_gb: float = Field(gt=0)
    licence: str = ""
    signature: str = Field(description="the model it loads; steps of one signature share loaded weights")
    continues_with: str = Field(default="", description="workflow that goes on from its last frame")
    length: Length | None = None
    windows: Windows | None = None
    estimate: Estimate
    variables: dict[str, Variable]
    models: tuple[Model, ...] = ()

    _name: str = PrivateAttr()
    _graph: Graph = PrivateAttr()
    _sha256: str = PrivateAttr()

    @property
    def name(self) -> str:
        return self._name

    @property
    def sha256(self) -> str:
        """Hash of the graph and of what grows it, in hex: the part of the workflow that take keys hold."""
        return self._sha256

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
    def class_types(self) -> frozenset[str]:
        """The node types that a host must have."""
        nodes = [*self._graph.values(), *(self.windows.nodes.values() if self.windows else ())]
        return frozenset(node["class_type"] for node in nodes)

    def frames(self, values: Mapping[str, Value]) -> int:
        """Frames of the graph filled with ``values``, before it is grown by windows."""
        if self.length is None:
            return 1
        if "FRAMES" in self.variables:
            return int(values.get("FRAMES", self.variables["FRAMES"].default or self.length.frames))
        return self.length.frames

    def windows_for(self, seconds: float) -> int:
        """How many windows cover ``seconds`` of audio. Raises BadInput where the workflow cannot grow so far."""
        if self.length is None or self.windows is None:
            return 1
        missing = math.ceil(seconds * self.length.fps - 1e-6) - self.length.frames
        windows = 1 + max(0, math.ceil(missing / self.windows.more))
        if windows > self.windows.max:
            longest = (self.length.frames + (self.windows.max - 1) * self.windows.more) / self.length.fps
            raise BadInput(
                f"workflow {self.name}: found {seconds:.1f} s of narration; expected at most {longest:.0f} s in one shot"
            )
        return windows

    def frames_of_windows(self, windows: int) -> int:
        """Frames of the graph grown to ``windows``."""
        if self.length is None:
            return 1
        return self.length.frames + (windows - 1) * (self.windows.more if self.windows else 0)

    def seconds(self, width: int, height: int, frames: int) -> float:
        """About how many seconds the declaration's card takes for a result of this size."""
        reference = self.estimate
        size = (width * height * frames) / (reference.width * reference.height * reference.frames)
        return reference.seconds * size

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
        graph = self._grown(windows)
        return {node: _fill(body, filled) for node, body in graph.items()}

    def _grown(self, windows: int) -> Graph:
        """The graph with the nodes of the windows after the first, and its consumers moved to the last."""
        graph = copy.deepcopy(self._graph)
        if self.windows is None or windows == 1:
            return graph
        spec, ends = self.windows, dict(self.windows.start)
        for window in range(2, windows + 1):
            names = {name: f"{name}-{window}" for name in spec.nodes}
            for name, body in spec.nodes.items():
                graph[names[name]] = _relink(body, {**names, **{f"@{c}": e for c, e in ends.items()}})
            ends = {chain: names[node] for chain, node in spec.chains.items()}
        moved = {spec.start[chain]: ends[chain] for chain in spec.start}
        for node in self._graph:
            graph[node] = _relink(graph[node], moved)
        return graph


def _is_link(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def _relink(body: dict[str, Any], ends: Mapping[str, str]) -> dict[str, Any]:
    inputs = {
        name: [ends.get(value[0], value[0]), value[1]] if _is_link(value) else value
        for name, value in body["inputs"].items()
    }
    return {**body, "inputs": inputs}


def _fill(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, values) for item in value]
    if not isinstance(value, str):
        return value
    if whole := PLACEHOLDER.fullmatch(value):
        return values[whole[1]]
    return PLACEHOLDER.sub(lambda match: str(values[match[1]]), value)


def _placeholders(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _placeholders(item)
    elif isinstance(value, list):
        for item in value:
            yield from _placeholders(item)
    elif isinstance(value, str):
        yield from PLACEHOLDER.findall(value)


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
        graph = json.loads(path.read_text("utf-8"))
        declared = tomllib.loads(companion.read_text("utf-8"))
    except FileNotFoundError as error:
        raise BadInput(
            f"{path.name}: found no {Path(error.filename).name} beside it; expected the graph and its declaration"
        ) from None
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        kind = "JSON" if isinstance(error, json.JSONDecodeError) else "TOML"
        raise BadInput(
            f"{path.stem}: found {kind} that does not parse ({error}); expected a workflow"
        ) from None
    _check_graph(path.name, graph)
    try:
        workflow = Workflow.model_validate(declared)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(
            f"{companion.name}: found {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None
    workflow._name, workflow._graph = path.stem, graph
    growing = workflow.windows.model_dump() if workflow.windows else None
    workflow._sha256 = hashlib.sha256(canonical([graph, growing]).encode()).hexdigest()
    _check_variables(companion.name, workflow, graph)
    return workflow


def _check_graph(name: str, graph: Any) -> None:
    if isinstance(graph, dict) and "nodes" in graph and "links" in graph:
        raise BadInput(
            f"{name}: found a workflow in the editor's format; expected the API format (in ComfyUI: Workflow → Export (API))"
        )
    nodes = graph.values() if isinstance(graph, dict) else [None]
    if not graph or any(not isinstance(n, dict) or not {"class_type", "inputs"} <= n.keys() for n in nodes):
        raise BadInput(f"{name}: found JSON that is no graph; expected nodes with class_type and inputs")


def _check_variables(name: str, workflow: Workflow, graph: Graph) -> None:
    used = set(_placeholders(graph)) | set(_placeholders(workflow.windows.nodes if workflow.windows else {}))
    if undeclared := sorted(used - set(workflow.variables)):
        raise BadInput(
            f"{name}: found no declaration of {{{{{undeclared[0]}}}}}; expected [variables.{undeclared[0]}]"
        )
    if unused := sorted(set(workflow.variables) - used):
        raise BadInput(
            f"{name}: found [variables.{unused[0]}], which the graph does not use; expected only variables of the graph"
        )
    if workflow.output not in graph:
        raise BadInput(f"{name}: found output = {workflow.output!r}; expected a node of the graph")
    if workflow.kind != "image" and workflow.length is None:
        raise BadInput(
            f"{name}: found no [length]; expected one, because the workflow makes a {workflow.kind}"
        )
