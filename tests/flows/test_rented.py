"""Rented hosts, end to end: a fake vast.ai whose boxes are draft hosts behind the portal of vast.ai's images."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client

from callsheet.errors import BadInput, Budget
from callsheet.hosts import HostBook, HostLabel, HostRecord
from callsheet.manifest import Manifest, Summary
from callsheet.parameters import ProduceParameters
from callsheet.store import LocalFolder
from flows.produce import give_hosts_back, produce
from flows.provision import ProvisionParameters, provision
from flows.reap import ReapParameters, reap
from tasks.host_use import server_id
from tasks.locks import read_limits
from tests.callsheet.test_hosts import record, records
from tests.fakes.rented_box import Boxes
from tests.fakes.vast import KEY, Vast

pytestmark = pytest.mark.usefixtures("prefect_api")

LINE = {"shot_id": "a", "text": "The keeper lit the lamp at six.", "voice": "anna"}
PICTURE = {"shot_id": "p", "visual": "flux_dev", "prompt": "a lamp", "width": 256, "height": 256}
FLEET = """
provider = "vastai"
[rent]
name = "studio"
gpu_names = ["RTX 4090"]
max_per_hour = 0.6
image = "comfy:1"
{rules}
[[host]]
name = "rented"
vram_gb = 24
[[host.engine]]
kind = "lighttts"
port = 8080
revision = "{revision}"
[[host.engine]]
kind = "comfyui"
port = 18188
revision = "{revision}"
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.05")


@pytest.fixture
def vast(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vast]:
    with Vast() as server, server.in_real_time():
        monkeypatch.setenv("VAST_API_KEY", KEY)
        monkeypatch.setenv("VAST_URL", server.url)
        yield server


@pytest.fixture
def boxes(vast: Vast, draft_host: str) -> Iterator[Boxes]:
    boxes = Boxes(vast, draft_host)
    yield boxes
    boxes.close()


class Studio:
    """Runs scripts with a fleet of rented hosts, and looks at what came of it."""

    def __init__(self, folder: Path, write_script: Callable[..., Path], rules: str) -> None:
        self.store = folder / "out"
        self.write_script = write_script
        self.fleet = folder / "fleet.toml"
        # A revision of its own: the draft host of the session would know the prompts of other tests.
        self.fleet.write_text(FLEET.format(rules=rules, revision=folder.name), "utf-8")
        self.book = HostBook(LocalFolder(self.store))

    async def run(self, *rows: dict[str, Any], **settings: Any) -> Summary:
        outcome = await self.outcome(*rows, **settings)
        assert isinstance(outcome, Summary), outcome
        return outcome

    async def outcome(self, *rows: dict[str, Any], name: str = "script", **settings: Any) -> Any:
        parameters = self.parameters(*rows, name=name, **settings)
        self.state: Any = await produce(parameters, return_state=True)
        return await self.state.aresult(raise_on_failure=False)

    def parameters(self, *rows: dict[str, Any], name: str = "script", **settings: Any) -> ProduceParameters:
        script = self.write_script(*rows, name=f"{name}.csv")
        return ProduceParameters(script=script, store=str(self.store), fleet=str(self.fleet), **settings)

    @property
    def manifest(self) -> Manifest:
        return Manifest.model_validate_json((self.store / "batches/script/manifest.json").read_bytes())

    @property
    def records(self) -> list[HostRecord]:
        return sorted(records(self.book), key=lambda record: record.made)


@pytest.fixture
def studio(tmp_path: Path, write_script: Callable[..., Path]) -> Callable[..., Studio]:
    return lambda rules="": Studio(tmp_path, write_script, rules)


async def limits() -> set[str]:
    """The limits of rented hosts that the server knows."""
    async with get_client() as client:
        return {limit.name for limit in await read_limits(client) if "studio-" in limit.name}


async def test_a_batch_rents_what_it_needs_and_gives_it_back(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    vast.offer()
    mine = studio()
    summary = await mine.run(LINE, PICTURE)
    assert (summary.done, summary.failed, summary.needs_review) == (2, [], 0)
    (box,) = vast.boxes.values()
    (kept,) = mine.records
    assert vast.billable() == []
    assert (kept.state, kept.instance, kept.reason) == ("ended", box.id, "its work is done")
    assert kept.owner == str(mine.state.state_details.flow_run_id)
    portal = boxes.portals[box.id]
    assert (portal.passed > 5, portal.refused) == (True, 0), "every request had the lease's token"
    assert KEY not in str(box.order), "the account's key goes nowhere"
    # Its dead-man's switch: the end of its label, because it cannot see whether its speech server works.
    onstart = box.order["onstart"]
    label = HostLabel.read(box.label or "")
    assert label is not None
    assert re.search(r"CALLSHEET_ENDS='?(\d+)", onstart)[1] == str(label.ends)
    assert re.search(r"CALLSHEET_LEASE_SECONDS='?(\d+)", onstart)[1] == str(label.ends - label.made)
    assert await limits() == set()
    # What it cost: from the order on, and more than the seconds that its engines worked.
    (host,) = mine.manifest.hosts
    assert (host.host, host.cost) == (kept.host_name, pytest.approx(summary.cost, rel=0.01))
    totals = mine.manifest.totals
    assert totals.paid == pytest.approx(summary.cost)
    assert totals.paid > totals.spent > 0
    shots = mine.manifest.shots
    assert sum(shot.cost_loaded for shot in shots) == pytest.approx(totals.paid, rel=0.05)
    again = await mine.run(LINE, PICTURE)
    assert (again.takes_made, len(vast.boxes), again.cost) == (0, 1, 0.0)
    assert [shot.cost_loaded for shot in mine.manifest.shots] == [shot.cost_loaded for shot in shots]


@pytest.mark.slow
async def test_a_host_that_is_kept_is_used_again_and_given_back_when_nobody_does(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    vast.offer()
    vast.offer()
    mine = studio("keep_minutes = 20")
    await mine.run(LINE, name="one")
    (box,) = vast.billable()
    await mine.run(LINE | {"text": "Another line."}, name="two")
    assert [one.id for one in vast.billable()] == [box.id]
    store = str(mine.store)
    state: Any = await reap(ReapParameters(store=store), return_state=True)
    assert state.is_completed(), state.message
    (kept,) = mine.records
    assert (kept.state, kept.idle_since is not None) == ("ready", True)
    # Its rules keep it for twenty minutes.
    mine.book.change(kept.lease, ("ready",), idle_since=time.time() - 19 * 60)
    await reap(ReapParameters(store=store), return_state=True)
    assert vast.billable() == [box]
    mine.book.change(kept.lease, ("ready",), idle_since=time.time() - 21 * 60)
    state = await reap(ReapParameters(store=store), return_state=True)
    assert state.message == "0 hosts kept, 1 destroyed, 0 not ours"
    assert vast.billable() == []
    assert mine.records[0].reason == "nobody used it for 21 minutes"
    assert await limits() == set()


@pytest.mark.slow
async def test_hosts_that_are_ready_before_the_batch_are_used_by_it(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    for _ in range(3):
        vast.offer()
    mine = studio("keep_minutes = 20\nmax_hosts = 2\nhours_per_host = 1")
    parameters = ProvisionParameters(fleet=str(mine.fleet), store=str(mine.store), hours=2)
    state: Any = await provision(parameters, return_state=True)
    assert state.is_completed(), state.message
    assert len(vast.billable()) == 2
    await mine.run(LINE, PICTURE)
    assert len(vast.boxes) == 2
    refused: Any = await provision(
        ProvisionParameters(fleet=str(studio().fleet), store=str(mine.store)), return_state=True
    )
    assert "found keep_minutes 0" in refused.message


async def test_two_runs_at_once_share_a_host_and_the_last_gives_it_back(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    """The cap is one host: whoever orders second finds the first one's."""
    vast.offer()
    vast.offer()
    mine = studio()

    async def one(name: str) -> Any:
        state: Any = await produce(
            mine.parameters(LINE | {"text": f"A line of {name}."}, name=name), return_state=True
        )
        return await state.aresult(raise_on_failure=False)

    outcomes = await asyncio.gather(one("one"), one("two"))
    assert [outcome.done for outcome in outcomes] == [1, 1]
    assert len(vast.boxes) <= 2
    assert vast.billable() == []


@pytest.mark.slow
async def test_a_box_that_never_answers_goes_and_the_next_offer_is_taken(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    bad, good = vast.offer(dph_base=0.2), vast.offer(dph_base=0.4)
    vast.fate = lambda offer: "exits" if offer["id"] == bad["id"] else ""
    mine = studio()
    assert (await mine.run(LINE)).done == 1
    assert [record.machine for record in mine.records] == [bad["machine_id"], good["machine_id"]]
    assert mine.records[0].failed_boot
    assert vast.billable() == []
    assert len(mine.manifest.hosts) == 2, "what did not come up costs, too"


@pytest.mark.slow
async def test_a_token_that_is_refused_is_told_and_not_waited_for(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    vast.offer()
    mine = studio("attempts = 1")
    real = boxes._port

    def port(box: Any, inside: int) -> int:
        real(box, inside)
        boxes.portals[box.id]._token = "another"
        return real(box, inside)

    vast.outside_port = port
    outcome = await mine.outcome(LINE)
    assert "401" in str(outcome)
    assert vast.billable() == []


async def test_nothing_is_rented_that_cannot_be_paid_for(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    vast.offer()
    vast.credit = 0.5
    mine = studio()
    outcome = await mine.outcome(LINE)
    assert isinstance(outcome, Budget), outcome
    assert vast.boxes == {}
    refused = await mine.outcome(LINE, advanced={"work_pool": "pool"})
    assert isinstance(refused, BadInput)
    assert "shards" in str(refused)


@pytest.mark.slow
async def test_at_the_cap_hosts_are_given_back_though_they_are_kept(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    vast.offer(dph_base=0.55)
    mine = studio("keep_minutes = 20\ndownload_gb = 1")
    # What a host of this fleet costs before it has done anything is more than this.
    outcome = await mine.outcome(LINE, max_cost=0.0021)
    failed = [shot.error for shot in outcome.failed]
    assert failed == ["Budget"], outcome
    assert vast.billable() == []


async def test_a_run_that_is_cancelled_while_it_waits_for_its_host_gives_it_back(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    vast.offer()
    vast.fate = lambda offer: "stuck"
    mine = studio()
    run = asyncio.create_task(mine.outcome(LINE))
    while not vast.billable():
        await asyncio.sleep(0.05)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert vast.billable() == []
    assert mine.records[0].state == "ended"


@pytest.mark.slow
async def test_the_hook_of_a_run_that_died_gives_its_hosts_back_and_no_others(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    vast.offer()
    vast.offer()
    mine = studio("keep_minutes = 20\nmax_hosts = 2\nhours_per_host = 0.0001")
    await mine.run(LINE, PICTURE)
    assert len(vast.billable()) == 2
    dead, other = mine.records
    mine.book.change(other.lease, ("ready",), owner="somebody else")

    run = SimpleNamespace(
        id=dead.owner, parameters={"parameters": mine.parameters(LINE).model_dump(mode="json")}
    )
    await give_hosts_back(produce, run, mine.state)
    assert [box.id for box in vast.billable()] == [other.instance]


@pytest.mark.slow
async def test_a_host_that_a_dead_run_left_is_given_back_by_the_next_that_ends(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    """Its own run had left it to another, and that one died."""
    vast.offer()
    vast.offer()
    mine = studio("max_hosts = 3")
    label = HostLabel.new("studio", mine.book.id(), vast.now, 12 * 3600)
    box = vast.made(vast.offer(), {"label": str(label), "disk": 80})
    mine.book.write(record(label, state="ready", instance=box.id, owner="long gone", server=server_id()))
    # Who uses the hosts of another server is not known here.
    foreign = HostLabel.new("studio", mine.book.id(), vast.now, 12 * 3600)
    theirs = vast.made(vast.offer(), {"label": str(foreign), "disk": 80})
    mine.book.write(record(foreign, state="ready", instance=theirs.id, server="another"))
    assert (await mine.run(LINE)).done == 1
    assert vast.billable() == [theirs]
    mine.book.change(foreign.lease, ("ready",), idle_since=vast.now - 3600)
    await reap(ReapParameters(store=str(mine.store)), return_state=True)
    assert vast.billable() == [theirs]


@pytest.mark.slow
async def test_lanes_leave_a_host_that_is_being_given_back(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    vast.offer()
    mine = studio()

    async def drain() -> None:
        while not (mine.records and mine.records[0].state == "ready"):
            await asyncio.sleep(0.01)
        mine.book.change(mine.records[0].lease, ("ready",), state="draining", reason="too dear")

    draining = asyncio.create_task(drain())
    outcome = await mine.outcome(LINE)
    await draining
    assert [shot.error for shot in outcome.failed] == ["HostFault"]
    assert "too dear" in outcome.failed[0].reason
    assert vast.billable() == []


def test_a_portal_asks_for_its_token(vast: Vast, boxes: Boxes) -> None:
    """Else the tests above would prove nothing."""
    box = vast.made(vast.offer(), {"label": "x", "env": {"WEB_PASSWORD": "t0ken", "-p 8080:8080": "1"}})
    port = boxes._port(box, 8080)
    assert httpx.get(f"http://127.0.0.1:{port}/system_stats").status_code == 401
    headers = {"Authorization": "Bearer t0ken"}
    assert httpx.get(f"http://127.0.0.1:{port}/system_stats", headers=headers).status_code == 200


@pytest.mark.slow
async def test_the_sweep_is_scheduled_from_the_command_line(prefect_api: str, tmp_path: Path) -> None:
    httpx.post(f"{prefect_api}/api/work_pools/", json={"name": "sweepers", "type": "process"})
    command = [Path(sys.executable).parent / "callsheet", "reap", "--work-pool", "sweepers"]

    def told(*options: str, api: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        home = {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": api, "COLUMNS": "200"}
        return subprocess.run(
            [*command, *options], env=env | home, capture_output=True, text=True, timeout=60, check=False
        )

    assert "found no PREFECT_API_URL" in told("--store", "out", api="").stderr
    assert "--store: found none" in told(api=f"{prefect_api}/api").stderr
    done = told("--store", str(tmp_path / "out"), api=f"{prefect_api}/api")
    assert done.returncode == 0, done.stderr
    found = httpx.get(f"{prefect_api}/api/deployments/name/reap/sweepers").raise_for_status().json()
    # The session's server must not begin sweeps.
    httpx.delete(f"{prefect_api}/api/deployments/{found['id']}").raise_for_status()
    assert [one["schedule"]["interval"] for one in found["schedules"]] == [300.0]
    assert ReapParameters(**found["parameters"]["parameters"]).store == str(tmp_path / "out")


async def test_at_the_cap_a_host_of_another_server_is_not_taken_for_a_useless_one(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    """Somebody may be at work there, and this server cannot tell."""
    vast.offer()
    mine = studio()
    label = HostLabel.new("studio", mine.book.id(), vast.now, 12 * 3600)
    theirs = vast.made(vast.offer(), {"label": str(label), "disk": 80})
    mine.book.write(record(label, state="ready", instance=theirs.id, server="another", serves="else"))
    outcome = await mine.outcome(LINE)
    assert isinstance(outcome, Budget), outcome
    assert vast.billable() == [theirs]


@pytest.mark.slow
async def test_a_host_that_was_made_with_something_else_makes_room(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    """The image was changed while a host with the old one is kept, and the cap is one host."""
    vast.offer()
    vast.offer()
    mine = studio("keep_minutes = 20")
    await mine.run(LINE)
    (old,) = vast.billable()
    mine.fleet.write_text(mine.fleet.read_text("utf-8").replace("comfy:1", "comfy:2"), "utf-8")
    await mine.run(LINE | {"text": "Another line."})
    (new,) = vast.billable()
    assert (new.order["image"], old.gone is not None) == ("comfy:2", True)
