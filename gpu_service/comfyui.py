"""The draft's ComfyUI: queue, history and files, with ComfyUI 0.3.64's own shapes.

One prompt runs at a time, in the order of its number; what is queued, running and done is in memory
only and gone with the process, as with the real one.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import heapq
import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import PIL.Image
from fastapi import Response, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse

from callsheet.workflow import Workflow
from gpu_service.graph import Graph, Scene, output_nodes, scene_of, unseen, validate
from gpu_service.movie import clip_frames, read_any_sound, still, write_video

VERSION = "0.3.64"
MAX_UPLOAD = 100 << 20
#: Which inputs name a model file, and in which folders ComfyUI looks for it.
_MODEL_FOLDERS = {
    "unet_name": ("diffusion_models", "unet"),
    "clip_name": ("text_encoders",),
    "clip_name1": ("text_encoders",),
    "clip_name2": ("text_encoders",),
    "vae_name": ("vae",),
    "lora_name": ("loras",),
    "audio_encoder_name": ("audio_encoders",),
    "ckpt_name": ("checkpoints",),
}
_VIDEO_NODES = ("SaveVideo", "SaveWEBM", "VHS_VideoCombine")


@dataclass(order=True)
class Prompt:
    """A queued prompt; the lowest number runs first."""

    number: float
    prompt_id: str
    graph: Graph = field(compare=False)
    client_id: str = field(compare=False, default="")
    extra: dict[str, Any] = field(compare=False, default_factory=dict)
    outputs: list[str] = field(compare=False, default_factory=list)

    def listed(self) -> list[Any]:
        """As ``/queue`` and ``/history`` give it."""
        return [self.number, self.prompt_id, self.graph, self.extra, self.outputs]


class Interrupted(Exception):
    """The running prompt was interrupted."""


class ComfyUI:
    """The draft's queue, history and files."""

    def __init__(self, folder: Path, signatures: dict[str, Any], workflows: dict[str, Workflow]) -> None:
        self.folder = folder
        for name in ("input", "output", "temp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.signatures = with_models(signatures, workflows)
        self.pending: list[Prompt] = []
        self.running: Prompt | None = None
        self.history: dict[str, Any] = {}
        self.sockets: dict[str, WebSocket] = {}
        self._numbers = itertools.count()
        self._wakeup = asyncio.Event()
        self._interrupt = asyncio.Event()
        self._counters: dict[str, int] = {}

    # What the routes ask for.

    async def submit(self, body: dict[str, Any]) -> Response:
        graph = body.get("prompt")
        if not isinstance(graph, dict):
            error = {
                "type": "no_prompt",
                "message": "No prompt provided",
                "details": "No prompt provided",
                "extra_info": {},
            }
            return JSONResponse({"error": error, "node_errors": {}}, status_code=400)
        if refusal := validate(graph, self.object_info(), self._inputs()):
            return JSONResponse(refusal, status_code=400)
        number = float(body["number"]) if "number" in body else next(self._numbers)
        if body.get("front"):
            number = -number
        prompt = Prompt(
            number=number,
            prompt_id=str(body.get("prompt_id") or uuid.uuid4()),
            graph=graph,
            client_id=body.get("client_id", ""),
            extra={**body.get("extra_data", {}), "client_id": body.get("client_id", "")},
            outputs=output_nodes(graph, self.signatures),
        )
        heapq.heappush(self.pending, prompt)
        self._wakeup.set()
        await self._send_status()
        return JSONResponse({"prompt_id": prompt.prompt_id, "number": number, "node_errors": {}})

    def object_info(self) -> dict[str, Any]:
        """The signatures, with the files of the input folder as choices of the loaders."""
        info = dict(self.signatures)
        names = sorted(self._inputs())
        for kind, name in (("LoadImage", "image"), ("LoadAudio", "audio")):
            info[kind] = copy.deepcopy(info[kind])
            info[kind]["input"]["required"][name][0] = names
        return info

    async def delete(self, ids: list[str]) -> None:
        """Takes prompts out of the queue; they never reach the history."""
        self.pending = [prompt for prompt in self.pending if prompt.prompt_id not in ids]
        heapq.heapify(self.pending)
        await self._send_status()

    def interrupt(self, prompt_id: str | None) -> None:
        if self.running and prompt_id in (None, self.running.prompt_id):
            self._interrupt.set()

    def store_upload(
        self, name: str, subfolder: str, kind: str, content: bytes, *, overwrite: bool
    ) -> dict[str, str]:
        """Keeps an upload; another file of the same name gets a number, the same file its own name back."""
        folder = self.path(kind, subfolder, "")
        folder.mkdir(parents=True, exist_ok=True)
        stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
        target, number = folder / name, 0
        while (
            not overwrite
            and target.exists()
            and hashlib.sha256(target.read_bytes()).digest() != hashlib.sha256(content).digest()
        ):
            number += 1
            target = folder / f"{stem} ({number}){suffix}"
        target.write_bytes(content)
        return {"name": target.name, "subfolder": subfolder, "type": kind}

    def path(self, kind: str, subfolder: str, name: str) -> Path:
        """A file of the input, output or temp folder. Raises PermissionError where it would leave it."""
        if kind not in ("input", "output", "temp") or PurePosixPath(name).name != name:
            raise ValueError(name)
        base = (self.folder / kind).resolve()
        path = (base / subfolder / name).resolve()
        if not path.is_relative_to(base):
            raise PermissionError(subfolder)
        return path

    # What the worker does.

    async def work(self) -> None:
        """Runs prompts, one at a time, for ever."""
        while True:
            while not self.pending:
                self._wakeup.clear()
                await self._wakeup.wait()
            self.running = heapq.heappop(self.pending)
            self._interrupt.clear()
            await self._run(self.running)
            self.running = None
            await self._send_status()

    async def _run(self, prompt: Prompt) -> None:
        messages: list[list[Any]] = []
        outputs: dict[str, Any] = {}

        async def tell(kind: str, **detail: Any) -> None:
            detail = {**detail, "prompt_id": prompt.prompt_id}
            if kind.startswith("execution_"):
                detail["timestamp"] = int(time.time() * 1000)
                messages.append([kind, detail])
            await self._send(prompt.client_id, kind, detail)

        await tell("execution_start")
        await tell("execution_cached", nodes=[])
        node = ""
        try:
            for node in prompt.outputs:
                await tell("executing", node=node, display_node=node)
                outputs[node] = await self._make(prompt, node)
                await tell("executed", node=node, display_node=node, output=outputs[node])
            await tell("execution_success")
        except Interrupted:
            await tell(
                "execution_interrupted",
                node_id=node,
                node_type=prompt.graph[node]["class_type"],
                executed=list(outputs),
            )
        except Exception as error:  # a draft that cannot be drawn is told as ComfyUI tells a node's exception
            await tell(
                "execution_error",
                node_id=node,
                node_type=prompt.graph[node]["class_type"],
                executed=list(outputs),
                exception_message=str(error),
                exception_type=type(error).__name__,
                traceback=[],
                current_inputs={},
                current_outputs=[],
            )
        self._remember(prompt, outputs, messages)
        await self._send(prompt.client_id, "executing", {"node": None, "prompt_id": prompt.prompt_id})

    def _remember(self, prompt: Prompt, outputs: dict[str, Any], messages: list[list[Any]]) -> None:
        done = messages[-1][0] == "execution_success"
        self.history[prompt.prompt_id] = {
            "prompt": prompt.listed(),
            "outputs": outputs,
            "status": {"status_str": "success" if done else "error", "completed": done, "messages": messages},
            "meta": {
                n: {"node_id": n, "display_node": n, "parent_node": None, "real_node_id": n} for n in outputs
            },
        }

    async def _make(self, prompt: Prompt, node: str) -> dict[str, Any]:
        """Draws what a node saves and says so as that node would."""
        scene = scene_of(prompt.graph, node)
        kind = prompt.graph[node]["class_type"]
        is_video = kind in _VIDEO_NODES
        place = "temp" if kind == "PreviewImage" else "output"
        prefix = str(prompt.graph[node]["inputs"].get("filename_prefix", "ComfyUI"))
        target = self._next_file(place, prefix, ".mp4" if is_video else ".png")
        loop = asyncio.get_running_loop()

        def progress(value: int) -> None:
            if self._interrupt.is_set():
                raise Interrupted
            detail = {"value": value, "max": scene.frames, "prompt_id": prompt.prompt_id, "node": node}
            asyncio.run_coroutine_threadsafe(self._send(prompt.client_id, "progress", detail), loop)

        await asyncio.to_thread(self._draw, scene, target, is_video, progress)
        item = {
            "filename": target.name,
            "subfolder": str(PurePosixPath(prefix).parent).removeprefix("."),
            "type": place,
        }
        if kind == "VHS_VideoCombine":
            return {
                "gifs": [
                    {**item, "format": "video/h264-mp4", "frame_rate": scene.fps, "fullpath": str(target)}
                ]
            }
        return {"images": [item], "animated": [True]} if is_video else {"images": [item]}

    def _draw(self, scene: Scene, target: Path, is_video: bool, progress: Callable[[int], None]) -> None:
        if not is_video:
            progress(0)
            still(scene).save(target, format="PNG", compress_level=4)
            return
        image = self.folder / "input" / scene.image if scene.image else None
        audio = self.folder / "input" / scene.audio if scene.audio else None
        sound = read_any_sound(audio) if audio else None

        def counted() -> Iterator[PIL.Image.Image]:
            for number, frame in enumerate(clip_frames(scene, image, sound)):
                if number % 8 == 0:
                    progress(number)
                yield frame

        write_video(counted(), scene, scene.fps or 16.0, target, audio)

    def _next_file(self, place: str, prefix: str, suffix: str) -> Path:
        """``prefix_00001_.mp4``, the number one above the highest of the folder."""
        folder = self.path(place, str(PurePosixPath(prefix).parent), "")
        folder.mkdir(parents=True, exist_ok=True)
        name = PurePosixPath(prefix).name
        number = self._counters.get(f"{folder}/{name}", 0) + 1
        self._counters[f"{folder}/{name}"] = number
        return folder / f"{name}_{number:05}_{suffix}"

    def _inputs(self) -> frozenset[str]:
        base = self.folder / "input"
        return frozenset(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file())

    async def _send_status(self) -> None:
        remaining = len(self.pending) + (self.running is not None)
        for client_id in list(self.sockets):
            await self._send(client_id, "status", {"status": {"exec_info": {"queue_remaining": remaining}}})

    async def _send(self, client_id: str, kind: str, detail: dict[str, Any]) -> None:
        """To the one socket of that client, where there is one; otherwise to nobody."""
        if socket := self.sockets.get(client_id):
            try:
                await socket.send_json({"type": kind, "data": detail})
            except (WebSocketDisconnect, RuntimeError):
                self.sockets.pop(client_id, None)


def with_models(signatures: dict[str, Any], workflows: dict[str, Workflow]) -> dict[str, Any]:
    """The signatures with the models of the workflows as choices, and with the custom nodes that they declare: a
    draft has all of them, and any LoRA, as those of a script's lists are declared nowhere."""
    folders: dict[str, list[str]] = {}
    filled = copy.deepcopy(signatures)
    for workflow in workflows.values():
        for model in workflow.models_for({}):
            folders.setdefault(model.folder, []).append(model.file)
        for pack in workflow.nodes:
            for class_type in pack.classes:
                filled.setdefault(class_type, unseen(class_type, pack.pack))
    for signature in filled.values():
        for name, spec in signature["input"].get("required", {}).items():
            choices = sorted(
                {file for folder in _MODEL_FOLDERS.get(name, ()) for file in folders.get(folder, ())}
            )
            if name == "lora_name":
                spec[:] = ["STRING", {}]
            elif choices and isinstance(spec[0], list):
                spec[0] = choices
            elif choices:
                spec[1]["options"] = choices
    return filled
