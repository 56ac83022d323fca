"""The ComfyUI client against the draft host, and behind a link that breaks in every way."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest

from callsheet.engines.comfyui import ComfyUI
from callsheet.engines.http import Unreachable
from callsheet.errors import BadInput, HostLacks, Transient
from callsheet.workflow import Workflow
from tests.fakes.proxy import Fault, FaultyProxy


@pytest.fixture
def proxy(draft_host: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(draft_host) as proxy:
        yield proxy


@pytest.fixture
async def comfy(proxy: FaultyProxy) -> AsyncIterator[ComfyUI]:
    async with ComfyUI(proxy.url, name="a10-1/comfyui") as client:
        yield client


@pytest.fixture
def graph(workflows: dict[str, Workflow]) -> Any:
    values = {"POSITIVE_PROMPT": "a lamp", "SEED": 3, "WIDTH": 256, "HEIGHT": 256}
    return workflows["flux_dev"].render(values | {"FILENAME_PREFIX": f"t/{uuid.uuid4()}"})


def new_id() -> str:
    return str(uuid.uuid4())


async def until_queued(host: httpx.AsyncClient, place: str, prompt_id: str, *, is_there: bool = True) -> None:
    """Waits until the prompt is, or is no more, in a part of the host's queue; ComfyUI tells nobody else's client."""
    while (prompt_id in str((await host.get("/queue")).json()[place])) is not is_there:
        await asyncio.sleep(0.01)


async def test_picture_comes_home_whole(comfy: ComfyUI, graph: Any, tmp_path: Path) -> None:
    await comfy.ready()
    output = await comfy.run(graph, "9", new_id(), 1.0)
    await comfy.download(output, tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (256, 256)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


async def test_clip_from_an_uploaded_image(
    comfy: ComfyUI, workflows: dict[str, Workflow], tmp_path: Path
) -> None:
    PIL.Image.new("RGB", (64, 64), "green").save(tmp_path / "start.png")
    name = await comfy.upload(tmp_path / "start.png", "callsheet")
    assert name == await comfy.upload(tmp_path / "start.png", "callsheet"), "the same file has one name"
    values: dict[str, Any] = {
        "POSITIVE_PROMPT": "x",
        "SEED": 1,
        "WIDTH": 256,
        "HEIGHT": 256,
        "FRAMES": 5,
        "IMAGE": name,
    }
    graph = workflows["wan_i2v"].render(values | {"FILENAME_PREFIX": f"t/{uuid.uuid4()}"})
    output = await comfy.run(graph, "50", new_id(), 1.0)
    assert output.filename.endswith(".mp4")


@pytest.mark.parametrize("fault", ["cut", "reset", "500", "empty"])
async def test_broken_download_is_begun_again_and_the_prompt_is_not(
    comfy: ComfyUI,
    proxy: FaultyProxy,
    graph: Any,
    tmp_path: Path,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.05")
    output = await comfy.run(graph, "9", new_id(), 1.0)
    proxy.fail("/view", fault, times=2)
    await comfy.download(output, tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as picture:
        picture.load()
    assert (proxy.count("/view"), proxy.count("/prompt", "POST")) == (3, 1)


async def test_download_that_never_comes_whole_leaves_nothing_that_looks_like_a_take(
    comfy: ComfyUI, proxy: FaultyProxy, graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.05")
    output = await comfy.run(graph, "9", new_id(), 1.0)
    proxy.fail("/view", "cut", times=3)
    with pytest.raises(Transient):
        await comfy.download(output, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


async def test_answer_that_was_lost_after_the_prompt_was_queued_costs_no_second_prompt(
    comfy: ComfyUI, proxy: FaultyProxy, draft_host: str, graph: Any
) -> None:
    proxy.fail("/prompt", "cut")  # the draft host has it; the answer breaks off
    prompt_id = new_id()
    await comfy.run(graph, "9", prompt_id, 1.0)
    assert proxy.count("/prompt", "POST") == 1
    assert prompt_id in httpx.get(f"{draft_host}/history").json()


async def test_prompt_that_never_arrived_is_transient(comfy: ComfyUI, proxy: FaultyProxy, graph: Any) -> None:
    proxy.fail("/prompt", "502")
    with pytest.raises(Transient, match="answered 502"):
        await comfy.run(graph, "9", new_id(), 1.0)


async def test_prompt_that_somebody_deleted_is_lost_and_not_done(
    comfy: ComfyUI, draft_host: str, graph: Any, workflows: dict[str, Workflow]
) -> None:
    slow = workflows["wan_t2v"].render(
        {"POSITIVE_PROMPT": "x", "SEED": 1, "FILENAME_PREFIX": f"t/{uuid.uuid4()}"}
    )
    async with httpx.AsyncClient(base_url=draft_host) as other:
        await other.post("/prompt", json={"prompt": slow, "prompt_id": new_id()})
        waiting = new_id()
        run = asyncio.create_task(comfy.run(graph, "9", waiting, 1.0))
        await until_queued(other, "queue_pending", waiting)
        await other.post("/queue", json={"delete": [waiting]})
        with pytest.raises(Transient, match="is lost"):
            await run


async def test_interrupted_prompt_is_transient(
    comfy: ComfyUI, draft_host: str, workflows: dict[str, Workflow]
) -> None:
    slow = workflows["wan_t2v"].render(
        {"POSITIVE_PROMPT": "x", "SEED": 2, "FILENAME_PREFIX": f"t/{uuid.uuid4()}"}
    )
    prompt_id = new_id()
    async with httpx.AsyncClient(base_url=draft_host) as other:
        run = asyncio.create_task(comfy.run(slow, "50", prompt_id, 1.0))
        await until_queued(other, "queue_running", prompt_id)
        await other.post("/interrupt", json={"prompt_id": prompt_id})
        with pytest.raises(Transient, match="somebody interrupted"):
            await run


async def test_cancelled_run_takes_its_prompt_off_the_host(
    comfy: ComfyUI, draft_host: str, workflows: dict[str, Workflow]
) -> None:
    slow = workflows["wan_t2v"].render(
        {"POSITIVE_PROMPT": "x", "SEED": 4, "FILENAME_PREFIX": f"t/{uuid.uuid4()}"}
    )
    prompt_id = new_id()
    async with httpx.AsyncClient(base_url=draft_host) as other:
        run = asyncio.create_task(comfy.run(slow, "50", prompt_id, 1.0))
        await until_queued(other, "queue_running", prompt_id)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await until_queued(other, "queue_running", prompt_id, is_there=False)
        messages = (await other.get(f"/history/{prompt_id}")).json()[prompt_id]["status"]["messages"]
        assert messages[-1][0] == "execution_interrupted"


async def test_missing_model_is_what_the_host_lacks(comfy: ComfyUI, workflows: dict[str, Workflow]) -> None:
    values = {"POSITIVE_PROMPT": "x", "SEED": 1, "FILENAME_PREFIX": "f", "UNET": "mine.safetensors"}
    with pytest.raises(HostLacks, match=r"unet_name: 'mine\.safetensors' not in"):
        await comfy.run(workflows["flux_dev"].render(values), "9", new_id(), 1.0)


async def test_missing_node_is_what_the_host_lacks(comfy: ComfyUI, graph: Any) -> None:
    graph["8"]["class_type"] = "VAEDecodeMagic"
    with pytest.raises(HostLacks, match="VAEDecodeMagic does not exist"):
        await comfy.run(graph, "9", new_id(), 1.0)


async def test_refused_value_is_bad_input_and_named(comfy: ComfyUI, graph: Any) -> None:
    graph["7"]["inputs"]["steps"] = 0
    with pytest.raises(BadInput, match=r"node 7 \(KSampler\): Value 0 smaller than min of 1: steps"):
        await comfy.run(graph, "9", new_id(), 1.0)


async def test_nobody_there_and_somebody_else_there(draft_host: str) -> None:
    async with ComfyUI("http://127.0.0.1:9", name="gone") as client:
        with pytest.raises(Unreachable):
            await client.ready()
    with FaultyProxy(draft_host) as proxy:
        proxy.fail("/system_stats", "empty")
        async with ComfyUI(proxy.url, name="page") as client:
            with pytest.raises(Transient, match="it is no ComfyUI yet"):
                await client.ready()
