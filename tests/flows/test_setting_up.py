"""`callsheet setup`: one command makes what a Prefect server needs, a second one changes nothing, a person's changes stay."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import DeploymentSort
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings

from callsheet.deployments import SHIPPED_DEPLOYMENTS, read_deployments
from callsheet.parameters import ProduceParameters
from flows.produce_inbox import ProduceInboxParameters
from flows.reap import ReapParameters, deploy_reap
from flows.setting_up import SetUp, Thing, set_up
from tests.conftest import ROOT, started, write_fleet

NAMES = ["produce", "produce-nightly", "render", "provision", "reap", "check-hosts", "sync-models"]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own: limits that a person set would hold up the runs of other tests."""
    home = tmp_path_factory.mktemp("set-up")
    for url in started("flows.server_process", env={"CALLSHEET_HOME": str(home)}):
        with temporary_settings({PREFECT_API_URL: f"{url}/api"}):
            yield url


def states(things: list[Thing]) -> dict[str, str]:
    return {f"{thing.kind} {thing.name}": thing.state for thing in things}


async def deployments(client: PrefectClient) -> dict[str, DeploymentResponse]:
    found = await client.read_deployments(limit=200, sort=DeploymentSort.NAME_ASC)
    return {one.name: one for one in found}


def test_every_deployment_names_a_flow_and_says_what_it_is_for() -> None:
    declared = read_deployments()
    assert [one.name for one in declared] == NAMES
    for one in declared:
        flow: Any = load_flow_from_entrypoint(one.entrypoint, use_placeholder_flow=False)
        assert one.entrypoint == f"{flow.fn.__module__}.{flow.fn.__name__}"
        assert len(one.description) > 40
        assert one.tags
        if one.schedules:
            flow.validate_parameters(one.parameters)
            assert one.concurrency_limit is not None
            assert one.concurrency_limit.limit == 1
            assert not one.schedules[0].active
            assert "switch the schedule on" in one.description
    raw = yaml.safe_load(SHIPPED_DEPLOYMENTS.read_text("utf-8"))
    assert len(PrefectYamlModel.model_validate(raw).deployments) == len(NAMES)
    assert {entry["work_pool"]["name"] for entry in raw["deployments"]} == {"local"}


def test_forms_explain_every_field_and_begin_with_what_is_produced() -> None:
    for entrypoint in [one.entrypoint for one in read_deployments() if "internal" not in one.tags]:
        flow = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
        for model, schema in flow.parameters.definitions.items():
            for name, field in schema.get("properties", {}).items():
                told = f"{entrypoint}: {model}.{name}"
                assert field.get("description") or "$ref" in field, f"{told} has no description"
                assert field.get("examples"), f"{told} has no example"
    script, *_ = ProduceParameters.model_json_schema()["properties"]
    inbox, *others = ProduceInboxParameters.model_json_schema()["properties"]
    assert (script, inbox) == ("script", "inbox")
    assert "approve" not in others, "nobody is there at night to approve anything"


async def test_once_makes_all_of_it_and_twice_changes_nothing(api: str) -> None:
    first = states(await set_up(SetUp(work_pool="local")))
    assert set(first.values()) == {"made"}
    for name in ("block type gpu-fleet", "block type r2-bucket", "limit tag:gpu", "limit lane:draft:comfyui"):
        assert name in first
    assert "work pool local" in first
    assert len([name for name in first if name.startswith("deployment ")]) == len(NAMES)
    assert {"automation callsheet-zombies", "automation callsheet-not-approved"} <= set(first)
    async with get_client() as client:
        before = await deployments(client)
        second = states(await set_up(SetUp(work_pool="local")))
        after = await deployments(client)
    assert second == dict.fromkeys(first, "there")
    assert sorted(before) == sorted(NAMES)
    # Neither a new version nor a new time of change.
    assert {name: d.updated for name, d in after.items()} == {name: d.updated for name, d in before.items()}
    nightly = after["produce-nightly"]
    assert [(s.active, s.schedule.cron, s.schedule.timezone) for s in nightly.schedules] == [
        (False, "0 2 * * *", "Etc/UTC")
    ]
    for name in ("produce-nightly", "reap", "check-hosts"):
        deployment = after[name]
        assert deployment.global_concurrency_limit is not None
        assert deployment.global_concurrency_limit.limit == 1
        assert deployment.concurrency_options is not None
        assert deployment.concurrency_options.collision_strategy == "CANCEL_NEW"
    assert after["reap"].schedules[0].schedule.interval.total_seconds() == 300
    assert {d.work_pool_name for d in after.values()} == {"local"}
    assert {d.job_variables["working_dir"] for d in after.values()} == {str(Path.cwd())}


async def test_what_a_person_changed_is_kept_and_what_is_ours_is_brought_up_to_date(api: str) -> None:
    await set_up(SetUp(work_pool="local"))
    async with get_client() as client:
        found = await client.read_deployment_by_name("check_hosts/check-hosts")
        await client.update_deployment(
            found.id,
            DeploymentUpdate(description="something old", parameters={"parameters": {"fleet": "mine.toml"}}),
        )
        await client.update_deployment_schedule(found.id, found.schedules[0].id, active=True)
        again = states(await set_up(SetUp(work_pool="local")))
        now = await client.read_deployment_by_name("check_hosts/check-hosts")
    assert {name for name, state in again.items() if state != "there"} == {
        "deployment check_hosts/check-hosts"
    }
    assert now.schedules[0].active
    assert now.parameters == {"parameters": {"fleet": "mine.toml"}}
    assert now.description is not None
    assert now.description.startswith("Asks every engine")


async def test_a_limit_that_a_person_set_is_not_lowered(api: str, tmp_path: Path) -> None:
    fleet = str(write_fleet(tmp_path / "f.toml", {"one": "http://127.0.0.1:1", "two": "http://127.0.0.1:2"}))
    await set_up(SetUp())
    wider = {thing.name: thing for thing in await set_up(SetUp(fleet=fleet))}
    assert (wider["tag:gpu"].state, wider["lane:one:comfyui"].state) == ("updated", "made")
    raised = {thing.name: thing for thing in await set_up(SetUp(gpu_slots=40))}["tag:gpu"]
    assert raised.state == "updated"
    left = {thing.name: thing for thing in await set_up(SetUp(gpu_slots=4))}["tag:gpu"]
    assert left.state == "left"
    assert "40" in left.note
    kept = {thing.name: thing for thing in await set_up(SetUp(fleet=fleet))}["tag:gpu"]
    assert (kept.state, kept.note) == ("there", "40")
    async with get_client() as client:
        limit = await client.read_global_concurrency_limit_by_name("lane:one:lighttts")
        url = f"{api}/api/v2/concurrency_limits/{limit.id}"
        httpx.patch(url, json={"limit": limit.limit + 5}).raise_for_status()
        lane = {thing.name: thing for thing in await set_up(SetUp(fleet=fleet))}["lane:one:lighttts"]
        assert lane.state == "left"
        limit_now = await client.read_global_concurrency_limit_by_name("lane:one:lighttts")
    assert limit_now.limit == limit.limit + 5


async def test_a_sweep_that_is_scheduled_from_the_terminal_is_that_deployment(api: str) -> None:
    await set_up(SetUp(work_pool="local"))
    identity = await deploy_reap("local", ReapParameters(store="/srv/out"))
    async with get_client() as client:
        found = await client.read_deployment_by_name("reap/reap")
        assert found.id == identity
        assert [s.active for s in found.schedules] == [True]
        assert found.parameters["parameters"]["store"] == "/srv/out"
        assert found.tags == ["callsheet", "hosts", "scheduled"]
        assert found.concurrency_options is not None
        assert found.concurrency_options.collision_strategy == "CANCEL_NEW"
        assert [
            d.name for d in (await deployments(client)).values() if d.entrypoint == "flows.reap.reap"
        ] == ["reap"]
    assert states(await set_up(SetUp(work_pool="local")))["deployment reap/reap"] == "there"


async def test_forms_have_the_store_that_is_asked_for(api: str) -> None:
    await set_up(SetUp(work_pool="local", store="/srv/out"))
    async with get_client() as client:
        found = await deployments(client)
        assert found["produce"].parameters == {"parameters": {"store": "/srv/out"}}
        assert found["check-hosts"].parameters["parameters"]["store"] == "/srv/out"
        assert "store" not in found["render"].parameters.get("parameters", {})
    second = await set_up(SetUp(work_pool="local", store="/srv/out"))
    assert {thing.state for thing in second} <= {"there", "left"}
    # The desk of another folder: what we gave follows, what a person set stays, and is said.
    async with get_client() as client:
        given = {"parameters": {"store": "r2://media/callsheet", "commercial": True}}
        await client.update_deployment(found["produce-nightly"].id, DeploymentUpdate(parameters=given))
    third = {thing.name: thing for thing in await set_up(SetUp(work_pool="local", store="/srv/elsewhere"))}
    assert third["produce/produce"].state == "updated"
    nightly = third["produce_inbox/produce-nightly"]
    assert (nightly.state, nightly.note) == ("left", "its store stays r2://media/callsheet")
    async with get_client() as client:
        after = await deployments(client)
    assert after["produce"].parameters == {"parameters": {"store": "/srv/elsewhere"}}
    assert after["produce-nightly"].parameters == given


@pytest.mark.slow
def test_the_command_says_what_it_made(api: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PREFECT_API_URL": f"{api}/api"}
    command = [BIN / "callsheet", "setup", "--work-pool", "said"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "made    work pool said (type process)" in told.stdout
    again = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=False)
    things = json.loads(again.stdout.splitlines()[-1])["things"]
    assert {thing["state"] for thing in things} <= {"there", "left"}
    del environment["PREFECT_API_URL"]
    environment["PREFECT_HOME"] = str(tmp_path)
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "found no PREFECT_API_URL" in refused.stderr


@pytest.mark.slow
def test_prefects_own_command_takes_the_file(tmp_path: Path) -> None:
    for url in started("flows.server_process", env={"CALLSHEET_HOME": str(tmp_path)}):
        pool = {"name": "local", "type": "process"}
        httpx.post(f"{url}/api/work_pools/", json=pool).raise_for_status()
        told = subprocess.run(
            [
                BIN / "prefect",
                "--no-prompt",
                *"deploy --name produce-nightly --prefect-file deployments/prefect.yaml".split(),
            ],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": f"{url}/api", "PWD": str(ROOT), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        # Not its exit code: afterwards Prefect 3.8.8 asks for workers in a way that its own server refuses (422).
        assert "successfully created" in told.stdout, told.stdout + told.stderr
        (found,) = httpx.post(f"{url}/api/deployments/filter", json={}).raise_for_status().json()
        assert (found["name"], found["pull_steps"]) == ("produce-nightly", [])
        assert found["job_variables"] == {"working_dir": str(ROOT)}
        with temporary_settings({PREFECT_API_URL: f"{url}/api"}):
            after = states(asyncio.run(set_up(SetUp())))
        made = {name for name, state in after.items() if name.startswith("deployment ") and state == "made"}
        assert len(made) == len(NAMES) - 1, "all but the one that Prefect made"
