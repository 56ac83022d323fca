"""A bucket, which machines share, and whose files cannot be locked."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from callsheet.errors import StoreFault
from callsheet.home import callsheet_home
from callsheet.manifest import Summary
from callsheet.parameters import ProduceParameters
from callsheet.store import open_store
from flows.produce import produce
from tests.callsheet.published import check_published
from tests.fakes.proxy import FaultyProxy
from tests.fakes.speech_server import SpeechServer
from tests.flows.test_lanes import PITCH, engine, host, lines

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The setting of a store in an empty bucket."""
    monkeypatch.setenv("R2_ENDPOINT_URL", s3)
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "secret-of-the-test")
    client = boto3.client(
        "s3", endpoint_url=s3, region_name="auto", aws_access_key_id="key", aws_secret_access_key="secret"
    )
    name = f"shared-{abs(hash(request.node.name))}"
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "auto"})
    return f"r2://{name}/studio"


@pytest.fixture
def speaker() -> Iterator[SpeechServer]:
    with SpeechServer(pitch=PITCH, cost=0.1) as server:
        yield server


@pytest.fixture
def fleet(speaker: SpeechServer, tmp_path: Path) -> str:
    path = tmp_path / "fleet.toml"
    path.write_text('provider = "static"\n' + host("bucket-h", engine("lighttts", speaker.url)), "utf-8")
    return str(path)


@pytest.fixture
def line(s3: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Between this machine and the bucket."""
    with FaultyProxy(s3) as proxy:
        monkeypatch.setenv("R2_ENDPOINT_URL", proxy.url)
        yield proxy


def spoken(speaker: SpeechServer) -> list[str]:
    return [text for text in speaker.texts() if "canary" not in text]


async def heard(speaker: SpeechServer, count: int) -> None:
    async with asyncio.timeout(60):
        while len(spoken(speaker)) < count:
            await asyncio.sleep(0.02)


async def test_keys_that_expire_in_the_middle_cost_no_take(
    bucket: str,
    fleet: str,
    line: FaultyProxy,
    speaker: SpeechServer,
    write_script: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.1")
    parameters = ProduceParameters(
        script=write_script(*lines(10, "eve"), name="e.csv"), store=bucket, fleet=fleet
    )
    line.fail(f"PUT /{bucket[5:]}/takes/", "keys expired", times=1000, after=8)
    state: Any = await produce(parameters, return_state=True)
    outcome = await state.aresult(raise_on_failure=False)
    assert isinstance(outcome, StoreFault)
    assert "does not accept the keys it was given" in str(outcome)
    assert "run again, what is done is kept" in str(outcome)
    assert "secret-of-the-test" not in str(outcome)
    first = len(spoken(speaker))
    assert first < 10  # nothing more was asked for than was under way
    line.fail_no_more()
    state = await produce(parameters, return_state=True)
    summary: Summary = await state.aresult()
    assert (summary.done, summary.failed) == (10, [])
    assert (
        len(spoken(speaker)) == len(set(spoken(speaker))) == 10
    )  # what never came into the store was kept here
    assert not list(callsheet_home().glob("undelivered/*/*"))
    check_bucket(bucket, "e")


@pytest.mark.slow
async def test_a_slow_store_does_not_stop_the_lanes_until_too_much_lies_here(
    bucket: str,
    fleet: str,
    line: FaultyProxy,
    speaker: SpeechServer,
    write_script: Callable[..., Path],
) -> None:
    def parameters(who: str, gigabytes: float) -> ProduceParameters:
        script = write_script(*lines(12, who), name=f"{who}.csv")
        return ProduceParameters(
            script=script, store=bucket, fleet=fleet, advanced={"undelivered_gb": gigabytes}
        )

    line.hold(f"PUT /{bucket[5:]}/takes/")
    run = asyncio.create_task(produce(parameters("flo", 1.0), return_state=True))
    await heard(speaker, 12)  # all are spoken, and none is in the store
    line.release()
    assert (await run).is_completed()

    line.hold(f"PUT /{bucket[5:]}/takes/")
    speaker.requests.clear()
    line.requests.clear()
    run = asyncio.create_task(produce(parameters("gil", 1e-6), return_state=True))
    await heard(speaker, 2)
    await asyncio.sleep(2)
    assert len(spoken(speaker)) <= 4  # one in the store's way, one before it, one on the lane
    line.release()
    assert (await run).is_completed()
    check_bucket(bucket, "gil")


def check_bucket(setting: str, batch: str) -> None:
    manifest = check_published(open_store(setting), batch)
    assert manifest.totals.failed == 0


async def test_two_runs_of_one_batch_make_nothing_twice(
    bucket: str,
    speaker: SpeechServer,
    write_script: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever begins first makes it; the other waits, and finds it made."""
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.1")
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('provider = "static"\n' + host("bucket-h", engine("lighttts", speaker.url)), "utf-8")
    parameters = ProduceParameters(
        script=write_script(*lines(4, "ann"), name="b.csv"), store=bucket, fleet=str(fleet)
    )
    states: list[Any] = await asyncio.gather(*(produce(parameters, return_state=True) for _ in range(2)))
    summaries: list[Summary] = [await state.aresult() for state in states]
    assert sorted(summary.takes_made for summary in summaries) == [0, 8]
    assert [summary.done for summary in summaries] == [4, 4]
    spoken = [text for text in speaker.texts() if "canary" not in text]
    assert len(spoken) == len(set(spoken)) == 4
