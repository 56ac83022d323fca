"""Rents hosts ahead of a batch, such as before a nightly one: they are ready when it begins, and it uses them again.

    state = await provision(ProvisionParameters(fleet="fleet.toml", store="out", hours=2), return_state=True)

The rules of the fleet must keep hosts (``keep_minutes``), else they would be given back at once. `reap` gives them back.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from blocks.fleet import open_fleet
from blocks.store import open_store
from callsheet.errors import BadInput, CallsheetError
from callsheet.fleet import Fleet
from tasks.readiness import Probe
from tasks.rented import renting


class ProvisionParameters(BaseModel):
    """Settings of the flow `provision`."""

    model_config = ConfigDict(extra="forbid")

    fleet: str = Field(
        description="The fleet that is rented: the path of a fleet file, or block:gpu-fleet/NAME.",
        examples=["fleet.toml", "block:gpu-fleet/studio"],
    )
    store: str = Field(
        default="out",
        description="Where the hosts are written down: a folder, r2://BUCKET/PREFIX, or block:r2-bucket/NAME.",
        examples=["out", "r2://media/callsheet"],
    )
    hours: float = Field(
        default=1.0,
        gt=0,
        description="Hours of work for one host; they decide how many are rented.",
        examples=[2.0],
    )


@flow(name="provision", flow_run_name="provision {parameters.fleet}", persist_result=False)
async def provision(parameters: ProvisionParameters) -> State[Any]:
    """Reuses or rents as many hosts as the hours are worth, and waits until they answer. Its result is the fleet."""
    try:
        fleet = await open_fleet(parameters.fleet)
        _check(fleet, parameters)
        store = await open_store(parameters.store)
        async with renting(fleet, store) as rental:
            await rental.acquire(parameters.hours, Probe(None, ()))
            while rental.lanes_to_come():
                await rental.arrival()
            ready = rental.fleet
    except CallsheetError as error:
        return Failed(message=str(error), data=error)
    names = ", ".join(host.name for host in ready.hosts)
    return Completed(message=f"{len(ready.hosts)} hosts are ready: {names}", data=ready)


def _check(fleet: Fleet, parameters: ProvisionParameters) -> None:
    if fleet.rent is None:
        raise BadInput(
            f'fleet "{parameters.fleet}": found provider {fleet.provider}; expected vastai, whose hosts are rented'
        )
    if not fleet.rent.keep_minutes:
        raise BadInput(
            f'fleet "{parameters.fleet}": found keep_minutes 0, so hosts would be given back at once; expected the minutes '
            "until the batch that is to use them has begun"
        )
