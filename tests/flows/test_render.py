"""One shard of a batch: it makes its own takes and no others, and commits nothing under a lease that is not its own."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import Abort
from prefect.states import Crashed

from callsheet.errors import BadInput
from callsheet.fleet import read_fleet
from callsheet.manifest import Summary
from callsheet.packed import pack
from callsheet.parameters import ProduceParameters
from callsheet.plan import Plan
from callsheet.shards import ShardResult, plan_name, shards_path
from callsheet.store import LocalFolder
from callsheet.takes import Attempt, Sidecar, SpokenPiece, attempt_path, sidecar_path
from flows.produce import produce
from flows.render import RenderParameters, render
from tasks.locks import held
from tasks.shard_runs import shard_limit
from tests.conftest import write_tone
from tests.fakes.speech_server import SpeechServer
from tests.flows.test_lanes import PITCH, engine, host, lines

pytestmark = pytest.mark.usefixtures("prefect_api")
RUN = "0123abcd"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.05")


@pytest.fixture
def speaker() -> Iterator[SpeechServer]:
    with SpeechServer(pitch=PITCH, cost=0.1) as server:
        yield server


@pytest.fixture
def fleet(tmp_path: Path, speaker: SpeechServer) -> str:
    path = tmp_path / "fleet.toml"
    path.write_text('provider = "static"\n' + host("shard-h", engine("lighttts", speaker.url)), "utf-8")
    return str(path)


@pytest.fixture
def store(tmp_path: Path) -> LocalFolder:
    return LocalFolder(tmp_path / "out")


@pytest.fixture
def cut(write_script: Callable[..., Path], store: LocalFolder, fleet: str) -> Callable[..., Plan]:
    """Puts a plan of six lines and the shards of it into the store, as `produce` does."""

    def put(*shards: list[str]) -> Plan:
        script = write_script(*lines(6, "ann"), name="b.csv")
        plan = ProduceParameters(script=script, fleet=fleet).plan(read_fleet(fleet))
        parts = {shards_path("b", RUN, plan_name(number)): shots for number, shots in enumerate(shards)}
        pack(plan, store, parts)
        return plan

    return put


async def make(store: LocalFolder, shard: int, **more: Any) -> Any:
    limit = shard_limit(store, "b", RUN, shard)
    parameters = RenderParameters(batch="b", run=RUN, shard=shard, limit=limit, store=str(store.root), **more)
    return await render(parameters, return_state=True)


def results(store: LocalFolder) -> list[ShardResult]:
    files = [file.path for file in store.list(shards_path("b", RUN)) if "/result-" in file.path]
    return [ShardResult.model_validate_json(store.get(path)) for path in files]


async def test_a_shard_makes_its_own_takes_and_no_others(
    cut: Callable[..., Plan], store: LocalFolder, speaker: SpeechServer
) -> None:
    plan = cut(["ann0", "ann1"], ["ann2", "ann3", "ann4", "ann5"])
    state = await make(store, 0)
    assert (state.name, state.message) == ("Completed", "4 takes made")
    assert len([text for text in speaker.texts() if "canary" not in text]) == 2
    (result,) = results(store)
    wanted = {key for shot_id in ("ann0", "ann1") for key in plan.shots[shot_id].keys}
    assert set(result.made) == wanted
    assert (result.failures, [lane.steps for lane in result.lanes]) == ({}, [2])
    assert store.size("batches/b/manifest.json") is None, "nothing is published"


async def test_a_shard_that_is_made_again_makes_what_is_missing(
    cut: Callable[..., Plan], store: LocalFolder, speaker: SpeechServer
) -> None:
    plan = cut(["ann0", "ann1", "ann2"])
    await make(store, 0)
    store.delete(f"takes/speech/{plan.shots['ann1'].speech}.json")
    for file in store.list("batches/b/journal-"):
        store.delete(file.path)
    before = len(speaker.requests)
    state = await make(store, 0)
    assert state.message == "2 takes made", "the line, and the clip that it is in"
    assert [text for text in speaker.texts()[before:] if "canary" not in text] == [
        "Line two of ann is spoken."
    ]


async def test_a_shard_says_what_failed(
    cut: Callable[..., Plan], store: LocalFolder, speaker: SpeechServer
) -> None:
    cut(["ann0", "ann1"])
    state = await make(store, 0, max_cost=0.0)
    assert state.name == "Completed", "a host that costs nothing is in any budget"
    speaker.choose = lambda request: "422"
    cut(["ann2"])
    state = await make(store, 0)
    assert state.name == "Failed"
    assert "ann2 speech" in state.message


async def test_a_shard_whose_plan_was_taken_away_makes_nothing(
    cut: Callable[..., Plan], store: LocalFolder, speaker: SpeechServer
) -> None:
    cut(["ann0"])
    store.delete(shards_path("b", RUN, plan_name(0)))
    state = await make(store, 0)
    assert state.name == "Crashed"
    assert "produce the batch again" in state.message
    assert not speaker.requests


async def test_a_run_that_was_given_up_before_it_had_its_lease_makes_nothing(
    cut: Callable[..., Plan], store: LocalFolder, speaker: SpeechServer
) -> None:
    cut(["ann0"])
    limit = shard_limit(store, "b", RUN, 0)
    running = {
        "flows": {"name": {"any_": ["render"]}},
        "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}},
    }

    async with get_client() as client:
        async with held(limit, "", fenced=False), asyncio.timeout(30):
            making = asyncio.create_task(make(store, 0))
            while not (found := (await client._client.post("/flow_runs/filter", json=running)).json()):
                await asyncio.sleep(0.05)
            await client.set_flow_run_state(UUID(found[0]["id"]), Crashed(), force=True)
        await asyncio.wait({making})
    assert isinstance(making.exception(), Abort), "Prefect: it is over already"
    assert not speaker.requests
    assert results(store) == []


async def test_nothing_is_committed_once_the_lease_is_lost(
    cut: Callable[..., Plan], store: LocalFolder, speaker: SpeechServer, prefect_home: Path
) -> None:
    cut(["ann0", "ann1", "ann2", "ann3", "ann4", "ann5"])
    making = asyncio.create_task(make(store, 0))
    async with asyncio.timeout(30), get_client() as client:
        while len(speaker.requests) < 3:
            await asyncio.sleep(0.01)
        limit = await client.read_global_concurrency_limit_by_name(shard_limit(store, "b", RUN, 0))
        assert limit.active_slots == 1
        # What the server does with a lease that was not renewed in time.
        for lease in (prefect_home / "prefect/concurrency_leases").glob("*-*.json"):
            if str(limit.id) in lease.read_text("utf-8"):
                await client.release_concurrency_slots_with_lease(UUID(lease.stem))
        state = await making
    assert (state.name, state.message.partition(":")[0]) == ("Crashed", "LeaseLost"), "it is begun again"
    assert results(store) == [], "what came of it is not its to say"
    committed = [file.path for file in store.list("takes/speech/") if file.path.endswith(".json")]
    assert len(committed) < 6
    asked = len(speaker.requests)
    assert (await make(store, 0)).name == "Completed"
    again = [text for text in speaker.texts()[asked:] if "canary" not in text]
    assert len(again) == 6 - len(committed), "the next one makes what is missing"


@pytest.mark.slow
async def test_a_take_that_another_run_committed_meanwhile_is_used(
    cut: Callable[..., Plan], store: LocalFolder, speaker: SpeechServer, tmp_path: Path
) -> None:
    """Two runs of one shard, as if one of them had been thought dead: the second to commit takes the first one's."""
    plan = cut(["ann0", "ann1"])
    speaker.cost = 0.5
    making = asyncio.create_task(make(store, 0))
    async with asyncio.timeout(30):
        while not any("ann" in text for text in speaker.texts()):
            await asyncio.sleep(0.01)
    # The other run works in a store of its own; what it commits is then brought here.
    elsewhere = LocalFolder(tmp_path / "elsewhere")
    sidecar = await _made_elsewhere(plan, elsewhere, tmp_path)
    for file in elsewhere.list("takes/speech/"):
        store.put(file.path, elsewhere.get(file.path))
    assert (await making).name == "Completed"
    kept = Sidecar.model_validate_json(store.get(f"takes/speech/{sidecar.key}.json"))
    assert kept == sidecar, "what is committed stands"
    (result,) = results(store)
    assert sidecar.key not in result.made


async def _made_elsewhere(plan: Plan, elsewhere: LocalFolder, folder: Path) -> Sidecar:
    """A take of the first line that another run made and committed."""
    step = plan.steps[str(plan.shots["ann0"].speech)]
    tone = write_tone(folder / "other.wav", 2.0)
    file = attempt_path("speech", step.key, 0, ".wav", "other")
    elsewhere.put(file, tone)
    content = tone.read_bytes()
    attempt = Attempt(
        n=0,
        file=file,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        length=2.0,
        pieces=(SpokenPiece(start=0, end=2, speech_start=0, speech_end=2),),
    )
    sidecar = Sidecar(
        key=step.key,
        kind="speech",
        engine=step.engine,
        revision=step.revision,
        inputs={},
        chosen=0,
        attempts=[attempt],
    )
    elsewhere.put(sidecar_path("speech", step.key), sidecar.model_dump_json().encode())
    return sidecar


async def test_a_work_pool_that_is_not_there_is_named_before_anything_starts(
    write_script: Callable[..., Path], store: LocalFolder, fleet: str, speaker: SpeechServer
) -> None:
    script = write_script(*lines(2, "ann"), name="b.csv")
    state: Any = await produce(
        ProduceParameters(
            script=script, store=str(store.root), fleet=fleet, advanced={"work_pool": "nowhere"}
        ),
        return_state=True,
    )
    assert isinstance(await state.aresult(raise_on_failure=False), BadInput)
    assert 'work pool "nowhere"' in state.message
    assert "callsheet setup --work-pool nowhere" in state.message
    assert not speaker.requests


@pytest.mark.slow
async def test_shards_of_a_killed_run_are_cleared_away(
    cut: Callable[..., Plan], store: LocalFolder, fleet: str, tmp_path: Path
) -> None:
    cut(["ann0"])
    script = tmp_path / "script/b.csv"
    state: Any = await produce(
        ProduceParameters(script=script, store=str(store.root), fleet=fleet), return_state=True
    )
    summary: Summary = await state.aresult()
    assert summary.done == 6
    assert list(store.list(shards_path("b"))) == []
