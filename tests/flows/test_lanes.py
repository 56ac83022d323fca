"""Lanes under the limits of a shared fleet: never more than a limit says, never two runs on one lane, and all advance."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import PIL.Image
import pytest
from prefect.client.orchestration import get_client

from callsheet.limits import GPU_TAG
from callsheet.manifest import Manifest, ManifestLane, Summary
from callsheet.parameters import ProduceParameters
from callsheet.workflow import Workflow
from flows.produce import produce
from tests.fakes import speech_server
from tests.fakes.comfyui_server import ComfyUIServer
from tests.fakes.speech_server import SpeechServer, Spoken
from tests.tasks.test_locks import forget_limits

pytestmark = pytest.mark.usefixtures("prefect_api", "fresh_limits")
PITCH = 210.0
#: A turn of 0.3 seconds.
TURN = "lane_minutes = 0.005"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.05")


@pytest.fixture
async def fresh_limits() -> AsyncIterator[None]:
    await forget_limits()
    yield
    await forget_limits()


@pytest.fixture
def server() -> Iterator[Callable[[], SpeechServer]]:
    """Speech servers that take some time, about 0.4 s a line: on a busy machine a turn is over before the work is."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(SpeechServer(pitch=PITCH, cost=0.2))


def host(name: str, *engines: str, vram_gb: float = 24) -> str:
    return "\n".join(["[[host]]", f'name = "{name}"', f"vram_gb = {vram_gb}", *engines])


def engine(kind: str, url: str, *settings: str) -> str:
    return "\n".join(
        ["[[host.engine]]", f'kind = "{kind}"', f'url = "{url}"', 'revision = "test-1"', *settings]
    )


def lines(count: int, who: str, kind: str = "lighttts") -> list[dict[str, Any]]:
    names = "one two three four five six seven eight nine ten eleven twelve".split()
    return [
        {
            "shot_id": f"{who}{n}",
            "text": f"Line {names[n]} of {who} is spoken.",
            "voice": "anna",
            "engine": kind,
        }
        for n in range(count)
    ]


@pytest.fixture
def run(tmp_path: Path, write_script: Callable[..., Path]) -> Callable[..., Any]:
    """Produces a batch of that name on the fleet."""

    async def produced(batch: str, fleet: list[str], rows: list[dict[str, Any]]) -> Summary:
        path = tmp_path / f"{batch}.toml"
        path.write_text("\n".join(['provider = "static"', *fleet]), "utf-8")
        script = write_script(*rows, name=f"{batch}.csv")
        parameters = ProduceParameters(script=script, store=str(tmp_path / "out"), fleet=str(path))
        state: Any = await produce(parameters, return_state=True)
        summary = await state.aresult(raise_on_failure=False)
        assert isinstance(summary, Summary), summary
        return summary

    return produced


def lanes_of(tmp_path: Path, batch: str) -> list[ManifestLane]:
    content = (tmp_path / f"out/batches/{batch}/manifest.json").read_bytes()
    return Manifest.model_validate_json(content).lanes


def in_order(*servers: SpeechServer) -> list[tuple[SpeechServer, Spoken]]:
    return sorted(((one, r) for one in servers for r in one.requests), key=lambda pair: pair[1].began)


def overlap(*servers: SpeechServer) -> bool:
    """Whether two requests were ever in flight at once, on whichever server."""
    return any(then.began < before.ended for (_, before), (_, then) in pairwise(in_order(*servers)))


def changes(who: list[Any]) -> int:
    """How often the next is another."""
    return sum(a != b for a, b in pairwise(who))


@pytest.mark.slow
async def test_engines_that_do_not_fit_together_work_by_turns_and_never_at_once(
    server: Callable[[], SpeechServer], run: Callable[..., Any], tmp_path: Path
) -> None:
    one, two = server(), server()
    fleet = [
        TURN,
        host(
            "h",
            engine("lighttts", one.url, "slots = 2", "vram_gb = 8"),
            engine("cosyvoice", two.url, "vram_gb = 8"),
            vram_gb=12,
        ),
    ]
    summary = await run("b", fleet, lines(12, "a") + lines(8, "b", "cosyvoice"))
    assert summary.done == 20
    assert one.most_in_flight == 2, "lanes of one engine share its memory"
    order = in_order(one, two)
    assert not any(
        other is not me and then.began < before.ended for (me, before), (other, then) in pairwise(order)
    )
    assert changes([me for me, _ in order]) >= 2, "neither was starved until the other was done"
    for lane in lanes_of(tmp_path, "b"):
        spent = lane.busy + lane.swapping + lane.waiting_for_vram + lane.waiting + lane.idle
        assert spent == pytest.approx(lane.rented, abs=0.1)
    waited = {lane.engine: lane.waiting_for_vram for lane in lanes_of(tmp_path, "b")}
    assert waited["cosyvoice"] > 0.2


@pytest.mark.slow
async def test_engines_that_fit_together_or_hold_their_memory_need_no_turns(
    server: Callable[[], SpeechServer], run: Callable[..., Any]
) -> None:
    one, two = server(), server()
    fleet = [
        "lane_minutes = 10",
        host(
            "h",
            engine("lighttts", one.url, "vram_gb = 8", "resident = true"),
            engine("cosyvoice", two.url, "vram_gb = 8"),
            vram_gb=16,
        ),
    ]
    assert (await run("b", fleet, lines(4, "a") + lines(4, "b", "cosyvoice"))).done == 8
    assert overlap(one, two)


@pytest.mark.slow
async def test_two_runs_never_drive_one_lane_together_and_both_advance(
    server: Callable[[], SpeechServer], run: Callable[..., Any]
) -> None:
    speaker = server()
    fleet = [TURN, host("h", engine("lighttts", speaker.url))]
    done = await asyncio.gather(run("a", fleet, lines(8, "ann")), run("b", fleet, lines(8, "bob")))
    assert [summary.done for summary in done] == [8, 8]
    assert not overlap(speaker)
    spoken = ["ann" in request.text for request in speaker.requests if "canary" not in request.text]
    assert changes(spoken) >= 2, "they took turns"


@pytest.mark.slow
async def test_no_more_lanes_are_busy_than_a_person_allows(
    server: Callable[[], SpeechServer], run: Callable[..., Any]
) -> None:
    async with get_client() as client:
        await client.create_concurrency_limit(GPU_TAG, 1)
    one, two = server(), server()
    fleet = [TURN, host("h", engine("lighttts", one.url)), host("i", engine("lighttts", two.url))]
    done = await asyncio.gather(run("a", fleet, lines(8, "ann")), run("b", fleet, lines(8, "bob")))
    assert [summary.done for summary in done] == [8, 8]
    assert not overlap(one, two)
    spoken = ["ann" in r.text for _, r in in_order(one, two) if "canary" not in r.text]
    assert changes(spoken) >= 2


async def test_speech_that_is_waited_for_has_the_memory_first(
    server: Callable[[], SpeechServer],
    run: Callable[..., Any],
    workflows: dict[str, Workflow],
    script_folder: Path,
) -> None:
    PIL.Image.new("RGB", (64, 64), "gray").save(script_folder / "face.png")
    speaker = server()
    with ComfyUIServer(workflows) as painter:
        engines = [
            engine("comfyui", painter.url, "relative_speed = 40"),
            engine("lighttts", speaker.url, "vram_gb = 24"),
        ]
        picture = {"visual": "flux_dev", "prompt": "lamp", "width": 64, "height": 64}
        avatar = {
            "visual": "longcat_avatar",
            "prompt": "a face",
            "image": "face.png",
            "width": 64,
            "height": 64,
        }
        rows = [{"shot_id": f"p{n}"} | picture for n in range(3)] + [lines(1, "ann")[0] | avatar]
        summary = await run("b", ["lane_minutes = 10", host("h", *engines, vram_gb=32)], rows)
        assert summary.done == 4
        assert speaker.requests[-1].ended < min(run.began for run in painter.runs)
        assert painter.comfy.freed >= 1, "the model is unloaded before the memory is given back"
    assert len(painter.runs) == 2, "the three pictures are one take"


@pytest.mark.slow
async def test_a_lane_whose_lease_is_lost_takes_no_more_steps_until_it_has_another(
    server: Callable[[], SpeechServer],
    run: Callable[..., Any],
    prefect_home: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    speaker = server()
    fleet = ["lane_minutes = 10", host("h", engine("lighttts", speaker.url))]
    producing = asyncio.create_task(run("b", fleet, lines(12, "a")))
    async with asyncio.timeout(30), get_client() as client:
        while len(speaker.requests) < 3:
            await asyncio.sleep(0.02)
        limit = await client.read_global_concurrency_limit_by_name("lane:h:lighttts")
        assert limit.active_slots == 1
        # What the server does with a lease that was not renewed in time.
        for lease in (prefect_home / "prefect/concurrency_leases").glob("*-*.json"):
            if str(limit.id) in lease.read_text("utf-8"):
                await client.release_concurrency_slots_with_lease(UUID(lease.stem))
    assert (await producing).done == 12
    asked = [request.text for request in speaker.requests if "canary" not in request.text]
    assert len(asked) == len(set(asked)) == 12
    assert "the lease of lane:h:lighttts is lost" in caplog.text
    async with get_client() as client:
        assert (await client.read_global_concurrency_limit_by_name("lane:h:lighttts")).active_slots == 0


@pytest.mark.slow
async def test_a_clip_that_is_found_necessary_late_has_a_lane_though_all_pictures_are_there(
    server: Any, run: Any, workflows: dict[str, Workflow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The narration was changed, and is spoken longer than was estimated: its clip is there, and does not cover it."""
    slower, real = 1.0, speech_server.speech_seconds
    monkeypatch.setattr(speech_server, "speech_seconds", lambda text, speed=1.0: real(text, speed) * slower)
    shot = {"shot_id": "a", "visual": "wan_t2v", "prompt": "a lamp", "width": 256, "height": 256}
    shot |= {"voice": "anna", "engine": "lighttts"}
    with ComfyUIServer(workflows) as painter:
        fleet = [host("h", engine("lighttts", server().url), engine("comfyui", painter.url))]
        await run("b", fleet, [shot | {"text": "Hello there."}])
        slower = 1.25
        text = "The keeper lit the lamp at six, then went down to the sea."
        async with asyncio.timeout(60):
            summary = await run("b", fleet, [shot | {"text": text}])
    assert (summary.done, summary.failed, summary.takes_made > 1) == (1, [], True)
