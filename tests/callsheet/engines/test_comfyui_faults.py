"""The ComfyUI driver against a server with the faults of real ones: each comes out right, and none pays twice."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from pydantic import SecretStr

from callsheet.engines.comfyui import ComfyUI, PromptState
from callsheet.engines.comfyui_answers import Interrupted, Lost, fault_of, find_output, refusal
from callsheet.errors import BadInput, BadOutput, HostFault, HostLacks, OutOfMemory, Transient
from callsheet.workflow import Workflow
from tests.fakes.comfyui_server import ComfyUIServer, Fault, RouteFault


@pytest.fixture
def server(workflows: dict[str, Workflow]) -> Iterator[ComfyUIServer]:
    with ComfyUIServer(workflows) as server:
        yield server


@pytest.fixture
async def comfy(server: ComfyUIServer) -> AsyncIterator[ComfyUI]:
    async with ComfyUI(server.url, name="a10-1/comfyui") as client:
        yield client


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.02")  # 600 s become 12


def picture(workflows: dict[str, Workflow], seed: int = 1) -> Any:
    values = {"POSITIVE_PROMPT": "a lamp", "SEED": seed, "WIDTH": 256, "HEIGHT": 256}
    return workflows["flux_dev"].render(values | {"FILENAME_PREFIX": f"t/{uuid.uuid4()}"})


def new_id() -> str:
    return str(uuid.uuid4())


@pytest.mark.parametrize(
    ("fault", "error", "told"),
    [
        ("node_errors", BadInput, "Value too small: steps"),
        ("empty_outputs", BadOutput, "node 9 saved no file"),
        ("oom", OutOfMemory, "node 9 .* out of memory"),
        ("cuda", HostFault, "illegal memory access"),
        ("broken", BadOutput, "the tensor has another size"),
        ("stranger", Interrupted, "somebody interrupted"),
        ("restart", Lost, "is lost"),
        ("deleted", Lost, "is lost"),
        ("frozen", Transient, "ran for more than|made no progress"),
    ],
)
async def test_each_failure_is_told_by_its_class_and_the_next_try_is_made_under_another_id(
    comfy: ComfyUI, server: ComfyUIServer, workflows: dict[str, Workflow], tmp_path: Path,
    fault: Fault, error: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if fault == "frozen":
        monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.005")
    server.fail(fault)
    first = await comfy.claim("key", 0)
    with pytest.raises(error, match=told):
        await comfy.run(picture(workflows), "9", first, 0.1)
    second = await comfy.claim("key", 0)
    assert (second == first) is (fault in ("restart", "deleted", "node_errors"))
    output = await comfy.run(picture(workflows), "9", second, 0.1)
    await comfy.download(output, tmp_path / "a.png", second)
    with PIL.Image.open(tmp_path / "a.png") as made:
        assert made.size == (256, 256)


async def test_a_prompt_that_is_queued_though_the_answer_was_500_is_not_sent_again(
    comfy: ComfyUI, server: ComfyUIServer, workflows: dict[str, Workflow]
) -> None:
    server.fail("post_500")
    await comfy.run(picture(workflows), "9", new_id(), 0.1)
    assert (len(server.comfy.posts), len(server.runs)) == (1, 1)


@pytest.mark.parametrize("fault", ["sockets_close", "sockets_silent"])
async def test_a_socket_that_closes_or_is_silent_costs_nothing(
    comfy: ComfyUI, server: ComfyUIServer, workflows: dict[str, Workflow], fault: Fault
) -> None:
    for seed in range(3):
        server.fail(fault)
        await comfy.run(picture(workflows, seed), "9", new_id(), 0.1)
    assert len(server.runs) == 3


async def test_a_run_that_was_killed_finds_its_prompt_again(
    server: ComfyUIServer, workflows: dict[str, Workflow]
) -> None:
    async with ComfyUI(server.url, name="x") as first:
        prompt_id = await first.claim("key", 0)
        await first.run(picture(workflows), "9", prompt_id, 0.1)
    async with ComfyUI(server.url, name="x") as second:
        assert await second.claim("key", 0) == prompt_id
        assert await second.state(prompt_id) is PromptState.SUCCEEDED
        output = await second.run(picture(workflows), "9", prompt_id, 0.1)
        assert output.seconds is not None
        assert await second.claim("key", 1) != prompt_id, "another attempt is another prompt"
        assert await second.claim("other", 0) != prompt_id
    assert len(server.runs) == 1


async def test_a_prompt_made_from_another_narration_is_not_taken_for_this_one(
    comfy: ComfyUI, workflows: dict[str, Workflow]
) -> None:
    old, new = picture(workflows), picture(workflows)
    old["9"]["inputs"]["filename_prefix"] = new["9"]["inputs"]["filename_prefix"] = ""
    assert await comfy.claim("key", 0, old) == await comfy.claim("key", 0, new)
    new["7"]["inputs"]["audio"] = "callsheet/another.wav"
    assert await comfy.claim("key", 0, old) != await comfy.claim("key", 0, new)


async def test_one_failed_question_ends_no_prompt(
    comfy: ComfyUI, server: ComfyUIServer, workflows: dict[str, Workflow]
) -> None:
    prompt_id = new_id()
    values: dict[str, Any] = {"POSITIVE_PROMPT": "x", "SEED": 1, "WIDTH": 256, "HEIGHT": 256, "FRAMES": 33}
    clip = workflows["wan_t2v"].render(values | {"FILENAME_PREFIX": f"t/{uuid.uuid4()}"})
    run = asyncio.create_task(comfy.run(clip, "50", prompt_id, 1.0))
    while not server.runs:
        await asyncio.sleep(0.005)
    server.fail_route(f"/history/{prompt_id}", "502", times=3)
    await run
    assert len(server.runs) == 1


async def test_a_socket_that_breaks_while_a_prompt_runs_does_not_make_it_stall(
    comfy: ComfyUI, server: ComfyUIServer, workflows: dict[str, Workflow]
) -> None:
    prompt_id = new_id()
    with comfy._feed.watching(prompt_id) as watch:
        comfy._feed._hear(
            '{"type": "progress", "data": {"prompt_id": "' + prompt_id + '", "value": 1, "max": 4}}'
        )
        assert comfy._feed.quiet_seconds(watch) == 0, "a socket that is silent altogether says nothing"
        await asyncio.sleep(0.05)
        comfy._feed._hear('{"type": "status", "data": {}}')
        assert comfy._feed.quiet_seconds(watch) >= 0.04, "others move, this one does not"
        comfy._feed.start()
        while not server.comfy.sockets:
            await asyncio.sleep(0.01)
        for socket in list(server.comfy.sockets.values()):
            asyncio.run_coroutine_threadsafe(socket.close(), server.comfy.loop).result()
        while watch.moved is not None:
            await asyncio.sleep(0.01)
        assert comfy._feed.quiet_seconds(watch) == 0


async def test_a_quick_picture_does_not_shorten_the_time_of_a_clip(
    comfy: ComfyUI, workflows: dict[str, Workflow]
) -> None:
    before = comfy._limits(300.0, "wan")
    for seed in range(4):
        await comfy.run(picture(workflows, seed), "9", new_id(), 100.0, signature="flux")
    assert comfy._limits(300.0, "wan") == before
    assert comfy._limits(100.0, "flux")[0] >= 0.02 * 600, "never under ten minutes"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("Expected all tensors to be on the same device, found cuda:0 and cpu!", BadOutput),
        (
            "Input type (torch.cuda.HalfTensor) and weight type (torch.HalfTensor) should be the same",
            BadOutput,
        ),
        ("torch._scaled_mm is only supported on CUDA devices with compute capability >= 8.9", HostLacks),
        ("CUDA error: device-side assert triggered", HostFault),
    ],
)
def test_a_message_about_the_graph_is_no_fault_of_the_gpu(message: str, error: type[Exception]) -> None:
    detail = {"exception_type": "RuntimeError", "exception_message": message}
    assert type(fault_of({"status": {"messages": [["execution_error", detail]]}}, "x")) is error


async def test_a_result_that_is_gone_from_the_host_is_made_again(
    comfy: ComfyUI, server: ComfyUIServer, workflows: dict[str, Workflow], tmp_path: Path
) -> None:
    server.fail("no_file")
    first = await comfy.claim("key", 0)
    output = await comfy.run(picture(workflows), "9", first, 0.1)
    with pytest.raises(Transient, match="is not on the host any more"):
        await comfy.download(output, tmp_path / "a.png", first)
    second = await comfy.claim("key", 0)
    assert second != first
    await comfy.download(await comfy.run(picture(workflows), "9", second, 0.1), tmp_path / "a.png", second)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.slow
async def test_a_prompt_that_does_not_give_way_is_the_hosts_fault(
    comfy: ComfyUI, server: ComfyUIServer, workflows: dict[str, Workflow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.005")
    server.fail("stubborn")
    with pytest.raises(HostFault, match="does not give way"):
        await comfy.run(picture(workflows), "9", new_id(), 0.1)


async def test_the_socket_tells_how_far_a_prompt_is_and_at_once_when_it_is_over(
    comfy: ComfyUI, server: ComfyUIServer, workflows: dict[str, Workflow]
) -> None:
    comfy._feed.start()
    while comfy._feed.client_id not in server.comfy.sockets:
        await asyncio.sleep(0.01)
    prompt_id = new_id()
    values: dict[str, Any] = {"POSITIVE_PROMPT": "x", "SEED": 1, "WIDTH": 256, "HEIGHT": 256, "FRAMES": 33}
    clip = workflows["wan_t2v"].render(values | {"FILENAME_PREFIX": f"t/{uuid.uuid4()}"})
    with comfy._feed.watching(prompt_id) as watch:
        await comfy._submit(clip, prompt_id)
        async with asyncio.timeout(30):
            await watch.news(3600)  # nobody asks the history meanwhile
        assert 0 < watch.fraction <= 1
    assert await comfy.state(prompt_id) is PromptState.SUCCEEDED


@pytest.mark.parametrize(
    ("fault", "error", "told"),
    [
        ("placeholder", Transient, "the application is not up"),
        ("401", HostFault, "is its token set"),
        ("502", Transient, "502"),
    ],
)
async def test_a_proxy_that_answers_in_the_servers_place_is_not_believed(
    comfy: ComfyUI,
    server: ComfyUIServer,
    workflows: dict[str, Workflow],
    fault: RouteFault,
    error: type[Exception],
    told: str,
) -> None:
    server.fail_route("/history", fault)
    with pytest.raises(error, match=told):
        await comfy.run(picture(workflows), "9", new_id(), 0.1)
    server.fail_route("/system_stats", fault)
    with pytest.raises(error):
        await comfy.ready()


async def test_an_upload_that_is_too_large_is_what_the_host_lacks(
    comfy: ComfyUI, server: ComfyUIServer, tmp_path: Path
) -> None:
    (tmp_path / "a.wav").write_bytes(b"x" * 1000)
    server.fail_route("/upload", "413")
    with pytest.raises(
        HostLacks, match=r"a\.wav has 0 MB, and the server takes 100 MB; start it with a larger"
    ):
        await comfy.upload(tmp_path / "a.wav", "callsheet")


@pytest.mark.parametrize("place", ["header", "query", "cookie"])
async def test_a_token_goes_where_the_proxy_looks_for_it_on_http_and_websocket(place: Any) -> None:
    from fastapi import FastAPI, Request, WebSocket

    seen: list[tuple[str, str, str]] = []
    app = FastAPI()

    def note(kind: str, request: Any) -> None:
        found = {"header": request.headers.get("authorization", ""), "cookie": request.headers.get("cookie", ""),
                 "query": str(request.query_params)}  # fmt: skip
        seen.append((kind, place, found[place]))

    @app.get("/system_stats")
    async def stats(request: Request) -> dict[str, Any]:
        note("http", request)
        return {"devices": []}

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        note("ws", socket)
        await socket.accept()
        await socket.receive_text()

    import threading

    import uvicorn

    from callsheet.serving import listen, url_of

    listener = listen()
    web = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(web.serve(sockets=[listener])), daemon=True)
    thread.start()
    secret = SecretStr("s3cret")
    async with ComfyUI(
        url_of(listener), name="x", token=secret, token_place=place, token_name="tok"
    ) as client:
        while not web.started:
            await asyncio.sleep(0.01)
        await client.ready()
        client._feed.start()
        while len(seen) < 2:
            await asyncio.sleep(0.01)
    web.should_exit = web.force_exit = True
    thread.join()
    wanted = {"header": "Bearer s3cret", "cookie": "tok=s3cret", "query": "tok=s3cret"}[place]
    assert {kind for kind, *_ in seen} == {"http", "ws"}
    assert all(wanted in shown for *_, shown in seen)


@pytest.mark.parametrize("has_jobs", [False, True])
async def test_a_prompt_is_cancelled_by_the_jobs_api_where_the_server_has_it(
    workflows: dict[str, Workflow], has_jobs: bool
) -> None:
    with ComfyUIServer(workflows, has_jobs=has_jobs) as server:
        async with ComfyUI(server.url, name="x") as client:
            server.fail("frozen")
            running, waiting = new_id(), new_id()
            runs = []
            for n, (prompt_id, state) in enumerate(
                ((running, PromptState.RUNNING), (waiting, PromptState.PENDING))
            ):
                runs.append(asyncio.create_task(client.run(picture(workflows, n), "9", prompt_id, 100.0)))
                while await client.state(prompt_id) is not state:
                    await asyncio.sleep(0.01)
            await client.cancel(waiting)
            await client.cancel(running)
            with pytest.raises(Lost):
                await runs[1]
            with pytest.raises(Interrupted):
                await runs[0]
        assert server.count("/cancel", "POST") == (2 if has_jobs else 0)
        assert server.count("/interrupt", "POST") == (0 if has_jobs else 1), (
            "never without being sure that it is ours"
        )


async def test_a_strangers_prompt_is_never_interrupted(
    comfy: ComfyUI, server: ComfyUIServer, workflows: dict[str, Workflow]
) -> None:
    server.fail("frozen")
    stranger = asyncio.create_task(comfy.run(picture(workflows), "9", new_id(), 1000.0))
    while not server.runs:
        await asyncio.sleep(0.01)
    await comfy.cancel(new_id())
    assert server.count("/interrupt", "POST") == 0
    stranger.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stranger


def test_outputs_are_found_under_any_key_and_never_in_temp() -> None:
    def entry(**keys: Any) -> dict[str, Any]:
        return {"outputs": {"9": keys}, "status": {"messages": []}}

    clip = {"filename": "a.mp4", "subfolder": "v", "type": "output"}
    for keys in (
        {"gifs": [clip]},
        {"images": [clip], "animated": [True]},
        {"text": ["x"], "video": [None, clip]},
    ):
        assert find_output(entry(**keys), "9", "x").filename == "a.mp4"
    for nothing in ({"images": [clip | {"type": "temp"}]}, {}, {"images": None}):
        with pytest.raises(BadOutput):
            find_output(entry(**nothing), "9", "x")


def test_newer_servers_refusals_are_understood() -> None:
    newer = {
        "error": {
            "type": "missing_node_type",
            "message": "Node 'X' not found",
            "details": "",
            "extra_info": {},
        },
        "node_errors": {},
    }
    assert isinstance(refusal("x", newer), HostLacks)
    cycle = {
        "error": {
            "type": "prompt_outputs_failed_validation",
            "message": "Prompt outputs failed validation",
            "details": "",
        },
        "node_errors": {},
    }
    assert str(refusal("x", cycle)) == "x: Prompt outputs failed validation"
    assert isinstance(refusal("x", {"error": "went wrong"}), BadInput)


def test_messages_decide_and_the_status_word_does_not() -> None:
    stale = {
        "status": {
            "status_str": "success",
            "messages": [
                [
                    "execution_error",
                    {"exception_type": "RuntimeError", "exception_message": "CUDA error: device-side assert"},
                ]
            ],
        }
    }
    assert isinstance(fault_of(stale, "x"), HostFault)
