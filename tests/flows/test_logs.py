"""What a run logs, as read from the server's API: one line for each thing that matters, and none besides."""

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort

from callsheet.takes import Sidecar
from tests.fakes.proxy import FaultyProxy
from tests.flows.run_log import lines_now, log_of, ours
from tests.flows.test_produce import CANARY, LINE, PICTURE, Studio

SPOKEN = "/inference_zero_shot"
#: A line of a take: batch, shot and step; where; which attempt and how long.
TAKE = re.compile(r"script: (?P<step>\S+ \w+)( on (?P<lane>\S+))?: attempt (?P<n>\d), \d+\.\d s$")
TITLED = [LINE | {"title": "One"}, PICTURE | {"title": "One"}]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.05")


@pytest.fixture
def api(prefect_api: str) -> str:
    return prefect_api


@pytest.fixture
def proxy(draft_host: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(draft_host) as proxy:
        yield proxy


@pytest.fixture
def studio(tmp_path: Path, write_script: Callable[..., Path]) -> Callable[..., Studio]:
    return lambda **hosts: Studio(tmp_path, write_script, hosts)


async def test_a_run_has_a_line_for_its_begin_each_host_each_take_and_its_end(
    studio: Callable[..., Studio], proxy: FaultyProxy, api: str
) -> None:
    mine = studio(h0=proxy.url)
    await mine.run(*TITLED)
    lines = await log_of(api, mine.state)
    said = ours(lines)
    assert said[:2] == [
        "script: begins: 2 shots, 5 takes, of which 0 are there",
        "script: host h0 joins with 3 lanes",
    ]
    takes = [found for line in said if (found := TAKE.match(line))]
    assert sorted((found["step"], found["lane"], found["n"]) for found in takes) == [
        ("One programme", None, "0"),
        ("a clip", None, "0"),
        ("a speech", "h0/lighttts/0", "0"),
        ("p clip", None, "0"),
        ("p image", "h0/comfyui/0", "0"),
    ]
    (speech,) = mine.sidecars("speech")
    assert (
        f"script: a speech on {speech.take.lane}: attempt {speech.take.n}, {speech.take.seconds:.1f} s"
        in said
    )
    assert sum(line.startswith("script: host h0 leaves: 2 steps, ") for line in said) == 1
    assert re.fullmatch(
        r"script: ends: 2 of 2 shots are done, 5 takes made, 0 reused, 0 to review, \S+ s, \$\S+", said[-1]
    )
    assert len(said) == 5 + 4, "nothing is said besides"
    # Prefect's own lines are those of the flow run: its begin, where it is seen, its end.
    assert [line.text for line in lines if line.text not in said and line.of_task] == []
    assert all(line.level == logging.INFO for line in lines)
    assert not any("HTTP Request" in line.text for line in lines)


async def test_a_second_run_says_in_one_line_what_is_there(
    studio: Callable[..., Studio], proxy: FaultyProxy, api: str
) -> None:
    mine = studio(h0=proxy.url)
    await mine.run(*TITLED)
    await mine.run(*TITLED)
    begins, ends = ours(await log_of(api, mine.state))
    assert begins == "script: begins: 2 shots, 5 takes, of which 5 are there"
    assert ends.startswith("script: ends: 2 of 2 shots are done, 0 takes made, 5 reused")


async def test_while_an_engine_is_at_work_nothing_is_said(
    studio: Callable[..., Studio], proxy: FaultyProxy, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.2")  # an answer may take 12 s
    mine = studio(h0=proxy.url)
    proxy.hold(SPOKEN)
    run = asyncio.create_task(mine.run(LINE))
    async with asyncio.timeout(30):
        while not proxy.count(SPOKEN):
            await asyncio.sleep(0.05)
        async with get_client() as client:
            (flow_run,) = await client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
        while not (before := ours(await lines_now(api, str(flow_run.id)))):
            await asyncio.sleep(0.1)
    # By then every clock of ours has ticked: the journal's (5 s), the artifact's (3 s), and scaled ones many times.
    await asyncio.sleep(5.5)
    lines = await lines_now(api, str(flow_run.id))
    assert ours(lines) == before
    assert all(line.text in before or line.text.startswith("Beginning flow run") for line in lines)
    proxy.release()
    assert (await run).done == 1


async def test_a_retry_is_said_by_prefect_alone(
    studio: Callable[..., Studio], proxy: FaultyProxy, api: str
) -> None:
    mine = studio(h0=proxy.url)
    proxy.fail(SPOKEN, "500", times=2, after=CANARY)
    await mine.run(LINE)
    lines = await log_of(api, mine.state)
    retries = [line.text for line in lines if "Retry" in line.text]
    assert [re.search(r"Retry \d", text)[0] for text in retries] == ["Retry 1", "Retry 2"]  # type: ignore[index]
    assert all("h0/lighttts: answered 500: sorry" in text for text in retries)
    assert sum("answered 500" in line.text for line in lines) == 2


async def test_a_failed_check_is_one_line_with_its_reason_and_the_retake_another(
    studio: Callable[..., Studio], proxy: FaultyProxy, api: str
) -> None:
    mine = studio(h0=proxy.url)
    proxy.fail(SPOKEN, "silence", after=CANARY)
    await mine.run(LINE)
    bad, made = (line for line in ours(await log_of(api, mine.state)) if "a speech" in line)
    assert bad.startswith("script: a speech on h0/lighttts/0: attempt 0 is made again: rms_dbfs")
    assert (found := TAKE.match(made))
    assert found["n"] == "1"


async def test_a_take_that_is_kept_for_review_is_a_warning_with_the_reason(
    studio: Callable[..., Studio], proxy: FaultyProxy, api: str
) -> None:
    mine = studio(h0=proxy.url)
    proxy.fail(SPOKEN, "silence", times=100, after=CANARY)
    await mine.run(LINE, advanced={"retakes": 1})
    warnings = [line.text for line in await log_of(api, mine.state) if line.level == logging.WARNING]
    assert [re.sub(r"\d+\.\d s, ", "", text)[:73] for text in warnings] == [
        "script: a speech on h0/lighttts/0: attempt 0 is made again: rms_dbfs is -",
        "script: a speech on h0/lighttts/0: attempt 0, is kept for review: rms_dbf",
    ]


async def test_a_step_that_fails_is_one_line_and_no_traceback(
    studio: Callable[..., Studio], proxy: FaultyProxy, api: str
) -> None:
    mine = studio(h0=proxy.url)
    proxy.fail("/upload/image", "500", times=100)
    proxy.fail("/prompt", "500", times=100)
    await mine.run(LINE, PICTURE)
    lines = await log_of(api, mine.state)
    (failed,) = [text for text in ours(lines) if "failed" in text]
    assert failed == "script: p image on h0/comfyui/0: failed: h0/comfyui: answered 500: sorry"
    assert not any("Traceback" in line.text for line in lines)


async def test_a_host_that_is_not_there_is_left_out_in_one_line(
    studio: Callable[..., Studio], draft_host: str, api: str
) -> None:
    mine = studio(gone="http://127.0.0.1:9", here=draft_host)
    await mine.run(LINE, PICTURE)
    lines = await log_of(api, mine.state)
    (left_out,) = [text for text in ours(lines) if "gone" in text]
    assert left_out.startswith("script: host gone is left out: gone/")
    assert "no connection" in left_out
    assert sum("host here" in text for text in ours(lines)) == 2
    assert not any("Traceback" in line.text for line in lines)


async def test_a_defect_is_said_with_its_traceback(
    studio: Callable[..., Studio], draft_host: str, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody expects it, so whoever reads the log must be able to find it."""

    def broken(*_: object, **__: object) -> Sidecar:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("tasks.checks._check_picture", broken)
    mine = studio(h0=draft_host)
    await mine.run(PICTURE)
    lines = await log_of(api, mine.state)
    (line,) = [line for line in lines if line.text.startswith("script: p image") and "failed" in line.text]
    assert line.level == logging.ERROR
    assert "in broken" in line.text
