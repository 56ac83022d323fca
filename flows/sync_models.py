"""Brings model files into the store, from where rented hosts load them; what is there whole is not sent again.

    state = await sync_models(SyncModelsParameters(folder="ComfyUI/models", store="r2://media/callsheet"), return_state=True)

The same as ``callsheet models upload``, for a machine of a work pool that has the files.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from blocks.store import open_store
from callsheet.errors import BadInput, CallsheetError
from callsheet.models import ModelFile, ModelShelf, Uploaded, files_below, wanted_by
from callsheet.workflow import SHIPPED_WORKFLOWS, read_workflows


class SyncModelsParameters(BaseModel):
    """Settings of the flow `sync_models`."""

    model_config = ConfigDict(extra="forbid")

    folder: Path = Field(description="Folder of models as ComfyUI has it, with unet, loras, vae, …")
    store: str = Field(
        default="out", description="Where they go: a folder, r2://BUCKET/PREFIX, or block:r2-bucket/NAME."
    )
    paths: tuple[str, ...] = Field(
        default=(), description="Files below the folder; those that the workflows load where none is given."
    )
    workflows: Path = Field(default=SHIPPED_WORKFLOWS, description="Folder of the workflows.")


@flow(name="sync_models", flow_run_name="sync models {parameters.folder}", persist_result=False)
async def sync_models(parameters: SyncModelsParameters) -> State[Any]:
    """Uploads what is missing, one file after the other. Its result is the list of files."""
    logger = get_run_logger()
    done: list[ModelFile] = []
    try:
        paths = parameters.paths or await asyncio.to_thread(_wanted, parameters)
        sent = ModelShelf(await open_store(parameters.store)).upload(parameters.folder, paths)
        while (uploaded := await asyncio.to_thread(_next, sent)) is not None:
            what = "is there already" if uploaded.was_there else "sent"
            logger.info("%d of %d: %s: %s", len(done) + 1, len(paths), uploaded.file.path, what)
            done.append(uploaded.file)
    except CallsheetError as error:
        return Failed(message=f"{len(done)} files are there. {error}", data=error)
    return Completed(message=f"{len(done)} models are in {parameters.store}", data=done)


def _next(sent: Any) -> Uploaded | None:
    return next(sent, None)


def _wanted(parameters: SyncModelsParameters) -> tuple[str, ...]:
    lying = files_below(parameters.folder)
    wanted = tuple(path for path in wanted_by(read_workflows(parameters.workflows).values()) if path in lying)
    if not wanted:
        raise BadInput(f"models: found none of the files below {parameters.folder} that the workflows load")
    return wanted
