"""Deployments of our flows in a work pool.

identity = await deployed(render, "machines")
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect.deployments.runner import DeploymentApplyError
from prefect.exceptions import ObjectNotFound
from prefect.types.entrypoint import EntrypointType

from callsheet.errors import BadInput


async def deployed(flow: Any, work_pool: str, **settings: Any) -> UUID:
    """Makes the deployment of a flow in a work pool, named as that, or brings it up to date. Returns its id.

    Raises:
        BadInput: there is no such work pool.
    """
    deployment: Any = await flow.to_deployment(
        name=work_pool, work_pool_name=work_pool, entrypoint_type=EntrypointType.MODULE_PATH, **settings
    )
    try:
        identity: UUID = await deployment.aapply()
    except (DeploymentApplyError, ObjectNotFound) as error:
        raise BadInput(
            f'work pool "{work_pool}": {error}; expected one of the Prefect server '
            f"(make it with: prefect work-pool create {work_pool} --type process)"
        ) from None
    return identity
