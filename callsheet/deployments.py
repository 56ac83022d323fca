"""What `deployments/prefect.yaml` says: which flows can be run from the Prefect UI, how they are called, when they run.

for declared in read_deployments(SHIPPED_DEPLOYMENTS):
    declared.name, declared.entrypoint, declared.schedules
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from callsheet.errors import BadInput

_FOLDER = Path(__file__).resolve().parent.parent / "deployments"
#: The file that `prefect deploy` reads, too.
SHIPPED_DEPLOYMENTS = _FOLDER / "prefect.yaml"
#: The file that `prefect automation create` reads, too.
SHIPPED_AUTOMATIONS = _FOLDER / "automations.yaml"


class DeclaredSchedule(BaseModel):
    """When a deployment runs by itself: by ``cron`` in a time zone, or every ``interval``."""

    model_config = ConfigDict(extra="forbid")

    cron: str | None = None
    interval: timedelta | None = None
    timezone: str | None = None
    slug: str | None = None
    active: bool = True


class DeclaredLimit(BaseModel):
    """How many runs of a deployment go at once, and what becomes of one more."""

    model_config = ConfigDict(extra="forbid")

    limit: int
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"


class DeclaredPool(BaseModel):
    """The queue of the work pool that a deployment's runs wait in; the pool itself is settled when it is made."""

    model_config = ConfigDict(extra="ignore")

    work_queue_name: str | None = None


class DeclaredDeployment(BaseModel):
    """A deployment as the file has it; its work pool is settled when it is made."""

    model_config = ConfigDict(extra="ignore")

    name: str
    entrypoint: str
    description: str
    tags: list[str] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)
    work_pool: DeclaredPool = Field(default_factory=DeclaredPool)
    concurrency_limit: DeclaredLimit | None = None
    schedules: list[DeclaredSchedule] = Field(default_factory=list)


class _File(BaseModel):
    deployments: list[DeclaredDeployment]


def read_deployments(path: Path = SHIPPED_DEPLOYMENTS) -> list[DeclaredDeployment]:
    """The deployments of a ``prefect.yaml``.

    Raises:
        BadInput: it cannot be read, or says what we do not know.
    """
    try:
        return _File.model_validate(yaml.safe_load(path.read_text("utf-8"))).deployments
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise BadInput(f"{path}: {error}") from None


def read_automations(path: Path = SHIPPED_AUTOMATIONS) -> list[dict[str, Any]]:
    """The automations of a file, as Prefect takes them.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        found: list[dict[str, Any]] = yaml.safe_load(path.read_text("utf-8"))["automations"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: {error}") from None
    return found
