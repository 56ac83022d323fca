"""A ComfyUI on 127.0.0.1 that draws as the draft host does, and fails as real ones do.

    with ComfyUIServer(workflows) as server:
        server.fail("oom", times=1)
        ...                                  # a client talks to server.url
        server.runs                          # what was really run, prompt by prompt

It is the draft host's own ComfyUI, with knobs: a fault is chosen when a prompt arrives, or for a route.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from callsheet.serving import listen, url_of
from callsheet.workflow import Workflow
from gpu_service.app import draft_signatures
from gpu_service.comfyui import ComfyUI, Interrupted, Prompt
from gpu_service.routes import add_websocket, comfyui_routes

Fault = Literal[
    "post_500", "node_errors", "empty_outputs", "no_file", "half_file", "black", "oom", "cuda", "broken",
    "stranger", "frozen", "stubborn", "restart", "sockets_close", "sockets_silent", "deleted",
]  # fmt: skip
#: What may be mixed at random without ending a host for good.
FAULTS: tuple[Fault, ...] = (
    "post_500", "node_errors", "empty_outputs", "no_file", "half_file", "black", "oom", "stranger", "frozen",
    "restart", "sockets_close", "sockets_silent", "deleted",
)  # fmt: skip
RouteFault = Literal["placeholder", "401", "413", "502"]


@dataclass
class Run:
    """A prompt that the worker took up, the fault it met, and when it began, by `time.monotonic`."""

    prompt_id: str
    prefix: str
    fault: Fault | None
    began: float = field(default_factory=time.monotonic)


class FaultyComfyUI(ComfyUI):
    """The draft's ComfyUI with a fault for some prompts."""

    def __init__(self, folder: Path, workflows: dict[str, Workflow]) -> None:
        super().__init__(folder, draft_signatures(), workflows)
        self.choose: Callable[[dict[str, Any]], Fault | None] = lambda graph: None
        self.planned: list[Fault] = []
        self.runs: list[Run] = []
        self.posts: list[str] = []
        self.freed = 0
        self.silent = False
        self._faults: dict[str, Fault] = {}
        self.loop = asyncio.get_running_loop()

    async def submit(self, body: dict[str, Any]) -> Response:
        prompt_id = str(body.get("prompt_id"))
        self.posts.append(prompt_id)
        fault = self.planned.pop(0) if self.planned else self.choose(body.get("prompt", {}))
        if fault:
            self._faults[prompt_id] = fault
        answer = await super().submit(body)
        if answer.status_code != 200:
            return answer
        if fault == "post_500":
            return PlainTextResponse("500 Internal Server Error", status_code=500)
        if fault == "node_errors":
            detail = {
                "type": "value_smaller_than_min",
                "message": "Value too small",
                "details": "steps",
                "extra_info": {},
            }
            errors = {"3": {"errors": [detail], "dependent_outputs": ["9"], "class_type": "KSampler"}}
            return JSONResponse({"prompt_id": prompt_id, "number": 1, "node_errors": errors})
        if fault == "deleted":
            await self.delete([prompt_id])
        return answer

    async def _run(self, prompt: Prompt) -> None:
        fault = self._faults.pop(prompt.prompt_id, None)
        prefix = next(
            (
                str(n["inputs"]["filename_prefix"])
                for n in prompt.graph.values()
                if "filename_prefix" in n["inputs"]
            ),
            "",
        )
        self.runs.append(Run(prompt.prompt_id, prefix, fault))
        self._fault = fault
        if fault == "restart":
            self.restart()
            return
        if fault == "sockets_close":
            for socket in list(self.sockets.values()):
                with contextlib.suppress(RuntimeError):
                    await socket.close()
        self.silent = fault == "sockets_silent"
        await super()._run(prompt)
        if fault == "empty_outputs" and prompt.prompt_id in self.history:
            self.history[prompt.prompt_id]["outputs"] = {}

    def restart(self) -> None:
        """The process ends and comes back: queue and history are gone, files stay."""
        self.pending.clear()
        self.history.clear()

    async def _make(self, prompt: Prompt, node: str) -> dict[str, Any]:
        fault = self._fault
        if fault == "oom":
            raise _named("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB")
        if fault == "cuda":
            raise _named("RuntimeError", "CUDA error: an illegal memory access was encountered")
        if fault == "broken":
            raise _named("ValueError", "the tensor has another size")
        if fault == "stranger":
            raise Interrupted
        if fault in ("frozen", "stubborn"):
            while fault == "stubborn" or not self._interrupt.is_set():
                await asyncio.sleep(0.01)
            raise Interrupted
        output = await super()._make(prompt, node)
        for items in output.values():
            for item in items:
                if isinstance(item, dict) and fault:
                    self._spoil(self.path(item["type"], item["subfolder"], item["filename"]), fault)
        return output

    def _spoil(self, file: Path, fault: Fault) -> None:
        if fault == "no_file":
            file.unlink()
        elif fault == "half_file":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        elif fault == "black":
            _blacken(file)

    async def _send(self, client_id: str, kind: str, detail: dict[str, Any]) -> None:
        if not self.silent:
            await super()._send(client_id, kind, detail)


def _named(name: str, message: str) -> Exception:
    return type(name, (Exception,), {})(message)


def _blacken(file: Path) -> None:
    """The same picture or clip, black: what a NaN latent gives, without an error."""
    import av
    import numpy as np
    import PIL.Image

    if file.suffix == ".png":
        with PIL.Image.open(file) as picture:
            size = picture.size
        PIL.Image.new("RGB", size).save(file)
        return
    with av.open(str(file)) as source:
        stream = source.streams.video[0]
        width, height, rate = stream.width, stream.height, stream.average_rate
        frames = sum(1 for _ in source.decode(stream))
    with av.open(str(file), "w") as target:
        out = target.add_stream("libx264", rate=rate)
        out.width, out.height, out.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
            target.mux(out.encode(frame))
        target.mux(out.encode(None))


@dataclass
class ComfyUIServer:
    """Serves until the block ends.

    Attributes:
        token: asked for as a bearer, where it is set.
        has_jobs: whether it has the jobs API of newer servers.
    """

    workflows: dict[str, Workflow]
    token: str = ""
    has_jobs: bool = False
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="callsheet-fake-comfyui-")
        self._listener = listen()
        self.url = url_of(self._listener)
        self._route_faults: list[tuple[str, RouteFault]] = []
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join()
        self._folder.cleanup()

    def fail(self, fault: Fault, times: int = 1) -> None:
        """The next ``times`` prompts meet ``fault``."""
        self.comfy.planned += [fault] * times

    def fail_route(self, path: str, fault: RouteFault, times: int = 1) -> None:
        """The next ``times`` requests whose path begins with ``path`` are answered so."""
        self._route_faults += [(path, fault)] * times

    def count(self, path: str, method: str = "") -> int:
        return sum(line.startswith(method) and path in line for line in self.requests)

    @property
    def runs(self) -> list[Run]:
        return self.comfy.runs

    async def _serve(self, started: threading.Event) -> None:
        self.comfy = FaultyComfyUI(Path(self._folder.name), self.workflows)
        app = FastAPI()
        app.include_router(comfyui_routes(self.comfy))
        add_websocket(app, self.comfy)
        if self.has_jobs:
            _add_jobs(app, self.comfy)

        @app.middleware("http")
        async def spoil(request: Request, call_next: Any) -> Response:
            self.requests.append(f"{request.method} {request.url.path}")
            if request.url.path == "/free":
                self.comfy.freed += 1
            if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
                return PlainTextResponse("401 Unauthorized", status_code=401)
            for number, (path, fault) in enumerate(self._route_faults):
                if request.url.path.startswith(path):
                    del self._route_faults[number]
                    return _ROUTE_ANSWERS[fault]()
            return await call_next(request)  # type: ignore[no-any-return]

        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        worker = asyncio.create_task(self.comfy.work())
        serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        while not self._server.started:
            await asyncio.sleep(0.01)
        started.set()
        await serving
        worker.cancel()


def _add_jobs(app: FastAPI, comfy: FaultyComfyUI) -> None:
    """The two routes of newer servers that a driver needs; shapes as in the facts, 1.1."""

    @app.get("/api/jobs")
    async def jobs() -> dict[str, Any]:
        return {"jobs": [], "pagination": {"offset": 0, "limit": 1, "total": 0, "has_more": False}}

    @app.post("/api/jobs/{prompt_id}/cancel")
    async def cancel(prompt_id: str) -> dict[str, Any]:
        waiting = any(prompt.prompt_id == prompt_id for prompt in comfy.pending)
        await comfy.delete([prompt_id])
        comfy.interrupt(prompt_id)
        return {"cancelled": waiting or comfy.running is not None}


_ROUTE_ANSWERS: dict[RouteFault, Callable[[], Response]] = {
    "placeholder": lambda: HTMLResponse("<html>starting</html>", headers={"X-Portal-Placeholder": "1"}),
    "401": lambda: PlainTextResponse("401 Unauthorized", status_code=401),
    "413": lambda: PlainTextResponse("Maximum request body size 104857600 exceeded", status_code=413),
    "502": lambda: PlainTextResponse("Bad Gateway", status_code=502),
}
