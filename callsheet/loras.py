"""LoRA lists: what a cell of the script says, and the nodes that it adds to a graph.

    parse_loras("film.safetensors:0.8; wan/grain.safetensors")
    # (Lora("film.safetensors", 0.8), Lora("wan/grain.safetensors", 1.0))

A list goes into a take key as JSON, ``[["film.safetensors",0.8],…]``: strengths are always floats, so that
``1`` and ``1.0`` are one take.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

#: What LoRA nodes allow is wider (-100 to 100); beyond ten a picture is noise.
STRONGEST = 10.0
EXPECTED = "LoRA files under models/loras with strengths from -10 to 10, such as film.safetensors:0.8; grain.safetensors"
#: Endings that ComfyUI lists (folder_paths.supported_pt_extensions of 0.3.64).
_ENDINGS = (".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pt2")
#: Not allowed in a file name of Windows; a backslash is, as a separator, but hosts run Linux.
_ILLEGAL = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM[1-9]|LPT[1-9])(\..*)?", re.IGNORECASE)

LoaderClass = Literal["LoraLoaderModelOnly", "WanVideoLoraSelect"]


class Lora(NamedTuple):
    """A file under ComfyUI's ``models/loras`` and how strongly it is applied; in JSON ``[file, strength]``."""

    file: str
    strength: float = 1.0


@dataclass(frozen=True)
class Loader:
    """What a node that applies one LoRA calls its inputs, and what else it requires."""

    chain: str
    file: str
    strength: str
    others: Mapping[str, Any] = field(default_factory=dict)


LOADERS: Mapping[LoaderClass, Loader] = {
    "LoraLoaderModelOnly": Loader("model", "lora_name", "strength_model"),
    # ComfyUI-WanVideoWrapper. Merging would keep the LoRA in the weights of the next prompt's model.
    "WanVideoLoraSelect": Loader(
        "prev_lora", "lora", "strength", {"low_mem_load": False, "merge_loras": False}
    ),
}


def parse_loras(text: str) -> tuple[Lora, ...]:
    """The list that a cell means: files parted by semicolons, each with ``:strength`` or 1.

    Raises:
        ValueError: a file or a strength is not one that a host could have; says what would be right.
    """
    return tuple(_parse_lora(part.strip()) for part in text.split(";") if part.strip())


def _parse_lora(text: str) -> Lora:
    file, colon, strength = (part.strip() for part in text.rpartition(":"))
    if not colon:
        file, strength = text, "1"
    try:
        number = float(strength)
    except ValueError:
        raise ValueError(EXPECTED) from None
    if not math.isfinite(number) or abs(number) > STRONGEST or not _is_file(file):
        raise ValueError(EXPECTED)
    return Lora(file, number + 0.0)  # -0.0 and 0.0 are one strength, so they must be one key


def _is_file(name: str) -> bool:
    """Whether the name stays under ``models/loras``, on any system."""
    parts = name.split("/")
    return (
        name.lower().endswith(_ENDINGS)
        and not _ILLEGAL.search(name)
        and all(
            part and part == part.strip() and not part.endswith(".") and not _RESERVED.fullmatch(part)
            for part in parts
        )
    )


def add_loras(
    graph: Mapping[str, Any], after: str, loader: LoaderClass, loras: Sequence[Lora]
) -> dict[str, Any]:
    """The graph with one node for each LoRA, in order, between output 0 of ``after`` and all who took it."""
    if not loras:
        return dict(graph)
    how, end, chain = LOADERS[loader], after, {}
    for number, lora in enumerate(loras, 1):
        inputs = {how.chain: [end, 0], how.file: lora.file, how.strength: lora.strength, **how.others}
        end = f"{after}-lora-{number}"
        chain[end] = {"class_type": loader, "inputs": inputs}
    moved = {
        node: {
            **body,
            "inputs": {n: [end, 0] if value == [after, 0] else value for n, value in body["inputs"].items()},
        }
        for node, body in graph.items()
    }
    return moved | chain
