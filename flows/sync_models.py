"""Brings model files into the store, from where rented hosts load them; what is there whole is not sent again.

    state = await sync_models(SyncModelsParameters(folder="ComfyUI/models", store="r2://media/callsheet"), return_state=True)

The same as ``callsheet models upload``, for a machine of a work pool that has the files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from blocks.store import open_store
from callsheet.errors import BadInput, CallsheetError
from callsheet.models import ModelFile, ModelShelf, Uploaded, bytes_of, files_below, wanted_by
from callsheet.sources import PathText
from callsheet.workflow import SHIPPED_WORKFLOWS, read_workflows

#: How often the bar is moved.
SHOW_SECONDS = 2.0


class SyncModelsParameters(BaseModel):
    """Settings of the flow `sync_models`."""

    model_config = ConfigDict(extra="forbid")

    folder: Path = Field(
        description="Folder of models as ComfyUI has it, with unet, loras, vae, …",
        examples=["ComfyUI/models"],
    )
    store: str = Field(
        default="out",
        description="Where they go: a folder, r2://BUCKET/PREFIX, or block:r2-bucket/NAME.",
        examples=["out", "r2://media/callsheet"],
    )
    paths: tuple[str, ...] = Field(
        default=(),
        description="Files below the folder; those that the workflows load where none is given.",
        examples=[["unet/wan2.2_t2v_high_noise_14B_Q4_K_M.gguf"]],
    )
    workflows: PathText = Field(
        default="",
        description="Folder of the ComfyUI workflows; those that come with Callsheet where empty.",
        examples=["workflows"],
    )


@flow(name="sync_models", flow_run_name="sync models {parameters.folder}", persist_result=False)
async def sync_models(parameters: SyncModelsParameters) -> State[Any]:
    """Uploads what is missing, one file after the other. Its result is the list of files."""
    logger = get_run_logger()
    done: list[ModelFile] = []
    try:
        paths = parameters.paths or await asyncio.to_thread(_wanted, parameters)
        shelf = ModelShelf(await open_store(parameters.store))
        async with _shown(await asyncio.to_thread(bytes_of, parameters.folder, paths)) as sent:
            files = shelf.upload(parameters.folder, paths, sent)
            while (uploaded := await asyncio.to_thread(_next, files)) is not None:
                what = "is there already" if uploaded.was_there else "sent"
                logger.info("%d of %d: %s: %s", len(done) + 1, len(paths), uploaded.file.path, what)
                done.append(uploaded.file)
    except CallsheetError as error:
        return Failed(message=f"{len(done)} files are there. {error}", data=error)
    return Completed(message=f"{len(done)} models are in {parameters.store}", data=done)


@asynccontextmanager
async def _shown(total: int) -> AsyncIterator[Callable[[int], None]]:
    """A bar in Prefect's UI. Gives what is to be told of bytes as they are there."""
    there: list[int] = []
    bar = await acreate_progress_artifact(
        progress=0.0, key="models", description=f"Models, of {total / 1e9:.1f} GB"
    )
    assert isinstance(bar, UUID)

    async def show() -> None:
        await aupdate_progress_artifact(bar, progress=100 * min(1.0, sum(there) / max(total, 1)))

    async def keep_showing() -> None:
        while True:
            await asyncio.sleep(SHOW_SECONDS)
            await show()

    showing = asyncio.create_task(keep_showing())
    try:
        yield there.append
    finally:
        showing.cancel()
        await show()


def _next(files: Any) -> Uploaded | None:
    return next(files, None)


def _wanted(parameters: SyncModelsParameters) -> tuple[str, ...]:
    lying = files_below(parameters.folder)
    wanted = tuple(
        path
        for path in wanted_by(read_workflows(Path(parameters.workflows or SHIPPED_WORKFLOWS)).values())
        if path in lying
    )
    if not wanted:
        raise BadInput(f"models: found none of the files below {parameters.folder} that the workflows load")
    return wanted
