"""Client of ComfyUI: uploads inputs, runs a graph, brings its result home whole.

HTTP is the truth: a prompt is finished when its history says so (facts, 1.3), and one that is
neither in history nor in the queue is lost, not done.

    async with ComfyUI("http://127.0.0.1:8188", name="a10-1/comfyui") as comfy:
        image = await comfy.upload(Path("frame.png"), folder="callsheet")
        output = await comfy.run(graph, output_node="50", prompt_id=str(uuid.uuid4()), expected_seconds=70)
        await comfy.download(output, Path("take.mp4"))
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import SecretStr

from callsheet.engines.http import ANSWER_SECONDS, open_client, refuse, translated_faults, waiting
from callsheet.errors import BadInput, BadOutput, CallsheetError, HostFault, HostLacks, OutOfMemory, Transient
from callsheet.timing import scaled
from callsheet.workflow import Graph

#: Between two looks at the history: quick for a draft, gentle for a real clip.
FIRST_POLL_SECONDS, LAST_POLL_SECONDS = 0.05, 2.0
#: Seconds before a broken download is begun again.
DOWNLOAD_PAUSES = (1.0, 4.0)
#: A prompt may run for this long, or for this many times what is expected, counted from its start.
RUN_SECONDS, RUN_FACTOR = 600.0, 20.0
#: Inputs of a node whose value is the name of a model file: not in the list means not on this host.
MODEL_INPUTS = ("_name", "model", "lora", "unet", "clip_name1", "clip_name2")


@dataclass(frozen=True)
class Output:
    """A file that a graph saved on the host."""

    filename: str
    subfolder: str
    type: str


class ComfyUI:
    """One ComfyUI server."""

    def __init__(self, url: str, *, name: str, token: SecretStr | None = None) -> None:
        self.name = name
        self._client_id = uuid.uuid4().hex
        self._http = open_client(url, token)

    async def ready(self) -> None:
        """Raises where the server is not there or something else answers. Costs it nothing."""
        with translated_faults(self.name):
            answer = await self._http.get("/system_stats")
            await refuse(self.name, answer)
            # vast.ai's proxy answers 200 with a page of its own until the application is up.
            if "X-Portal-Placeholder" in answer.headers or "devices" not in answer.text:
                raise Transient(f"{self.name}: something answers, but it is no ComfyUI yet")

    async def upload(self, path: Path, folder: str) -> str:
        """Brings a file to the host's input folder and returns the name by which a graph loads it.

        The name is the content's hash: the same file is stored once, another one never replaces it.
        """
        content = await asyncio.to_thread(path.read_bytes)
        name = hashlib.sha256(content).hexdigest()[:32] + path.suffix.lower()
        with translated_faults(self.name):
            answer = await self._http.post(
                "/upload/image",
                files={"image": (name, content)},
                data={"type": "input", "subfolder": folder, "overwrite": "true"},
                timeout=waiting(120),
            )
            await refuse(self.name, answer)
            stored = answer.json()
        return f"{stored['subfolder']}/{stored['name']}" if stored["subfolder"] else str(stored["name"])

    async def run(self, graph: Graph, output_node: str, prompt_id: str, expected_seconds: float) -> Output:
        """Runs a graph and waits for what its output node saves.

        Raises:
            BadInput: the graph is refused for what it asks.
            HostLacks: it is refused for a model file or a node that is not there.
            OutOfMemory, HostFault: the GPU's memory is full, or the GPU is at fault.
            BadOutput: a node failed, or the prompt ended without a result.
            Transient: the prompt was lost (the server restarted), interrupted, or took too long.
        """
        try:
            await self._submit(graph, prompt_id)
        except Transient:
            # The answer was lost, perhaps not the prompt: asked again, it would be paid for twice.
            if not await self._knows(prompt_id):
                raise
        try:
            entry = await self._wait(prompt_id, expected_seconds)
        except asyncio.CancelledError:
            with contextlib.suppress(CallsheetError, TimeoutError):
                await asyncio.wait_for(self.cancel(prompt_id), scaled(ANSWER_SECONDS))
            raise
        if fault := _fault_of(entry, self.name):
            raise fault
        return self._find_output(entry, output_node)

    async def download(self, output: Output, target: Path) -> None:
        """Brings a result home: under a temporary name, and whole.

        A download that breaks is begun again, a few times: the prompt was paid for, the bytes are not.
        """
        for pause in DOWNLOAD_PAUSES:
            try:
                return await self._download(output, target)
            except Transient:
                await asyncio.sleep(scaled(pause))
        await self._download(output, target)

    async def _download(self, output: Output, target: Path) -> None:
        part = target.with_name(target.name + ".part")
        where = {"filename": output.filename, "subfolder": output.subfolder, "type": output.type}
        with translated_faults(self.name):
            async with self._http.stream("GET", "/view", params=where, timeout=waiting(60)) as answer:
                if answer.status_code == httpx.codes.NOT_FOUND:
                    raise Transient(f"{self.name}: the result {output.filename} is not on the host any more")
                await refuse(self.name, answer)
                with part.open("wb") as file:
                    async for chunk in answer.aiter_bytes():
                        file.write(chunk)
                    size = file.tell()
        announced = answer.headers.get("content-length")
        if size == 0 or (announced is not None and int(announced) != size):
            raise Transient(f"{self.name}: {output.filename} came cut: {size} of {announced} bytes")
        part.replace(target)

    async def cancel(self, prompt_id: str) -> None:
        """Takes a prompt out of the queue, or interrupts it where it is the one that runs."""
        with translated_faults(self.name):
            await self._http.post("/queue", json={"delete": [prompt_id]})
            running, _ = await self._queue()
            if prompt_id in running:
                await self._http.post("/interrupt", json={"prompt_id": prompt_id})

    async def free(self) -> None:
        """Asks the server to unload its models and forget its cache."""
        with translated_faults(self.name):
            answer = await self._http.post("/free", json={"unload_models": True, "free_memory": True})
            await refuse(self.name, answer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def _submit(self, graph: Graph, prompt_id: str) -> None:
        body = {"prompt": graph, "client_id": self._client_id, "prompt_id": prompt_id}
        with translated_faults(self.name):
            answer = await self._http.post("/prompt", json=body)
            if answer.status_code == httpx.codes.BAD_REQUEST:
                raise _refusal(self.name, _json(answer))
            await refuse(self.name, answer)
        accepted = _json(answer)
        if accepted.get("node_errors"):
            # A graph with several outputs is accepted when one of them is valid; the others are dropped.
            await self.cancel(prompt_id)
            raise _refusal(self.name, accepted)

    async def _wait(self, prompt_id: str, expected_seconds: float) -> dict[str, Any]:
        """The prompt's history, once it has one. The clock runs from when the prompt does."""
        limit = scaled(max(RUN_SECONDS, RUN_FACTOR * expected_seconds))
        started: float | None = None
        pause, missed = FIRST_POLL_SECONDS, 0
        while True:
            if entry := await self._history(prompt_id):
                return entry
            running, pending = await self._queue()
            if prompt_id in running:
                started = started or time.monotonic()
            # Between the two questions it may have ended, so it is lost only when twice in neither.
            missed = 0 if prompt_id in running or prompt_id in pending else missed + 1
            if missed >= 2:
                raise Transient(f"{self.name}: prompt {prompt_id} is lost (neither queued nor in history)")
            if started is not None and time.monotonic() - started > limit:
                await self.cancel(prompt_id)
                raise Transient(f"{self.name}: prompt {prompt_id} ran for more than {limit:.0f} s")
            await asyncio.sleep(pause)
            pause = min(pause * 1.3, LAST_POLL_SECONDS)

    async def _knows(self, prompt_id: str) -> bool:
        if await self._history(prompt_id):
            return True
        running, pending = await self._queue()
        return prompt_id in running | pending or await self._history(prompt_id) is not None

    async def _history(self, prompt_id: str) -> dict[str, Any] | None:
        with translated_faults(self.name):
            answer = await self._http.get(f"/history/{prompt_id}")
            await refuse(self.name, answer)
        entry: dict[str, Any] | None = _json(answer).get(prompt_id)
        return entry

    async def _queue(self) -> tuple[set[str], set[str]]:
        """The ids that run and the ids that wait."""
        with translated_faults(self.name):
            answer = await self._http.get("/queue")
            await refuse(self.name, answer)
        queue = _json(answer)
        running, pending = queue.get("queue_running", []), queue.get("queue_pending", [])
        return {item[1] for item in running}, {item[1] for item in pending}

    def _find_output(self, entry: dict[str, Any], node: str) -> Output:
        for item in _saved_files(entry.get("outputs", {}).get(node, {})):
            return Output(item["filename"], item.get("subfolder", ""), item.get("type", "output"))
        raise BadOutput(f"{self.name}: the prompt ended well, but node {node} saved no file")


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        content = answer.json()
    except ValueError:
        raise Transient(
            f"{answer.url.host}: answered something that is no JSON: {answer.text[:80]!r}"
        ) from None
    return content if isinstance(content, dict) else {}


def _saved_files(output: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The files that a node saved, under whatever key; previews in the temp folder are none."""
    for items in output.values():
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and item.get("filename") and item.get("type") != "temp":
                yield item


def _refusal(name: str, body: dict[str, Any]) -> CallsheetError:
    """What a validation error means: something that the host lacks, or something wrong with the graph."""
    error = body.get("error", {})
    reasons, lacking = [], "does not exist" in error.get("message", "")
    for node, problem in body.get("node_errors", {}).items():
        for detail in problem.get("errors", ()):
            reasons.append(
                f"node {node} ({problem.get('class_type')}): {detail.get('message')}: {detail.get('details')}"
            )
            wrong_input = str(detail.get("extra_info", {}).get("input_name", ""))
            lacking |= detail.get("type") == "value_not_in_list" and wrong_input.endswith(MODEL_INPUTS)
    reason = (
        "; ".join(reasons)
        or f"{error.get('message', 'the graph was refused')} {error.get('details', '')}".strip()
    )
    return (
        HostLacks(f"{name} lacks what the graph needs: {reason}")
        if lacking
        else BadInput(f"{name}: {reason}")
    )


def _fault_of(entry: dict[str, Any], name: str) -> CallsheetError | None:
    """Why a finished prompt failed; None where it did not. Messages decide, the status word can be stale."""
    messages = {kind: detail for kind, detail in entry.get("status", {}).get("messages", ())}
    if "execution_interrupted" in messages:
        return Transient(f"{name}: somebody interrupted the prompt")
    if detail := messages.get("execution_error"):
        kind, message = (
            detail.get("exception_type", ""),
            " ".join(str(detail.get("exception_message", "")).split()),
        )
        reason = f"{name}: node {detail.get('node_id')} ({detail.get('node_type')}) failed: {kind}: {message[:300]}"
        text = f"{kind} {message}".lower()
        if "out of memory" in text or "outofmemory" in text:
            return OutOfMemory(reason)
        return HostFault(reason) if "cuda" in text else BadOutput(reason)
    return None
