"""Rented hosts that come late, never, or die while they are worked on: lanes of whoever is there go on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

from callsheet.errors import BadInput, Budget
from callsheet.limits import GPU_LIMIT
from callsheet.manifest import Summary
from tasks.locks import read_limits
from tests.fakes.rented_box import Boxes
from tests.fakes.speech_server import SpeechServer
from tests.fakes.vast import KEY, Box, Vast
from tests.flows.test_lanes import PITCH
from tests.flows.test_rented import FLEET, Studio
from tests.tasks.test_locks import forget_limits

pytestmark = pytest.mark.usefixtures("prefect_api")

LINES = tuple(
    {"shot_id": f"s{n}", "text": f"The keeper lit lamp number {n}.", "voice": "anna"} for n in range(16)
)
#: So much work that two hosts are worth it.
TWO = "max_hosts = 2\nhours_per_host = 0.0001"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.05")


@pytest.fixture(autouse=True)
async def _fresh_limits(prefect_api: str) -> AsyncIterator[None]:
    await forget_limits()
    yield
    await forget_limits()


@pytest.fixture
def vast(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vast]:
    with Vast() as server, server.in_real_time():
        monkeypatch.setenv("VAST_API_KEY", KEY)
        monkeypatch.setenv("VAST_URL", server.url)
        yield server


@pytest.fixture
def speaker() -> Iterator[SpeechServer]:
    with SpeechServer(pitch=PITCH, cost=0.2) as server:
        yield server


@pytest.fixture
def boxes(vast: Vast, speaker: SpeechServer) -> Iterator[Boxes]:
    boxes = Boxes(vast, speaker.url)
    yield boxes
    boxes.close()


@pytest.fixture
def studio(tmp_path: Path, write_script: Callable[..., Path], boxes: Boxes) -> Callable[..., Studio]:
    def make(rules: str = "") -> Studio:
        mine = Studio(tmp_path, write_script, rules)
        fleet = FLEET.format(rules=rules, revision=tmp_path.name)
        mine.fleet.write_text(fleet.partition('[[host.engine]]\nkind = "comfyui"')[0], "utf-8")
        return mine

    return make


def dead_name(mine: Studio, dead: Box) -> str:
    return next(record.host_name for record in mine.records if record.instance == dead.id)


async def until(met: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not met():
            await asyncio.sleep(0.02)


async def test_a_host_that_answers_begins_to_work_and_one_that_comes_later_joins(
    studio: Callable[..., Studio], vast: Vast, speaker: SpeechServer
) -> None:
    first = vast.offer(dph_base=0.2)
    vast.offer(dph_base=0.4)
    vast.fate = lambda offer: "" if offer["id"] == first["id"] else "stuck"
    mine = studio(TWO)
    running = asyncio.create_task(mine.run(*LINES))
    await until(lambda: len(speaker.texts()) >= 3)
    (late,) = [box for box in vast.billable() if box.fate == "stuck"]
    late.fate = ""
    summary = await running
    assert (summary.done, summary.failed) == (len(LINES), [])
    assert len({lane.host for lane in mine.manifest.lanes if lane.steps}) == 2, mine.manifest.lanes
    assert vast.billable() == []


@pytest.mark.slow
async def test_nobody_waits_for_a_host_that_does_not_come_once_the_work_is_done(
    studio: Callable[..., Studio], vast: Vast
) -> None:
    cheap = vast.offer(dph_base=0.2)
    vast.offer(dph_base=0.4)
    vast.fate = lambda offer: "" if offer["id"] == cheap["id"] else "stuck"
    mine = studio(TWO)
    summary = await mine.run(*LINES)
    assert (summary.done, summary.failed) == (len(LINES), [])
    assert (len(vast.boxes), vast.billable()) == (2, [])
    assert [record.state for record in mine.records] == ["ended", "ended"]
    costs = {host.host: host.cost for host in mine.manifest.hosts}
    assert all(costs[record.host_name] > 0 for record in mine.records), "what did not come up costs, too"


@pytest.mark.slow
async def test_a_host_that_dies_is_given_back_and_replaced(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes, speaker: SpeechServer
) -> None:
    vast.offer(dph_base=0.2)
    vast.offer(dph_base=0.4)
    mine = studio()
    running = asyncio.create_task(mine.run(*LINES))
    await until(lambda: len(speaker.texts()) >= 3)
    (dead,) = vast.billable()
    dead.fate = "offline"
    boxes.portals[dead.id].cut()
    await until(lambda: dead.destroyed is not None)
    vast.offer(**{**dead.offer, "id": 1234})  # the same machine is on the market again, and is the cheapest
    summary = await running
    assert (summary.done, summary.failed) == (len(LINES), [])
    assert len({box.offer["machine_id"] for box in vast.boxes.values()}) == len(vast.boxes) == 2
    assert vast.billable() == []
    assert len(mine.manifest.hosts) == 2
    async with get_client() as client:
        left = [limit.name for limit in await read_limits(client) if dead_name(mine, dead) in limit.name]
    assert left == [], "its limits went with it"


@pytest.mark.slow
async def test_hosts_that_die_one_after_the_other_are_not_replaced_for_ever(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes, speaker: SpeechServer
) -> None:
    for _ in range(4):
        vast.offer()
    mine = studio("keep_minutes = 20")
    running = asyncio.create_task(mine.outcome(*LINES))
    for deaths in (1, 2):
        spoken = len(speaker.texts())
        # A canary, and then lines.
        await until(lambda spoken=spoken: len(speaker.texts()) > spoken + 3)  # type: ignore[misc]
        (box,) = vast.billable()
        boxes.portals[box.id].cut()
        assert len(vast.boxes) == deaths
    outcome = await running
    assert isinstance(outcome, Summary), outcome
    assert {shot.error for shot in outcome.failed} == {"HostFault"}
    assert outcome.done >= 2, "what was made before is published"
    assert len(vast.boxes) == 2
    assert vast.billable() == [], "what is dead is kept for nobody"


@pytest.mark.slow
async def test_a_host_whose_boot_cannot_be_written_down_goes_at_once(
    studio: Callable[..., Studio], vast: Vast, speaker: SpeechServer
) -> None:
    first = vast.offer(dph_base=0.2)
    vast.offer(dph_base=0.4)
    vast.fate = lambda offer: "" if offer["id"] == first["id"] else "stuck"
    mine = studio(TWO)
    running = asyncio.create_task(mine.outcome(*LINES))
    await until(lambda: len(speaker.texts()) >= 3)
    (late,) = [box for box in vast.billable() if box.fate == "stuck"]
    record = next(record for record in mine.records if record.instance == late.id)
    (mine.store / f"hosts/{record.lease}.json").write_bytes(b"{")
    late.fate = ""
    await until(lambda: late.destroyed is not None)
    assert not running.done(), "not with the others, at the end"
    outcome = await running
    assert (outcome.done, outcome.failed) == (len(LINES), [])
    assert vast.billable() == []


@pytest.mark.slow
async def test_a_host_that_comes_while_a_person_pauses_the_lanes_ends_nothing(
    studio: Callable[..., Studio], vast: Vast, speaker: SpeechServer
) -> None:
    first = vast.offer(dph_base=0.2)
    vast.offer(dph_base=0.4)
    vast.fate = lambda offer: "" if offer["id"] == first["id"] else "stuck"
    mine = studio(TWO)
    running = asyncio.create_task(mine.outcome(*LINES))
    await until(lambda: len(speaker.texts()) >= 3)
    await set_gpu_limit(0)
    (late,) = [box for box in vast.billable() if box.fate == "stuck"]
    late.fate = ""
    await until(lambda: [record.state for record in mine.records] == ["ready", "ready"])
    await set_gpu_limit(2)
    outcome = await running
    assert (outcome.done, outcome.failed) == (len(LINES), [])
    assert vast.billable() == []


@pytest.mark.slow
async def test_a_run_that_is_cancelled_ends_though_its_slot_cannot_be_given_back(
    studio: Callable[..., Studio], vast: Vast, speaker: SpeechServer
) -> None:
    """A server with the tag's limit at 0 refuses the release, and that hides the cancellation from the lane."""
    vast.offer()
    running = asyncio.create_task(studio().outcome(*LINES))
    await until(lambda: len(speaker.texts()) >= 3)
    await set_gpu_limit(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(60):
            await running
    assert vast.billable() == []


async def set_gpu_limit(limit: int) -> None:
    async with get_client() as client:
        await client.update_global_concurrency_limit(GPU_LIMIT, GlobalConcurrencyLimitUpdate(limit=limit))


async def test_work_that_takes_longer_than_a_host_lives_is_not_begun(
    studio: Callable[..., Studio], vast: Vast
) -> None:
    vast.offer()
    outcome = await studio("max_hours = 0.5\nboot_minutes = 30").outcome(*LINES)
    assert isinstance(outcome, BadInput), outcome
    assert "max_hours = 0.5; expected max_hours of 1 at least" in str(outcome)
    assert vast.boxes == {}


async def test_hosts_that_do_not_come_up_cost_no_more_than_the_cap(
    studio: Callable[..., Studio], vast: Vast, boxes: Boxes
) -> None:
    for _ in range(4):
        vast.offer(dph_base=0.5)
    vast.fate = lambda offer: "no ports"
    # Four seconds of a box, as long as it boots.
    outcome = await studio("download_gb = 0").outcome(*LINES[:1], max_cost=0.0004)
    assert isinstance(outcome, Budget), outcome
    assert "and the cap is $0.00" in str(outcome)
    assert vast.billable() == []
