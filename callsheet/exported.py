"""A graph that a person exported from ComfyUI becomes a workflow: its inputs are found and become variables.

    adopted = adopt(read_graph(path), "portrait", signatures=shipped_signatures(), known=workflows)
    adopted.graph, adopted.companion      # what portrait.json and portrait.toml are to hold
    adopted.found, adopted.look_at        # what became a variable, and what a person should look at

Prompts are found by following the links of the samplers, as a graph may have any number of text nodes; what is
fed by a node with a single value (a primitive) is replaced there. What cannot be known from a graph (how long it
takes, how much memory, which sizes suit the model) is guessed and said.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from callsheet.declaration import Model
from callsheet.errors import BadInput
from callsheet.preflight import MODEL_ENDINGS, MODEL_FOLDERS, Signatures, inputs_of, options_of, saves
from callsheet.workflow import PLACEHOLDER, Graph, Workflow, is_link

Media = Literal["image", "video", "avatar"]
#: An input of a node.
Place = tuple[str, str]

#: Nodes that save moving pictures though their names do not say so.
_VIDEO_SAVERS = ("SaveAnimatedPNG", "SaveAnimatedWEBP", "SaveWEBM")
#: Where a text is that a model reads, most telling name first.
_TEXT_INPUTS = ("text", "t5xxl", "clip_l", "clip_g", "text_g", "text_l", "prompt")
_FRAME_INPUTS = ("length", "num_frames", "video_frames")
#: Where the rate is that is written into the file; elsewhere ``fps`` steers a model.
_RATES = {
    "CreateVideo": "fps", "SaveAnimatedPNG": "fps", "SaveAnimatedWEBP": "fps", "SaveWEBM": "fps",
    "VHS_VideoCombine": "frame_rate",
}  # fmt: skip
#: What a variable for a file of each folder is called.
_MODEL_NAMES = {
    "audio_encoders": "AUDIO_ENCODER", "checkpoints": "CHECKPOINT", "clip_vision": "CLIP_VISION",
    "controlnet": "CONTROLNET", "diffusion_models": "UNET", "loras": "LORA", "text_encoders": "TEXT_ENCODER",
    "unet": "UNET", "upscale_models": "UPSCALER", "vae": "VAE", "wav2vec2": "WAV2VEC",
}  # fmt: skip
#: Where the shipped workflows do not say where a pack is to be had.
_PACK_URLS = {"ComfyUI-MelBandRoFormer": "https://github.com/kijai/ComfyUI-MelBandRoFormer"}
#: Guesses for what a graph does not tell, in seconds.
_GUESSED_SECONDS: Mapping[Media, float] = {"image": 20, "video": 120, "avatar": 300}
_GUESSED_VRAM_GB = 24
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")
#: Seeds of attempts have 48 bits.
_WIDEST_SEED = 2**48 - 1


#: Nodes that scale, cut or fill in frames.
_CHANGES = re.compile(r"(?i)upscale|scale|resize|crop|pad|rife|film|interpol")


@dataclass(frozen=True)
class Found:
    """An input that became a variable, with the value that it had, and where it stood (``6.text``)."""

    variable: str
    value: Any
    places: tuple[str, ...]


@dataclass(frozen=True)
class Adopted:
    """A workflow made of an exported graph.

    Attributes:
        graph: with placeholders, and with the nodes alone that lead to the output.
        companion: the TOML of its declaration.
        look_at: what a person should look at, a sentence each.
    """

    name: str
    kind: Media
    graph: Graph
    companion: str
    found: tuple[Found, ...]
    look_at: tuple[str, ...]


def adopt(
    graph: Graph,
    name: str,
    *,
    signatures: Signatures,
    known: Mapping[str, Workflow],
    kind: Media | None = None,
    output: str = "",
) -> Adopted:
    """Makes a workflow of a graph in API format.

    Args:
        known: workflows whose packs, addresses and sizes are taken over where the same nodes and files are used.
        kind: what it makes; guessed from the nodes where it is not given.
        output: the node that saves the result, where there are several.

    Raises:
        BadInput: no node or several nodes save something, or the graph has nothing that Callsheet must set.
    """
    output = _output(graph, signatures, output)
    return _Adoption(graph, name, signatures, known, kind, output).adopted()


def _output(graph: Graph, signatures: Signatures, wanted: str) -> str:
    savers = {node: body["class_type"] for node, body in graph.items() if _saves(body, signatures)}
    listed = ", ".join(f"{node} ({class_type})" for node, class_type in savers.items())
    if wanted and wanted not in graph:
        raise BadInput(f"--output {wanted}: found no such node; expected one of {listed or 'the graph'}")
    if wanted:
        return wanted
    if not savers:
        raise BadInput(
            "found no node that saves a picture or a video; expected one, such as SaveImage or SaveVideo"
        )
    if len(savers) > 1:
        raise BadInput(
            f"found {len(savers)} nodes that save: {listed}; expected one, chosen with --output NODE"
        )
    return next(iter(savers))


def _saves(body: Mapping[str, Any], signatures: Signatures) -> bool:
    class_type = body["class_type"]
    if class_type.startswith("Preview"):
        return False
    signature = signatures.nodes.get(class_type)
    return saves(signature) if signature else "filename_prefix" in body["inputs"]


class _Adoption:
    """The making of one workflow. Each step finds its inputs, puts placeholders there and declares them."""

    def __init__(
        self,
        graph: Graph,
        name: str,
        signatures: Signatures,
        known: Mapping[str, Workflow],
        kind: Media | None,
        output: str,
    ) -> None:
        self.name, self.output = name, output
        self.signatures, self.known = signatures, known
        leads = _ancestors(graph, output)
        self.graph: Graph = {
            node: {"class_type": body["class_type"], "inputs": copy.deepcopy(body["inputs"])}
            for node, body in graph.items()
            if node in leads
        }
        self.found: list[Found] = []
        self.look_at: list[str] = []
        self.variables: dict[str, dict[str, Any]] = {}
        self.models: list[dict[str, Any]] = []
        self.size = (1024, 1024) if kind == "image" else (832, 480)
        self.frames, self.fps = 1, 0.0
        self.kind: Media = kind or self._guessed_kind()
        if left := [node for node in graph if node not in leads]:
            self.look_at.append(f"left out, as they do not lead to node {output}: {', '.join(left)}")

    def adopted(self) -> Adopted:
        self._prompts()
        self._size()
        if self.kind != "image":
            self._length()
        self._uploads("IMAGE", "LoadImage", "image", "the image that it starts from")
        self._uploads("AUDIO", "LoadAudio", "audio", "the narration")
        self._sampling()
        self._models()
        self._seed()
        self._prefix()
        self._refuse_left_placeholders()
        tables = self._tables()
        self.look_at += [
            f"vram_gb = {_GUESSED_VRAM_GB} and the seconds of [[estimate]] are guesses",
            "its values were not tried: run it once, then take out verified = false",
        ]
        # What a graph says may hold a line break, which would end the comment.
        notes = "".join(f"# - {_CONTROLS.sub(' ', line)}\n" for line in self.look_at)
        companion = f"# Written by `callsheet workflow add`. To look at:\n{notes}\n{toml(tables)}"
        return Adopted(self.name, self.kind, self.graph, companion, tuple(self.found), tuple(self.look_at))

    # What each step finds.

    def _guessed_kind(self) -> Media:
        class_type = self.graph[self.output]["class_type"]
        if "audio" in class_type.lower():
            raise BadInput(f"node {self.output} ({class_type}) saves sound; expected a picture or a video")
        if class_type not in _VIDEO_SAVERS and "video" not in class_type.lower():
            return "image"
        return "avatar" if self._of_class("LoadAudio") else "video"

    def _prompts(self) -> None:
        what = "the picture" if self.kind == "image" else "the clip"
        positive = self._texts("positive")
        negative = [place for place in self._texts("negative") if place not in positive]
        if not positive:
            self.look_at.append("no prompt was found: nothing leads from a sampler to a text")
        elif len({self._value(place) for place in positive}) > 1:
            self.look_at.append(f"the texts of {_named(positive)} differ; they are one prompt now")
        self._declare(
            "POSITIVE_PROMPT", positive, {"type": "text", "description": f"what {what} shows"}, required=True
        )
        self._declare(
            "NEGATIVE_PROMPT", negative, {"type": "text", "description": f"what {what} must not show"}
        )

    def _texts(self, side: str) -> list[Place]:
        """The texts of one side, positive or negative: of all nodes that take conditioning, whatever it passes."""
        places: list[Place] = []
        for body in self.graph.values():
            inputs = body["inputs"]
            starts = [inputs.get(side), inputs.get("text_embeds")]
            if side == "positive" and body["class_type"].endswith("Guider"):
                starts.append(inputs.get("conditioning"))  # BasicGuider, which knows no negative side
            for link in starts:
                places += self._texts_behind(link[0], side, set()) if is_link(link) else []
        return list(dict.fromkeys(places))

    def _texts_behind(self, node: str, side: str, seen: set[str]) -> list[Place]:
        body = self.graph.get(node)
        if body is None or node in seen or body["class_type"] == "ConditioningZeroOut":
            return []  # zeroed: the text behind it is another side's
        seen.add(node)
        inputs = body["inputs"]
        own = (f"{side}_prompt",) if f"{side}_prompt" in inputs else _TEXT_INPUTS
        places = [place for name in own if (place := self._place(node, name, str))]
        if places or side in inputs:
            return places  # a node with sides of its own is asked for them by itself
        links = [v for name, v in inputs.items() if name.startswith("cond") and is_link(v)]
        return [place for link in links for place in self._texts_behind(link[0], side, seen)]

    def _look_at_changes(self) -> None:
        """Nodes between the decoded picture and the file that make another size, or another number of frames."""
        decoders = [node for node, body in self.graph.items() if "VAEDecode" in body["class_type"]]
        before = {node for decoder in decoders for node in _ancestors(self.graph, decoder)} | set(decoders)
        for node, body in self.graph.items():
            if decoders and node not in before and _CHANGES.search(body["class_type"]):
                self.look_at.append(
                    f"node {node} ({body['class_type']}) may change size or frames after the model: results that are "
                    "not as WIDTH, HEIGHT and [length] say fail their checks"
                )

    def _size(self) -> None:
        self._look_at_changes()
        sized = {
            node: (width, height)
            for node in self.graph
            if (width := self._place(node, "width", int)) and (height := self._place(node, "height", int))
        }
        if not sized:
            self.look_at.append("no size was found: width and height of a script do not reach the model")
            return
        latents = [n for n in sized if {"batch_size", *_FRAME_INPUTS} & self.graph[n]["inputs"].keys()]
        main = (latents or list(sized))[0]
        self.size = self._value(sized[main][0]), self._value(sized[main][1])
        same = [p for p in sized.values() if (self._value(p[0]), self._value(p[1])) == self.size]
        if others := [node for node in sized if sized[node] not in same]:
            self.look_at.append(f"other sizes were left as they are, in nodes {', '.join(others)}")
        for side, name in enumerate(("WIDTH", "HEIGHT")):
            description = f"{name.lower()} in pixels"
            limits = self._limits(sized[main][side], 64, 8192, self.size[side])
            step = max(
                int(self._options(sized[main][side]).get("step", 1)), 16 if self.kind != "image" else 8
            )
            if self.size[side] % step:
                self.look_at.append(
                    f"{name.lower()} {self.size[side]} is no multiple of {step}, the model's grid"
                )
            self._declare(
                name,
                [p[side] for p in same],
                {"type": "int", "description": description, **limits, "step": step},
            )

    def _length(self) -> None:
        """Frames and their rate. Those of an avatar follow from the sound, so they stay as they are."""
        rates = [
            p
            for n, b in self.graph.items()
            if (p := self._place(n, _RATES.get(b["class_type"], ""), float, int))
        ]
        self.fps = float(self._value(rates[0])) if rates else 16.0
        places = [
            place
            for node, body in self.graph.items()
            for name in _FRAME_INPUTS
            if body["class_type"] != "ImageFromBatch" and (place := self._place(node, name, int))
        ]
        self.frames = self._value(places[0]) if places else 81
        if not rates or not places:
            self.look_at.append("[length] was not found in the graph: its fps and frames are guesses")
        if self.kind == "avatar":
            self.look_at.append(
                f"[length] frames = {self.frames}: how many the graph gives in all is not known; takes are checked by it"
            )
            return
        same = [place for place in places if self._value(place) == self.frames]
        step = int(self._options(same[0]).get("step", 1)) if same else 1
        step = step if step > 1 else 4 if self.frames % 4 == 1 else 1
        limits = self._limits(same[0], 1, self.frames, self.frames) if same else {}
        grid = {"step": step, "offset": self.frames % step} if step > 1 else {}
        self._declare(
            "FRAMES",
            same,
            {"type": "int", "description": "frames; at most as many as were exported", **limits, **grid},
        )
        self._declare(
            "FPS",
            rates,
            {
                "type": "float",
                "description": "frames per second written into the file",
                "min": 1.0,
                "max": 120.0,
            },
        )

    def _uploads(self, name: str, loader: str, field: str, description: str) -> None:
        places = [p for node in self._of_class(loader) if (p := self._place(node, field, str))]
        if not places:
            return
        first = self._value(places[0])
        if others := [p for p in places if self._value(p) != first]:
            self.look_at.append(
                f"{_named(others)}: a second {field}, which must be on the host; {name} is {first}"
            )
        same = [p for p in places if p not in others]
        self._declare(name, same, {"type": field, "description": description}, required=True)

    def _sampling(self) -> None:
        steps = [p for node in self.graph if (p := self._place(node, "steps", int))]
        if [p for p in steps if "start_at_step" in self.graph[p[0]]["inputs"]]:
            self.look_at.append(
                f"{_named(steps)}: left as they are, because samplers share the steps between them"
            )
        elif self._are_one(steps):
            limits = self._limits(steps[0], 1, 100, self._value(steps[0])) if steps else {}
            self._declare("STEPS", steps, {"type": "int", "description": "sampling steps", **limits})
        scales = [p for node in self.graph if (p := self._place(node, "cfg", float, int))]
        if self._are_one(scales):
            limits = self._limits(scales[0], 0.0, 30.0, self._value(scales[0])) if scales else {}
            self._declare(
                "CFG",
                scales,
                {"type": "float", "description": "how closely the prompt is followed", **limits},
            )

    def _are_one(self, places: list[Place]) -> bool:
        one = len({self._value(place) for place in places}) <= 1
        if not one:
            self.look_at.append(f"{_named(places)}: left as they are, because they differ")
        return one

    def _models(self) -> None:
        files = self._files()
        names = _model_variables(files)
        for (folder, file), places in files.items():
            model = next((m for w in self.known.values() for m in w.models_for({}) if m.file == file), None)
            self.models.append(
                {
                    "folder": folder,
                    "file": f"{{{{{names[folder, file]}}}}}",
                    **(_source(model) if model else {}),
                }
            )
            if model is None:
                self.look_at.append(f"where {file} is to be had, and its size, under [[models]]")
            declaration = {"type": "text", "description": f"file in models/{folder}"}
            self._declare(names[folder, file], places, declaration)
            if self._folder(places[0]) in ("checkpoints", "diffusion_models", "unet"):
                self._lora_list(names[folder, file], places[0][0])

    def _files(self) -> dict[tuple[str, str], list[Place]]:
        """The model files by folder and name, with the inputs that name them."""
        files: dict[tuple[str, str], list[Place]] = {}
        for node, body in self.graph.items():
            for field, value in body["inputs"].items():
                if not isinstance(value, str) or not value.lower().endswith(MODEL_ENDINGS):
                    continue
                folder = self._folder((node, field))
                if not folder:
                    self.look_at.append(f"{node}.{field}: in which folder under models/ {value} is")
                files.setdefault((folder or _guessed_folder(field), value), []).append((node, field))
        return files

    def _folder(self, place: Place) -> str:
        """The folder under ``models/`` that the input is known to name a file of; nothing where it is not known."""
        return MODEL_FOLDERS.get((self.graph[place[0]]["class_type"], place[1]), "")

    def _lora_list(self, variable: str, node: str) -> None:
        """A list of LoRAs behind a model, or behind those that the graph has for it already."""
        name = variable.replace("UNET", "LORAS").replace("CHECKPOINT", "LORAS")
        loader, end = "LoraLoaderModelOnly", node
        if self.graph[node]["class_type"] == "WanVideoModelLoader":
            link = self.graph[node]["inputs"].get("lora")
            if not is_link(link):
                self.look_at.append(f"node {node} has no LoRA, so no list of LoRAs can follow one")
                return
            loader, end = "WanVideoLoraSelect", link[0]
        end = self._last_lora(end)
        while name in self.variables:
            name += "_2"
        self.variables[name] = {
            "type": "loras",
            "description": "further LoRAs in models/loras, applied in order: film.safetensors:0.8; grain.safetensors",
            "after": end,
            **({} if loader == "LoraLoaderModelOnly" else {"loader": loader}),
        }

    def _last_lora(self, node: str) -> str:
        """The last of the LoRAs that follow a model one after the other; the node itself where none does."""
        for follower, body in self.graph.items():
            if body["class_type"].startswith("LoraLoader") and body["inputs"].get("model") == [node, 0]:
                return self._last_lora(follower)
        return node

    def _seed(self) -> None:
        places = [
            place
            for node, body in self.graph.items()
            for name in ("seed", "noise_seed")
            # A sampler that adds no noise has a seed without effect.
            if body["inputs"].get("add_noise") != "disable" and (place := self._place(node, name, int))
        ]
        if not places:
            raise BadInput(
                "found no seed; expected a sampler with one, as each attempt at a take needs its own"
            )
        if len({self._value(place) for place in places}) > 1:
            self.look_at.append(f"the seeds of {_named(places)} differed; they are one now")
        most = min(int(self._options(place).get("max", 2**64 - 1)) for place in places)
        if most < _WIDEST_SEED:
            self.look_at.append(
                f"a seed may be {most} at most there, and Callsheet's own go up to {_WIDEST_SEED}"
            )
        self._declare(
            "SEED",
            places,
            {"type": "int", "description": "seed of the noise", "min": 0, "max": most},
            required=True,
        )

    def _prefix(self) -> None:
        place = self._place(self.output, "filename_prefix", str)
        if place is None:
            raise BadInput(
                f"node {self.output} ({self.graph[self.output]['class_type']}): found no filename_prefix; expected a node that "
                "saves under a name it is given, as each attempt needs its own"
            )
        description = "where the host saves the result; unique for each attempt"
        self._declare("FILENAME_PREFIX", [place], {"type": "text", "description": description}, required=True)

    def _refuse_left_placeholders(self) -> None:
        for node, body in self.graph.items():
            for name, value in body["inputs"].items():
                left = PLACEHOLDER.search(value) if isinstance(value, str) else None
                if left and left[1] not in self.variables:
                    raise BadInput(
                        f"node {node}: found {left[0]} in {name}; expected a graph without placeholders"
                    )

    # How it is found, and what is written.

    def _declare(
        self, name: str, places: list[Place], declaration: dict[str, Any], *, required: bool = False
    ) -> None:
        if not places:
            return
        value = self._value(places[0])
        self.found.append(Found(name, value, tuple(f"{node}.{field}" for node, field in places)))
        default = {} if required else {"default": float(value) if declaration["type"] == "float" else value}
        self.variables[name] = {**declaration, **default}
        for node, field in places:
            self.graph[node]["inputs"][field] = f"{{{{{name}}}}}"

    def _place(self, node: str, field: str, *types: type) -> Place | None:
        """Where the value of an input stands: there, or in the primitive that feeds it. None for other types."""
        inputs = self.graph[node]["inputs"]
        if is_link(inputs.get(field)):
            node = inputs[field][0]
            inputs = self.graph[node]["inputs"] if node in self.graph else {}
            own = [name for name in inputs if name != "control_after_generate"]
            if len(own) != 1:
                return None
            field = own[0]
        value = inputs.get(field)
        known = isinstance(value, types) and not isinstance(value, bool)
        return (
            (node, field) if known and not (isinstance(value, str) and PLACEHOLDER.fullmatch(value)) else None
        )

    def _value(self, place: Place) -> Any:
        return self.graph[place[0]]["inputs"][place[1]]

    def _of_class(self, part: str) -> list[str]:
        return [node for node, body in self.graph.items() if part in body["class_type"]]

    def _options(self, place: Place) -> dict[str, Any]:
        """What the signature says of an input; nothing where there is no signature."""
        body = self.graph[place[0]]
        signature = self.signatures.nodes.get(body["class_type"])
        required, optional = inputs_of(signature, body["inputs"]) if signature else ({}, {})
        return options_of((optional | required).get(place[1]))

    def _limits(self, place: Place, low: float, high: float, value: float) -> dict[str, Any]:
        """A range within the signature's that holds the value itself."""
        options = self._options(place)
        return {
            "min": min(max(low, options.get("min", low)), value),
            "max": max(min(high, options.get("max", high)), value),
        }

    def _tables(self) -> dict[str, Any]:
        width, height = self.size
        follows = self.kind == "video" and "IMAGE" in self.variables
        estimate = {
            "card": "unknown", "seconds": _GUESSED_SECONDS[self.kind], "width": width, "height": height,
            "frames": self.frames, "source": "a guess, not measured",
        }  # fmt: skip
        return {
            "kind": self.kind,
            "description": f"{self.name}, exported from ComfyUI.",
            "output": self.output,
            "vram_gb": _GUESSED_VRAM_GB,
            "signature": self.name,
            **({"continues_with": self.name} if follows else {}),
            "verified": False,
            "note": "added from an exported graph and not tried yet",
            **({"length": {"fps": self.fps, "frames": self.frames}} if self.kind != "image" else {}),
            "estimate": [estimate],
            "variables": self.variables,
            "nodes": self._packs(),
            "models": self.models,
        }

    def _packs(self) -> list[dict[str, Any]]:
        packs: dict[tuple[str, str], list[str]] = {}
        for class_type in sorted({body["class_type"] for body in self.graph.values()}):
            declared = next((p for w in self.known.values() if (p := w.pack_of(class_type))), None)
            module = str((self.signatures.nodes.get(class_type) or {}).get("python_module", ""))
            if declared:
                packs.setdefault((declared.pack, declared.url), []).append(class_type)
            elif module.startswith("custom_nodes."):
                pack = module.removeprefix("custom_nodes.")
                packs.setdefault((pack, self._pack_url(pack)), []).append(class_type)
            elif not module:
                self.look_at.append(
                    f"{class_type}: unknown here; if it is no node of ComfyUI's own, declare its pack"
                )
        return [{"pack": pack, "url": url, "classes": classes} for (pack, url), classes in packs.items()]

    def _pack_url(self, name: str) -> str:
        known = (pack for workflow in self.known.values() for pack in workflow.nodes if pack.pack == name)
        found = next(known, None)
        return found.url if found else _PACK_URLS.get(name, "")


def _ancestors(graph: Graph, output: str) -> set[str]:
    """The node and all that lead to it."""
    seen, waiting = set(), [output]
    while waiting:
        node = waiting.pop()
        if node not in seen and node in graph:
            seen.add(node)
            waiting += [value[0] for value in graph[node]["inputs"].values() if is_link(value)]
    return seen


def _named(places: Iterable[Place]) -> str:
    return ", ".join(f"{node}.{field}" for node, field in places)


def _guessed_folder(field: str) -> str:
    for part, folder in (
        ("lora", "loras"),
        ("vae", "vae"),
        ("clip_vision", "clip_vision"),
        ("clip", "text_encoders"),
    ):
        if part in field:
            return folder
    return "diffusion_models"


def _source(model: Model) -> dict[str, Any]:
    return {"url": model.url, "gigabytes": model.gigabytes}


def _model_variables(files: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], str]:
    """A variable's name for each file: UNET, or HIGH_NOISE_UNET and LOW_NOISE_UNET of two experts, or UNET_2."""
    names: dict[tuple[str, str], str] = {}
    for base in dict.fromkeys(_MODEL_NAMES.get(folder, "MODEL") for folder, _ in files):
        same = [key for key in files if _MODEL_NAMES.get(key[0], "MODEL") == base]
        sides = [
            "high" if "high" in file.lower() else "low" if "low" in file.lower() else "" for _, file in same
        ]
        if sorted(sides) == ["high", "low"]:
            names |= {key: f"{side.upper()}_NOISE_{base}" for key, side in zip(same, sides, strict=True)}
        else:
            names |= {key: base if n == 1 else f"{base}_{n}" for n, key in enumerate(same, 1)}
    return names


def toml(tables: Mapping[str, Any]) -> str:
    """A companion file: values first, then tables and lists of tables, which is the order that TOML wants."""
    plain = [f"{key} = {_toml_value(value)}\n" for key, value in tables.items() if not _is_table(value)]
    return "".join(plain) + "".join(_toml_tables(tables))


def _toml_tables(tables: Mapping[str, Any]) -> Iterator[str]:
    for key, value in tables.items():
        if isinstance(value, list) and _is_table(value):
            for item in value:
                yield f"\n[[{key}]]\n" + "".join(f"{k} = {_toml_value(v)}\n" for k, v in item.items())
        elif key == "variables":
            for name, table in value.items():
                yield f"\n[variables.{name}]\n" + "".join(
                    f"{k} = {_toml_value(v)}\n" for k, v in table.items()
                )
        elif isinstance(value, dict):
            yield f"\n[{key}]\n" + "".join(f"{k} = {_toml_value(v)}\n" for k, v in value.items())


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and all(isinstance(item, dict) for item in value)
    )


def _toml_value(value: Any) -> str:
    """JSON's spelling is TOML's for these types, but for DEL, which TOML wants escaped."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
