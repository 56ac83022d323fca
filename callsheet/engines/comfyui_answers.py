"""What ComfyUI's answers mean: saved files, refusals and failures, in our words.

Shapes are those of ComfyUI 0.3.64 and of newer ones where they differ (facts, 1.2 and 1.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from callsheet.errors import (
    BadInput,
    BadOutput,
    CallsheetError,
    HostFault,
    HostLacks,
    OutOfMemory,
    Transient,
)

#: Inputs of a node whose value is the name of a model file: not in the list means not on this host.
MODEL_INPUTS = ("_name", "model", "lora", "unet", "clip_name1", "clip_name2")
_TIMED = ("execution_start", "execution_success", "execution_error", "execution_interrupted")
#: What the GPU or its driver says when it is broken; "cuda" alone stands in messages about the graph too.
_GPU_FAULTS = (
    "cuda error", "cudnn_status", "cudnn error", "cublas_status", "device-side assert", "illegal memory access",
    "unspecified launch failure", "device lost", "no cuda-capable device", "cuda driver", "not compiled with cuda",
    "nccl error", "no space left",
)  # fmt: skip
_MISSING_NODE = ("missing_node_type", "does not exist")


@dataclass(frozen=True)
class Output:
    """A file that a graph saved on the host; ``seconds`` is how long the prompt ran there, where it says so."""

    filename: str
    subfolder: str
    type: str
    seconds: float | None = None


class Interrupted(Transient):
    """Somebody interrupted the prompt."""


class Lost(Transient):
    """The prompt is neither queued nor in the history: the server was restarted, or it was deleted."""


def find_output(entry: dict[str, Any], node: str, name: str) -> Output:
    """What the node saved. Raises BadOutput where the prompt ended well and saved nothing there."""
    for item in _saved_files(entry.get("outputs", {}).get(node, {})):
        return Output(
            item["filename"], item.get("subfolder", ""), item.get("type", "output"), ran_seconds(entry)
        )
    raise BadOutput(f"{name}: the prompt ended well, but node {node} saved no file")


def _saved_files(output: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The files that a node saved, under whatever key; previews in the temp folder are none."""
    for items in (output or {}).values():
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and item.get("filename") and item.get("type") != "temp":
                yield item


def ran_seconds(entry: dict[str, Any]) -> float | None:
    """From the start of the prompt to its end, by the server's clock, in seconds."""
    times = [
        detail["timestamp"]
        for kind, detail in _messages(entry)
        if kind in _TIMED and isinstance(detail.get("timestamp"), int)
    ]
    return (times[-1] - times[0]) / 1000 if len(times) > 1 else None


def fault_of(entry: dict[str, Any], name: str) -> CallsheetError | None:
    """Why a finished prompt failed; None where it did not. Messages decide, the status word can be stale."""
    messages = dict(_messages(entry))
    if "execution_interrupted" in messages:
        return Interrupted(f"{name}: somebody interrupted the prompt")
    detail = messages.get("execution_error")
    if detail is None:
        return None
    kind = str(detail.get("exception_type", ""))
    message = " ".join(str(detail.get("exception_message", "")).split())
    node = f"node {detail.get('node_id')} ({detail.get('node_type')})"
    reason = f"{name}: {node} failed: {kind}: {message[:300]}"
    text = f"{kind} {message}".lower()
    if "out of memory" in text or "outofmemory" in text:
        return OutOfMemory(reason)
    if any(sign in text for sign in _GPU_FAULTS):
        return HostFault(reason)
    if "compute capability" in text:
        return HostLacks(reason)
    return BadOutput(reason)


def _messages(entry: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(kind, detail) for kind, detail in entry.get("status", {}).get("messages", ())]


def refusal(name: str, body: dict[str, Any]) -> CallsheetError:
    """What a validation error means: something that the host lacks, or something wrong with the graph."""
    error = body.get("error") or {}
    if isinstance(error, str):
        error = {"message": error}
    reasons = [reason for reason, _ in _node_errors(body)]
    lacking = any(is_lacking for _, is_lacking in _node_errors(body))
    lacking |= error.get("type") == _MISSING_NODE[0] or _MISSING_NODE[1] in str(error.get("message", ""))
    reason = "; ".join(reasons) or " ".join(
        str(part) for part in (error.get("message", "the graph was refused"), error.get("details")) if part
    )
    if lacking:
        return HostLacks(f"{name} lacks what the graph needs: {reason}")
    return BadInput(f"{name}: {reason}")


def _node_errors(body: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Each error of each node, and whether it says that a model file is not there."""
    for node, problem in (body.get("node_errors") or {}).items():
        for detail in problem.get("errors", ()):
            wrong_input = str((detail.get("extra_info") or {}).get("input_name", ""))
            lacking = detail.get("type") == "value_not_in_list" and wrong_input.endswith(MODEL_INPUTS)
            what = f"{detail.get('message')}: {detail.get('details')}"
            yield f"node {node} ({problem.get('class_type')}): {what}", lacking
