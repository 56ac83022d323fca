"""A rented box with everything that runs on it: its onstart script, dead-man's switch and agent are real processes here."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from callsheet.manifest import Summary
from callsheet.parameters import ProduceParameters
from flows.produce import produce
from tasks.outfit import TOUCH_PORT
from tests.fakes.rented_box import Boxes
from tests.fakes.vast import KEY, Box, Vast
from tests.flows.test_rented import FLEET, LINE
from tests.postgres import free_port

pytestmark = pytest.mark.usefixtures("prefect_api")
MODEL = b"weights of a model" * 10_000


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.05")


@pytest.fixture
def vast(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vast]:
    with Vast() as server, server.in_real_time():
        monkeypatch.setenv("VAST_API_KEY", KEY)
        monkeypatch.setenv("VAST_URL", server.url)
        server.offer()
        yield server


class StartedBoxes(Boxes):
    """Each box runs its onstart script, in a folder of its own."""

    def __init__(self, vast: Vast, upstream: str, folder: Path) -> None:
        super().__init__(vast, upstream)
        self._folder = folder
        self.started: dict[int, tuple[subprocess.Popen[bytes], int]] = {}

    def home(self, box: Box) -> Path:
        return self._folder / f"box-{box.id}"

    def _port(self, box: Box, inside: int) -> int:
        if inside != TOUCH_PORT:
            return super()._port(box, inside)
        if box.id not in self.started:
            port = free_port()
            onstart = box.order["onstart"].replace(
                f"CALLSHEET_TOUCH_PORT={TOUCH_PORT}", f"CALLSHEET_TOUCH_PORT={port}"
            )
            process = subprocess.Popen(
                ["bash", "-c", onstart],
                env={
                    "PATH": os.environ["PATH"],
                    "CALLSHEET_HOME": str(self.home(box)),
                    "CALLSHEET_TICK": "0.5",
                    "CONTAINER_ID": str(box.id),
                    "CONTAINER_API_KEY": box.key,
                    "CALLSHEET_BACKOFF": "0.1 0.1",
                },
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self.started[box.id] = process, port
        return self.started[box.id][1]

    def close(self) -> None:
        super().close()
        # Its processes have sessions of their own; their environment tells whose they are.
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if f"CALLSHEET_HOME={self._folder}".encode() in environment:
                    os.kill(int(entry.name), signal.SIGKILL)
        for process, _ in self.started.values():
            process.wait()


@pytest.fixture
def boxes(vast: Vast, draft_host: str, tmp_path: Path) -> Iterator[StartedBoxes]:
    boxes = StartedBoxes(vast, draft_host, tmp_path)
    yield boxes
    boxes.close()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket, as boto3 knows it."""
    monkeypatch.setenv("R2_ENDPOINT_URL", s3)
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "secret-of-the-bucket")
    client = boto3.client(
        "s3",
        endpoint_url=s3,
        region_name="auto",
        aws_access_key_id="key",
        aws_secret_access_key="secret-of-the-bucket",
    )
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket="rented", CreateBucketConfiguration={"LocationConstraint": "auto"})
    return client


def put_model(bucket: Any, folder: str, sha256: str) -> None:
    file = {"path": "unet/x.gguf", "sha256": sha256, "bytes": len(MODEL)}
    bucket.put_object(Bucket="rented", Key=f"{folder}/models/unet/x.gguf", Body=MODEL)
    bucket.put_object(
        Bucket="rented", Key=f"{folder}/models/manifest.json", Body=json.dumps({"files": [file]}).encode()
    )


@pytest.fixture
def make(write_script: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    async def run(rules: str = "") -> Any:
        fleet = tmp_path / "fleet.toml"
        rules += f'\nmodels_root = "{tmp_path}/models"\nstart = "touch {tmp_path}/started"'
        fleet.write_text(FLEET.format(rules=rules, revision=tmp_path.name), "utf-8")
        parameters = ProduceParameters(
            script=write_script(LINE), store=f"r2://rented/{tmp_path.name}", fleet=str(fleet)
        )
        state: Any = await produce(parameters, return_state=True)
        return await state.aresult(raise_on_failure=False)

    return run


@pytest.mark.slow
async def test_a_box_loads_its_models_from_the_bucket_before_it_is_ready(
    vast: Vast, boxes: StartedBoxes, bucket: Any, make: Callable[..., Any], tmp_path: Path
) -> None:
    put_model(bucket, tmp_path.name, hashlib.sha256(MODEL).hexdigest())
    summary = await make()
    assert isinstance(summary, Summary), summary
    assert (summary.done, vast.billable()) == (1, [])
    assert (tmp_path / "models/unet/x.gguf").read_bytes() == MODEL
    assert (tmp_path / "started").exists()
    (box,) = vast.boxes.values()
    lease = boxes.home(box) / "lease"
    assert lease.stat().st_mtime > box.made, "the run said that it is there"
    given = json.dumps(box.order)
    assert KEY not in given
    assert "secret-of-the-bucket" not in given
    listed = bucket.list_objects_v2(Bucket="rented", Prefix=f"{tmp_path.name}/hosts/")["Contents"]
    assert not any("models-" in entry["Key"] for entry in listed), "its signed addresses went with it"


@pytest.mark.slow
async def test_a_model_that_is_not_what_it_should_be_costs_the_box_and_is_told(
    vast: Vast,
    boxes: StartedBoxes,
    bucket: Any,
    make: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_model(bucket, tmp_path.name, "0" * 64)
    outcome = await make("attempts = 1")
    assert "its agent says: failed" in str(outcome)
    assert "x.gguf" in str(outcome)
    assert vast.billable() == []
    assert not (tmp_path / "models/unet/x.gguf").exists()


async def test_a_store_with_a_torn_list_of_models_rents_nothing(
    vast: Vast, boxes: StartedBoxes, bucket: Any, make: Callable[..., Any], tmp_path: Path
) -> None:
    bucket.put_object(Bucket="rented", Key=f"{tmp_path.name}/models/manifest.json", Body=b"{}")
    outcome = await make()
    assert "models/manifest.json is no list of models" in str(outcome)
    assert vast.boxes == {}


async def test_a_model_that_the_store_has_not_got_is_told_before_anything_is_rented(
    vast: Vast, boxes: StartedBoxes, bucket: Any, make: Callable[..., Any], tmp_path: Path
) -> None:
    put_model(bucket, tmp_path.name, "0" * 64)
    bucket.delete_object(Bucket="rented", Key=f"{tmp_path.name}/models/unet/x.gguf")
    outcome = await make()
    assert "names unet/x.gguf; found nothing at models/unet/x.gguf, expected" in str(outcome)
    assert vast.boxes == {}
