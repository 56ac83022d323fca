"""The Compose file: it listens on this machine only, holds no secret, and sets what Prefect knows.

Docker is not needed for this, and was not run.
"""

import re
from typing import Any

import pytest
import yaml
from prefect.settings import Settings

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    compose = yaml.safe_load((ROOT / "deployments/compose.yaml").read_text("utf-8"))
    found: dict[str, Any] = compose["services"]
    return found


def known_settings(model: Any, found: set[str] | None = None) -> set[str]:
    """The environment variables that Prefect reads."""
    names: set[str] = set() if found is None else found
    prefix = model.model_config.get("env_prefix", "")
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            known_settings(field.annotation, names)
            continue
        names.add(f"{prefix}{name}".upper())
        for choice in getattr(field.validation_alias, "choices", ()):
            if isinstance(choice, str):
                names.add(choice.upper())
    return names


def test_every_setting_is_one_that_prefect_knows(services: dict[str, Any]) -> None:
    known = known_settings(Settings)
    used = {
        name
        for service in services.values()
        for name in service.get("environment", {})
        if name.startswith("PREFECT_")
    }
    assert len(used) > 8
    assert used <= known, used - known


def test_only_this_machine_reaches_what_listens(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_secret_stands_in_it(services: dict[str, Any]) -> None:
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY", name):
                assert value is None or value.startswith("${"), name
            assert not re.search(r"://\w+:[^$@]+@", str(value)), name


def test_the_server_keeps_its_leases_and_the_workers_say_that_they_live(services: dict[str, Any]) -> None:
    server, worker = services["server"], services["worker"]
    assert server["environment"]["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith("filesystem")
    assert f"leases:{server['environment']['PREFECT_HOME']}" in server["volumes"]
    assert server["environment"]["PREFECT_API_DATABASE_CONNECTION_URL"].startswith("postgresql+asyncpg://")
    assert worker["deploy"]["replicas"] == 2
    assert worker["environment"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert worker["command"][:3] == ["prefect", "worker", "start"]
