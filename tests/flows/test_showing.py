"""What a person sees of a batch in Prefect's UI, and what automations may act on."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import httpx
import PIL.Image
import pytest
import yaml

from callsheet.manifest import ManifestShot
from callsheet.parameters import ProduceParameters
from flows.produce import produce
from tasks import showing
from tasks.events import EVENTS, announce
from tests.conftest import ROOT, write_fleet

pytestmark = pytest.mark.usefixtures("prefect_api")
LINE = {"shot_id": "a", "title": "One *two*", "text": "The keeper lit the lamp at six.", "voice": "anna"}
SMALL = {"width": 256, "height": 256}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.05")


async def artifact(api: str, key: str) -> Any:
    """The newest artifact of that key."""
    async with httpx.AsyncClient(base_url=f"{api}/api") as client:
        answer = await client.get(f"/artifacts/{key}/latest")
    answer.raise_for_status()
    return answer.json()


async def events(api: str, batch: str, count: int) -> list[dict[str, Any]]:
    """The events of a batch, once so many are there: they are sent in the background."""
    asked = {"filter": {"resource": {"id": [f"callsheet.batch.{batch}"]}}, "limit": 50}
    async with asyncio.timeout(30), httpx.AsyncClient(base_url=f"{api}/api") as client:
        while True:
            found: list[dict[str, Any]] = (await client.post("/events/filter", json=asked)).json()["events"]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.2)


async def test_a_batch_is_shown_with_its_shots_and_told_of(
    prefect_api: str,
    draft_host: str,
    write_script: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CALLSHEET_STORE_URL", "http://127.0.0.1:1")
    fleet = write_fleet(tmp_path / "fleet.toml", {"shown": draft_host}, revision="shown-1")
    script = write_script(LINE | {"visual": "flux_dev", "prompt": "a lamp", **SMALL}, name="Shown 1.csv")
    parameters = ProduceParameters(script=script, store=str(tmp_path / "out"), fleet=str(fleet))
    state: Any = await produce(parameters, return_state=True)
    assert state.is_completed()
    assert (await artifact(prefect_api, "progress-shown-1"))["data"] == 100.0
    rows = json.loads((await artifact(prefect_api, "shots-shown-1"))["data"])
    assert [(row["shot"], row["state"]) for row in rows] == [("a", "done")]
    assert rows[0]["clip"].startswith("[a.mp4](<http://127.0.0.1:1/")
    assert (rows[0]["takes"], rows[0]["why"]) == ("3 in 3 attempts", "")
    passed, _, all_of_them = rows[0]["checks"].partition(" of ")
    assert passed == all_of_them != "0"
    sheet = await artifact(prefect_api, "contact-sheet-shown-1")
    assert (sheet["type"], sheet["flow_run_id"], sheet["task_run_id"]) == (
        "image",
        str(state.state_details.flow_run_id),
        None,
    )
    assert sheet["data"] == "http://127.0.0.1:1/batches/Shown%201/contact-sheet.jpg"
    with PIL.Image.open(tmp_path / "out/batches/Shown 1/contact-sheet.jpg") as picture:
        assert picture.format == "JPEG"
    text = (await artifact(prefect_api, "batch-shown-1"))["data"]
    assert "**1 of 1 shots are done**" in text
    assert r"[One \*two\*](<http://" in text
    assert json.loads((await artifact(prefect_api, "lanes-shown-1"))["data"])[-1]["lane"] == "all"
    told = await events(prefect_api, "Shown 1", 2)
    assert {one["event"] for one in told} == {"callsheet.batch.started", "callsheet.batch.finished"}
    assert next(one for one in told if one["event"].endswith("finished"))["payload"]["done"] == 1


@pytest.mark.slow
async def test_a_private_bucket_is_shown_by_paths_and_no_signature_is_kept(
    prefect_api: str,
    s3: str,
    draft_host: str,
    write_script: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("R2_ENDPOINT_URL", s3)
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "secret-of-the-test")
    client = boto3.client(
        "s3", endpoint_url=s3, region_name="auto", aws_access_key_id="key", aws_secret_access_key="secret"
    )
    client.create_bucket(Bucket="shown", CreateBucketConfiguration={"LocationConstraint": "auto"})
    fleet = write_fleet(tmp_path / "fleet.toml", {"shown": draft_host}, revision="shown-2")
    script = write_script(LINE, name="private.csv")
    state: Any = await produce(
        ProduceParameters(script=script, store="r2://shown/x", fleet=str(fleet)), return_state=True
    )
    assert state.is_completed()
    kept = [await artifact(prefect_api, f"{what}-private") for what in ("shots", "batch")]
    assert "`batches/private/report.html` in r2://shown/x" in kept[1]["data"]
    for secret in ("Signature", "secret-of-the-test", "AWSAccessKeyId"):
        assert secret not in json.dumps(kept)


async def test_a_batch_that_cannot_begin_is_told_of(
    prefect_api: str, write_script: Callable[..., Path], tmp_path: Path
) -> None:
    script = write_script(LINE | {"voice": "nobody"}, name="broken.csv")
    state: Any = await produce(
        ProduceParameters(script=script, store=str(tmp_path / "out")), return_state=True
    )
    assert state.is_failed()
    (told,) = await events(prefect_api, "broken", 1)
    assert told["event"] == "callsheet.batch.failed"
    assert "nobody" in told["payload"]["reason"]
    (row,) = json.loads((await artifact(prefect_api, "mistakes-broken"))["data"])
    assert (row["file"], row["row"], row["column"], row["found"]) == ("broken.csv", 2, "voice", '"nobody"')


def test_of_many_shots_those_are_shown_that_somebody_must_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "MOST_ROWS", 3)
    shots = [ManifestShot(shot_id=f"s{n}", title="", state="done", takes={}) for n in range(9)]
    shots[8].state = "failed"
    shots[7].needs_review = True
    assert [shot.shot_id for shot in showing._most_urgent(shots)] == ["s8", "s7", "s0"]


def test_the_webhook_listens_to_events_that_there_are() -> None:
    template = yaml.safe_load((ROOT / "deployments/automation-webhook.yaml").read_text("utf-8"))
    known = {*(f"callsheet.batch.{what}" for what in EVENTS), "callsheet.host.leaked"}
    assert set(template["trigger"]["expect"]) <= known
    with pytest.raises(ValueError, match="no event of a batch"):
        announce("nonsense", "demo")
