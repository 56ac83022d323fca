"""ComfyUI's HTTP and websocket routes, with ComfyUI 0.3.64's own shapes (read in its server.py)."""

from __future__ import annotations

import json
import uuid
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, JSONResponse

from gpu_service.comfyui import MAX_UPLOAD, VERSION, ComfyUI


def comfyui_routes(comfy: ComfyUI) -> APIRouter:
    """The routes; the real server also has each of them under /api."""
    router = APIRouter()
    _add_queue(router, comfy)
    _add_history(router, comfy)
    _add_files(router, comfy)
    _add_descriptions(router, comfy)
    return router


def _add_queue(router: APIRouter, comfy: ComfyUI) -> None:

    @router.post("/prompt")
    async def post_prompt(request: Request) -> Response:
        try:
            body = json.loads(await request.body())
        except ValueError:
            return Response("500 Internal Server Error", status_code=500, media_type="text/plain")
        return await comfy.submit(body if isinstance(body, dict) else {})

    @router.get("/prompt")
    async def get_prompt() -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": len(comfy.pending) + (comfy.running is not None)}}

    @router.get("/queue")
    async def get_queue() -> dict[str, Any]:
        running = [comfy.running.listed()] if comfy.running else []
        return {"queue_running": running, "queue_pending": [prompt.listed() for prompt in comfy.pending]}

    @router.post("/queue")
    async def post_queue(request: Request) -> Response:
        body = await request.json()
        ids = [prompt.prompt_id for prompt in comfy.pending] if body.get("clear") else body.get("delete", [])
        await comfy.delete(ids)
        return Response()

    @router.post("/interrupt")
    async def interrupt(request: Request) -> Response:
        content = await request.body()
        comfy.interrupt(json.loads(content).get("prompt_id") if content else None)
        return Response()

    @router.post("/free")
    async def free() -> Response:
        return Response()


def _add_history(router: APIRouter, comfy: ComfyUI) -> None:
    @router.get("/history")
    async def get_history(max_items: int | None = None, offset: int = -1) -> dict[str, Any]:
        ids = list(comfy.history)
        if max_items is not None:
            ids = ids[offset : offset + max_items] if offset >= 0 else ids[-max_items:]
        return {prompt_id: comfy.history[prompt_id] for prompt_id in ids}

    @router.get("/history/{prompt_id}")
    async def get_history_of(prompt_id: str) -> dict[str, Any]:
        return {prompt_id: comfy.history[prompt_id]} if prompt_id in comfy.history else {}

    @router.post("/history")
    async def post_history(request: Request) -> Response:
        body = await request.json()
        for prompt_id in list(comfy.history) if body.get("clear") else body.get("delete", []):
            comfy.history.pop(prompt_id, None)
        return Response()


def _add_files(router: APIRouter, comfy: ComfyUI) -> None:
    @router.post("/upload/image")
    async def upload(request: Request) -> Response:
        form = await request.form(max_part_size=MAX_UPLOAD)
        image = form.get("image")
        if image is None or isinstance(image, str) or not image.filename:
            return Response(status_code=400)
        overwrite = str(form.get("overwrite", "")).lower() in ("true", "1")
        where = str(form.get("subfolder", "")), str(form.get("type", "input"))
        try:
            stored = comfy.store_upload(image.filename, *where, await image.read(), overwrite=overwrite)
        except (ValueError, PermissionError):
            return Response(status_code=400)
        return JSONResponse(stored)

    @router.get("/view")
    async def view(filename: str, type: str = "output", subfolder: str = "") -> Response:  # ComfyUI's names
        try:
            path = comfy.path(type, subfolder, filename)
        except PermissionError:
            return Response(status_code=403)
        except ValueError:
            return Response(status_code=400)
        return FileResponse(path) if path.is_file() else Response(status_code=404)


def _add_descriptions(router: APIRouter, comfy: ComfyUI) -> None:
    @router.get("/object_info")
    async def object_info() -> dict[str, Any]:
        return comfy.object_info()

    @router.get("/object_info/{kind}")
    async def object_info_of(kind: str) -> dict[str, Any]:
        info = comfy.object_info()
        return {kind: info[kind]} if kind in info else {}

    @router.get("/system_stats")
    async def system_stats() -> dict[str, Any]:
        system = {
            "os": "posix",
            "ram_total": 0,
            "ram_free": 0,
            "comfyui_version": VERSION,
            "argv": ["gpu_service", "--draft"],
        }
        device = {"name": "draft (no GPU)", "type": "cpu", "index": 0, "vram_total": 0, "vram_free": 0}
        return {"system": system, "devices": [{**device, "torch_vram_total": 0, "torch_vram_free": 0}]}

    @router.get("/features")
    async def features() -> dict[str, Any]:
        return {"supports_preview_metadata": True, "max_upload_size": MAX_UPLOAD}


def add_websocket(app: FastAPI, comfy: ComfyUI) -> None:
    """``/ws``: one socket per client id; a new one takes the place of the old one."""

    @app.websocket("/ws")
    async def events(socket: WebSocket, clientId: str = "") -> None:  # ComfyUI's name
        await socket.accept()
        sid = clientId or uuid.uuid4().hex
        comfy.sockets[sid] = socket
        remaining = len(comfy.pending) + (comfy.running is not None)
        status = {"status": {"exec_info": {"queue_remaining": remaining}}, "sid": sid}
        await socket.send_json({"type": "status", "data": status})
        try:
            while True:
                await socket.receive_text()
        except WebSocketDisconnect:
            comfy.sockets.pop(sid, None)
