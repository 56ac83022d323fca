"""The draft host's application: speech and ComfyUI on one address, as `produce` expects of a host."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from callsheet.preflight import SHIPPED_SIGNATURES
from callsheet.workflow import Workflow
from gpu_service.comfyui import ComfyUI
from gpu_service.routes import add_websocket, comfyui_routes
from gpu_service.speech import router as speech_routes

SIGNATURES = SHIPPED_SIGNATURES


def draft_signatures() -> dict[str, Any]:
    """The nodes that a draft host has, as ``/object_info`` gives them."""
    signatures: dict[str, Any] = json.loads(SIGNATURES.read_text("utf-8"))
    return signatures


def draft_app(workflows: dict[str, Workflow]) -> FastAPI:
    """The draft host, having every model that ``workflows`` declare. Its files are gone when it stops."""
    folder = tempfile.TemporaryDirectory(prefix="callsheet-draft-")
    comfy = ComfyUI(Path(folder.name), draft_signatures(), workflows)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(comfy.work())
        yield
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker
        # Here and not around the server, which ends with the signal that stopped it.
        folder.cleanup()

    app = FastAPI(title="Callsheet draft host", lifespan=lifespan)
    app.include_router(speech_routes)
    routes = comfyui_routes(comfy)
    app.include_router(routes)
    app.include_router(routes, prefix="/api")
    add_websocket(app, comfy)
    return app
