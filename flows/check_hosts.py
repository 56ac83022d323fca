"""Are the hosts of a fleet well? Each engine is asked what costs nothing, and with ``full`` made to work.

    from flows.check_hosts import CheckHostsParameters, check_hosts

    state = await check_hosts(CheckHostsParameters(fleet="fleet.toml", full=True), return_state=True)

From a terminal it is ``callsheet hosts``. The flow run fails where an engine is not well, and names each.
"""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import acreate_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from blocks.fleet import open_fleet
from blocks.store import open_store
from callsheet.errors import BadInput, CallsheetError
from callsheet.inputs import Mistakes
from callsheet.voices import Voice, read_voices
from tasks.hosts import check_engine, open_hosts
from tasks.rented import hosts_now


class CheckHostsParameters(BaseModel):
    """Settings of the flow `check_hosts`."""

    model_config = ConfigDict(extra="forbid")

    fleet: str = Field(
        default="draft",
        description="The hosts: draft, the path of a fleet file, or block:gpu-fleet/NAME.",
        examples=["draft", "fleet.toml", "block:gpu-fleet/studio"],
    )
    store: str = Field(
        default="out",
        description="Where rented hosts are written down: a folder, r2://BUCKET/PREFIX, or block:r2-bucket/NAME.",
        examples=["out", "r2://media/callsheet"],
    )
    full: bool = Field(
        default=False,
        description="Whether each speech engine says a sentence, which is listened to; it costs it seconds.",
        examples=[True],
    )
    voices: Path = Field(
        default=Path("data/voices.csv"),
        description="Path of voices.csv: whose voice says the sentence.",
        examples=["data/voices.csv"],
    )
    voice: str = Field(
        default="", description="Which voice; the first of the file where empty.", examples=["anna"]
    )


@flow(name="check_hosts", flow_run_name="check hosts of {parameters.fleet}", persist_result=False)
async def check_hosts(parameters: CheckHostsParameters) -> State[Any]:
    """Asks every engine of the fleet, all at once; its table is an artifact of the run."""
    try:
        fleet = await open_fleet(parameters.fleet)
        voice = await asyncio.to_thread(_voice, parameters) if parameters.full else None
        tokens: dict[str, SecretStr] = {}
        if fleet.rent is not None:
            fleet, tokens = await hosts_now(fleet, await open_store(parameters.store))
        engines = {lane.engine_name: lane for lane in fleet.lanes()}
        async with open_hosts(fleet, list(engines.values()), tokens) as clients:
            found = await asyncio.gather(
                *(check_engine(name, lane, clients[name], voice) for name, lane in engines.items())
            )
    except CallsheetError as error:
        return Failed(message=str(error), data=error)
    await acreate_table_artifact(
        table=[health.row() for health in found],
        key="hosts",
        description=f"Engines of the fleet {parameters.fleet}",
    )
    ill = [health for health in found if not health.ok]
    if ill:
        reasons = "; ".join(f"{health.engine}: {health.reason}" for health in ill)
        return Failed(message=f"{len(ill)} of {len(found)} engines are not well. {reasons}", data=found)
    return Completed(message=f"{len(found)} engines are well", data=found)


def _voice(parameters: CheckHostsParameters) -> Voice:
    voices: dict[str, Voice] = read_voices(parameters.voices)
    name = parameters.voice or next(iter(voices), "")
    if name not in voices:
        raise BadInput(f'voice: found "{name}"; expected one of {", ".join(voices) or "a file with voices"}')
    voice = voices[name]
    # A recording that breaks a server must not be what its health is tried with.
    if mistakes := list(voice.mistakes(commercial=False, today=datetime.date.today())):
        raise Mistakes(mistakes)
    return voice
