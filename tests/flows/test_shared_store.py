"""A bucket, which machines share, and whose files cannot be locked."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from callsheet.manifest import Summary
from callsheet.parameters import ProduceParameters
from flows.produce import produce
from tests.fakes.speech_server import SpeechServer
from tests.flows.test_lanes import PITCH, engine, host, lines

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The setting of a store in an empty bucket."""
    monkeypatch.setenv("R2_ENDPOINT_URL", s3)
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "secret-of-the-test")
    client = boto3.client(
        "s3", endpoint_url=s3, region_name="auto", aws_access_key_id="key", aws_secret_access_key="secret"
    )
    client.create_bucket(Bucket="shared", CreateBucketConfiguration={"LocationConstraint": "auto"})
    return "r2://shared/studio"


@pytest.fixture
def speaker() -> Iterator[SpeechServer]:
    with SpeechServer(pitch=PITCH, cost=0.1) as server:
        yield server


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
