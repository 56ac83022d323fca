"""The flow that brings models into the store."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from callsheet.errors import BadInput
from callsheet.models import ModelShelf
from callsheet.store import LocalFolder
from flows.sync_models import SyncModelsParameters, sync_models

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.mark.slow
async def test_what_workflows_load_is_brought_to_the_store(tmp_path: Path, prefect_api: str) -> None:
    wanted = tmp_path / "models/vae/ae.safetensors"
    wanted.parent.mkdir(parents=True)
    store = tmp_path / "store"
    parameters = SyncModelsParameters(folder=tmp_path / "models", store=str(store))
    state: Any = await sync_models(parameters, return_state=True)
    assert isinstance(await state.aresult(raise_on_failure=False), BadInput)
    wanted.write_bytes(b"a model")
    state = await sync_models(parameters, return_state=True)
    assert state.is_completed(), state.message
    assert [file.path for file in ModelShelf(LocalFolder(store)).manifest().files] == ["vae/ae.safetensors"]
    async with httpx.AsyncClient() as client:
        asked = {"artifacts": {"key": {"any_": ["models"]}}}
        answer = await client.post(f"{prefect_api}/api/artifacts/filter", json=asked)
    assert [(bar["type"], bar["data"]) for bar in answer.json()] == [("progress", 100.0)]
    named = parameters.model_copy(update={"paths": ("vae/ae.safetensors", "vae/none.pt")})
    state = await sync_models(named, return_state=True)
    assert state.is_failed()
    assert "0 files are there. model vae/none.pt: found no such file" in state.message
