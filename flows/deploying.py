"""Deployments of our flows in a work pool.

identity = await deployed(render, "machines")
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.deployments.runner import DeploymentApplyError
from prefect.exceptions import ObjectNotFound
from prefect.types.entrypoint import EntrypointType

from callsheet.errors import BadInput


async def deployed(flow: Any, work_pool: str, **settings: Any) -> UUID:
    """Makes the deployment of a flow in a work pool, or brings it up to date. Returns its id.

    It is the one that `callsheet setup` made there, called as the flow; without one it is called as the work pool.

    Raises:
        BadInput: there is no such work pool.
    """
    deployment: Any = await flow.to_deployment(
        work_pool_name=work_pool,
        entrypoint_type=EntrypointType.MODULE_PATH,
        **await _set_up(flow, work_pool),
        **settings,
    )
    try:
        identity: UUID = await deployment.aapply()
    except (DeploymentApplyError, ObjectNotFound) as error:
        raise BadInput(
            f'work pool "{work_pool}": {error}; expected one of the Prefect server '
            f"(make it with: callsheet setup --work-pool {work_pool})"
        ) from None
    return identity


async def _set_up(flow: Any, work_pool: str) -> dict[str, Any]:
    """What stays as it is of the deployment that `flows.setting_up` made in the work pool."""
    async with get_client() as client:
        try:
            found = await client.read_deployment_by_name(f"{flow.name}/{flow.name}")
        except ObjectNotFound:
            return {"name": work_pool}
    if found.work_pool_name != work_pool:
        return {"name": work_pool}
    return {
        "name": found.name,
        "description": found.description,
        "tags": found.tags,
        "job_variables": found.job_variables,
        "work_queue_name": found.work_queue_name,
    }
