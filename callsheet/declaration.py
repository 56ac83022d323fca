"""The tables of a workflow's companion file, ``workflows/wan_t2v.toml`` and its like.

width = Variable(type="int", description="width in pixels", default=832, min=256, max=1280, step=16)
width.parse("800")       # 800
width.fit(801)           # 800: what a script asks for is snapped to what the model makes
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from callsheet.loras import EXPECTED, LoaderClass, Lora, parse_loras

#: What a variable may be; a LoRA list is the only one that is more than one JSON value.
Value = str | int | float | bool | tuple[Lora, ...]

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
#: What a value of each type is in Python. JSON's true is no number, though Python's is.
_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "int": (int,), "float": (float,), "bool": (bool,), "loras": (tuple,)
}  # fmt: skip


class Declaration(BaseModel):
    """A table of a companion file; an unknown field is a misspelling, so it is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Variable(Declaration):
    """What may stand for one ``{{NAME}}``. A LoRA list has no placeholder: it stands behind the node ``after``."""

    type: Literal["text", "int", "float", "bool", "choice", "image", "audio", "loras"]
    description: str
    default: Value | None = None
    min: int | float | None = None
    max: int | float | None = None
    step: int | None = Field(default=None, gt=0, description="allowed values are offset, offset + step, …")
    offset: int = 0
    choices: tuple[str, ...] = ()
    after: str = Field(default="", description="of a LoRA list: the node whose first output the LoRAs change")
    loader: LoaderClass = Field(
        default="LoraLoaderModelOnly", description="of a LoRA list: the class of its nodes"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_as_a_cell_has_it(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        default = given.get("default")
        if given.get("type") == "loras" and isinstance(default, str | None):
            return {**given, "default": parse_loras(default or "")}
        if given.get("type") == "float" and isinstance(default, int) and not isinstance(default, bool):
            return {**given, "default": float(default)}  # 1 and 1.0 in two files must not be two keys
        return given

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Variable:
        if self.default is not None and not self.allows(self.default):
            raise ValueError(f"found the default {self.default!r}; expected {self.expected}")
        return self

    @property
    def required(self) -> bool:
        return self.default is None

    def parse(self, text: str) -> Value:
        """The value that ``text`` (a cell of the script) means; a number is snapped to the nearest step.

        Raises:
            ValueError: saying what would be right.
        """
        try:
            value = self._convert(text)
        except ValueError:
            raise ValueError(self.expected) from None
        if not self.allows(value):
            raise ValueError(self.expected)
        return self.fit(value) if self.step and isinstance(value, int) else value

    def allows(self, value: Value) -> bool:
        """Whether the value is of the type, in the range and among the choices; steps are not asked for."""
        if not isinstance(value, _PYTHON_TYPES.get(self.type, (str,))):
            return False
        if self.type == "choice":
            return value in self.choices
        if isinstance(value, int | float) and self.type != "bool":
            return not isinstance(value, bool) and self._in_range(value)
        return True

    def fit(self, value: float) -> int:
        """The nearest allowed whole number: a multiple of the step, within the range."""
        step = self.step or 1
        low = self.offset if self.min is None else self.min
        lowest = math.ceil((low - self.offset) / step)
        highest = math.inf if self.max is None else math.floor((self.max - self.offset) / step)
        return self.offset + int(min(max(round((value - self.offset) / step), lowest), highest)) * step

    @property
    def expected(self) -> str:
        """What would be right, for an error message."""
        if self.type == "loras":
            return EXPECTED
        if self.type == "choice":
            return f"one of {', '.join(self.choices)}"
        kind = {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(self.type, "text")
        if self.min is not None and self.max is not None:
            return f"{kind} from {self.min:g} to {self.max:g}"
        return kind

    def _convert(self, text: str) -> Value:
        if self.type == "loras":
            return parse_loras(text)
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
    file: str = Field(description="its name there; {{VARIABLE}} for the file that the variable names")
    url: str = ""
    gigabytes: float = 0.0


class NodePack(Declaration):
    """Custom nodes that the graph uses, and where they come from. A class of no pack is ComfyUI's own."""

    pack: str
    url: str
    classes: tuple[str, ...] = Field(min_length=1)


class Estimate(Declaration):
    """A measured run, from which those of other sizes and steps are guessed in proportion."""

    card: str
    seconds: float = Field(gt=0, description="of the whole run, the models being loaded already")
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    frames: int = Field(default=1, gt=0)
    steps: int = Field(
        default=0, ge=0, description="sampling steps of that run, of one window; 0 where unknown"
    )
    source: str = Field(default="", description="who measured it")

    @property
    def seconds_per_step(self) -> float:
        """Of that run's size; 0 where its steps are unknown."""
        return self.seconds / self.steps if self.steps else 0.0


class Length(Declaration):
    """How many frames the graph gives."""

    fps: float = Field(gt=0, description="frames per second that the model makes")
    frames: int = Field(gt=0, description="frames of the graph as it stands, where FRAMES does not say it")


class Windows(Declaration):
    """Nodes that are added once for each further stretch of time, until the audio is covered.

    In a node's inputs, ``"@latent"`` stands for what the chain ``latent`` gave before, and ``"extend"``
    (a name of this table) for the node of the same window. ``{{FRAMES_BEFORE}}`` is the number of frames
    made before the window, ``{{FRAMES_TOTAL}}``, also in the graph, that of all windows together.
    """

    more: int = Field(gt=0, description="frames that each further window adds")
    max: int = Field(gt=0, description="windows at most, the first included")
    chains: dict[str, str | tuple[str, int]] = Field(
        description="chain name to the window's node that carries it on, with its output where that is another"
    )
    start: dict[str, str] = Field(description="chain name to the node of the first window")
    ends: tuple[str, ...] | None = Field(
        default=None,
        description="chains whose end takes the place of their start in the rest of the graph; all where not given",
    )
    nodes: dict[str, dict[str, Any]]

    @field_validator("nodes")
    @classmethod
    def _are_nodes(cls, nodes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, body in nodes.items():
            if not is_node(body):
                raise ValueError(f"{name} is no node; expected class_type and inputs")
        return nodes


def is_node(body: object) -> TypeGuard[dict[str, Any]]:
    """Whether it is a node of a graph in API format."""
    return (
        isinstance(body, dict)
        and isinstance(body.get("class_type"), str)
        and isinstance(body.get("inputs"), dict)
    )
