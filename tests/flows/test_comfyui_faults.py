"""Two hundred pictures and clips through ComfyUIs that fail in every way: each is right or named, none is paid for twice."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageStat
import pytest

from callsheet.manifest import Manifest, Summary
from callsheet.parameters import ProduceParameters
from callsheet.takes import Sidecar
from callsheet.workflow import Workflow
from flows.produce import produce
from tests.fakes.comfyui_server import FAULTS, ComfyUIServer, Fault

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.02")


class Set:
    """Runs shots on fake ComfyUIs, and looks at what came of it."""

    def __init__(self, folder: Path, write_script: Callable[..., Path], servers: list[ComfyUIServer]) -> None:
        self.write_script, self.servers, self.store = write_script, servers, folder / "out"
        lines = ['provider = "static"']
        for number, server in enumerate(servers):
            lines += [
                "[[host]]",
                f'name = "h{number}"',
                "[[host.engine]]",
                'kind = "comfyui"',
                f'url = "{server.url}"',
            ]
            lines += ['revision = "test-1"', "window = 2", "relative_speed = 40"]
        self.fleet = folder / "fleet.toml"
        self.fleet.write_text("\n".join(lines), "utf-8")

    async def shoot(self, rows: list[dict[str, Any]], **settings: Any) -> Summary:
        parameters = ProduceParameters(
            script=self.write_script(*rows), store=str(self.store), fleet=str(self.fleet), **settings
        )
        state: Any = await produce(parameters, return_state=True)
        summary = await state.aresult(raise_on_failure=False)
        assert isinstance(summary, Summary), summary
        return summary

    @property
    def manifest(self) -> Manifest:
        return Manifest.model_validate_json((self.store / "batches/script/manifest.json").read_bytes())

    def sidecars(self) -> list[Sidecar]:
        paths = [path for kind in ("image", "video") for path in (self.store / "takes" / kind).glob("*.json")]
        return [Sidecar.model_validate(json.loads(path.read_bytes())) for path in paths]

    def runs(self) -> list[Any]:
        return [run for server in self.servers for run in server.runs]


@pytest.fixture
def film_set(
    tmp_path: Path, write_script: Callable[..., Path], workflows: dict[str, Workflow]
) -> Iterator[Callable[[int], Set]]:
    with ExitStack() as stack:
        yield lambda hosts: Set(
            tmp_path, write_script, [stack.enter_context(ComfyUIServer(workflows)) for _ in range(hosts)]
        )


def picture(number: int) -> dict[str, Any]:
    return {
        "shot_id": f"p{number:03}",
        "visual": "flux_dev",
        "prompt": f"lamp {number}",
        "width": 256,
        "height": 256,
    }


def clip(number: int) -> dict[str, Any]:
    return {
        "shot_id": f"c{number:03}",
        "visual": "wan_t2v",
        "prompt": f"sea {number}",
        "width": 256,
        "height": 256,
        "param.FRAMES": 17,
    }


@pytest.mark.slow
async def test_every_shot_of_two_hundred_is_right_or_named(film_set: Callable[[int], Set]) -> None:
    mine = film_set(3)
    rng = random.Random(5)

    def three_in_ten(_: Any) -> Fault | None:
        return rng.choice(FAULTS) if rng.random() < 0.3 else None

    for server in mine.servers:
        server.comfy.choose = three_in_ten
    rows = [picture(n) for n in range(170)] + [clip(n) for n in range(30)]
    summary = await mine.shoot(rows)
    named = {shot.shot_id for shot in summary.failed} | {
        s.shot_id for s in mine.manifest.shots if s.needs_review
    }
    right = [sidecar for sidecar in mine.sidecars() if not sidecar.needs_review]
    assert len(right) + len(named) >= 200
    for sidecar in right:
        assert sidecar.take.passed
        if sidecar.kind == "image":
            with PIL.Image.open(mine.store / sidecar.take.file) as image:
                assert PIL.ImageStat.Stat(image.convert("L")).stddev[0] > 5, "silently black"
    faults = Counter(run.fault for run in mine.runs())
    assert set(FAULTS) - set(faults) <= {"deleted"}, "every fault was met"
    assert len(named) <= 10, summary.failed
    # What a restart forgot, finished or not, has to be made again; nothing else has.
    good = [run for run in mine.runs() if run.fault in (None, "post_500", "sockets_close", "sockets_silent")]
    takes = {re.sub(r"/[^/]*$", "", run.prefix) for run in good}
    forgotten = 2 * faults["restart"]
    assert len(good) - len(takes) <= forgotten, (len(good), len(takes), faults)
    print(f"named {len(named)} of 200; {len(mine.runs())} runs; {dict(faults)}")


async def test_a_host_with_a_cuda_fault_gets_no_more_and_its_prompts_are_made_elsewhere(
    film_set: Callable[[int], Set],
) -> None:
    mine = film_set(2)
    mine.servers[0].comfy.choose = lambda graph: "cuda"
    summary = await mine.shoot([picture(n) for n in range(6)])
    assert (summary.done, summary.failed) == (6, [])
    assert len(mine.servers[0].runs) <= 2, "what was queued there when it failed, and nothing after"
    assert {attempt.host for sidecar in mine.sidecars() for attempt in sidecar.attempts} == {"h1"}


async def test_memory_is_freed_and_the_step_tried_once_more(film_set: Callable[[int], Set]) -> None:
    mine = film_set(1)
    mine.servers[0].fail("oom")
    summary = await mine.shoot([picture(1)])
    assert (summary.done, summary.needs_review) == (1, 0)
    # Freed for the second try, and again when the lane gives its memory back.
    assert (mine.servers[0].comfy.freed, len(mine.servers[0].runs)) == (2, 2)


async def test_a_result_that_is_gone_from_the_host_is_made_again(film_set: Callable[[int], Set]) -> None:
    mine = film_set(1)
    mine.servers[0].fail("no_file")
    summary = await mine.shoot([picture(1)])
    assert (summary.done, summary.needs_review, len(mine.servers[0].runs)) == (1, 0, 2)
    (sidecar,) = mine.sidecars()
    assert [attempt.n for attempt in sidecar.attempts] == [0], "there was nothing to look at the first time"


async def test_a_black_picture_is_made_again_with_another_seed(film_set: Callable[[int], Set]) -> None:
    mine = film_set(1)
    mine.servers[0].fail("black")
    mine.servers[0].fail("half_file")
    await mine.shoot([picture(1)])
    (sidecar,) = mine.sidecars()
    assert (sidecar.chosen, sidecar.needs_review) == (2, False)
    assert len({attempt.seed for attempt in sidecar.attempts}) == 3
    assert all(attempt.faults for attempt in sidecar.attempts[:2])


async def test_the_next_prompt_is_queued_while_one_runs(film_set: Callable[[int], Set]) -> None:
    mine = film_set(1)
    seen: list[int] = []
    mine.servers[0].comfy.choose = lambda graph: seen.append(len(mine.servers[0].comfy.pending))
    await mine.shoot([clip(n) for n in range(4)])
    ids = [run.prompt_id for run in mine.runs()]
    starts = [
        mine.servers[0].comfy.history[prompt_id]["status"]["messages"][0][1]["timestamp"] for prompt_id in ids
    ]
    ends = [
        mine.servers[0].comfy.history[prompt_id]["status"]["messages"][-1][1]["timestamp"]
        for prompt_id in ids
    ]
    idle = [start - end for end, start in zip(ends, starts[1:], strict=False)]
    assert sorted(idle)[len(idle) // 2] < 50, "milliseconds that the engine waited between two prompts"
    (lane,) = mine.manifest.lanes
    assert lane.seconds == pytest.approx(
        sum(e - s for s, e in zip(starts, ends, strict=True)) / 1000, abs=0.2
    ), "what a prompt waited for another one is no time of the engine"
