"""`callsheet ui`: one command and a batch can be run, and opened, without a terminal; its end leaves nothing behind."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from callsheet.serving import listen
from tests.conftest import write_csv
from tests.flows.desk import BIN, Desk, until

pytestmark = pytest.mark.slow
LINE = {"shot_id": "a", "text": "A line of the night is spoken.", "voice": "anna"}
BROKEN = {"shot_id": "a", "text": "Nobody says this.", "voice": "nobody"}


@pytest.fixture
def desk(script_folder: Path) -> Iterator[Callable[..., Desk]]:
    started: list[Desk] = []

    def start(*options: str, **environment: str) -> Desk:
        started.append(Desk(script_folder, *options, **environment))
        return started[-1]

    yield start
    for one in started:
        one.end()
        assert not one.left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_answers_and_its_end_leaves_no_process(desk: Callable[..., Desk], number: signal.Signals) -> None:
    """Also where a run is at work: the worker's runs end with it."""
    one = desk()
    assert httpx.get(f"{one.ui}/api/health").json() is True
    assert "none yet" in httpx.get(one.store).text
    workers = until(lambda: len(found := one.post("work_pools/local/workers/filter")) == 2 and found)
    assert [worker["status"] for worker in workers] == ["ONLINE", "ONLINE"]
    write_csv(
        one.folder / "long.csv",
        [LINE | {"shot_id": f"s{n}", "text": f"This is line {n}, and it is long."} for n in range(60)],
    )
    produce = one.deployment("produce/produce")["id"]
    one.post(f"deployments/{produce}/create_flow_run", parameters={"parameters": {"script": "long.csv"}})
    until(lambda: list((one.folder / "out/takes").glob("speech/*.json")))
    one.watch()
    assert len(one.children) >= 6, "server, store, worker, its keeper, a run, its draft host"
    code = one.end(number)
    assert code == (0 if number != signal.SIGKILL else -signal.SIGKILL)
    assert one.left() == []
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{one.ui}/api/health")


def test_the_scheduler_runs_the_nightly_deployment_on_what_was_dropped(desk: Callable[..., Desk]) -> None:
    one = desk("--store", "media", PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="2")
    inbox = one.folder / "media/inbox"
    inbox.mkdir(parents=True)
    for name in ("voices.csv", "anna.wav", "wei.wav"):
        (inbox / name).write_bytes((one.folder / name).read_bytes())
    write_csv(inbox / "夜.csv", [LINE])
    write_csv(inbox / "broken.csv", [BROKEN])
    nightly = one.deployment("produce_inbox/produce-nightly")
    (schedule,) = nightly["schedules"]
    httpx.patch(
        f"{one.ui}/api/deployments/{nightly['id']}/schedules/{schedule['id']}",
        json={"schedule": {"interval": 5}, "active": True},
    ).raise_for_status()
    until(lambda: (inbox / "done/夜.txt").exists() and (inbox / "failed/broken.txt").exists(), 180)
    httpx.patch(
        f"{one.ui}/api/deployments/{nightly['id']}/schedules/{schedule['id']}", json={"active": False}
    ).raise_for_status()
    summary = json.loads((inbox / "done/夜.json").read_text("utf-8"))
    assert (summary["batch"], summary["done"]) == ("夜", 1)
    report = httpx.get(summary["report"])
    assert summary["report"].startswith(f"{one.store}/batches/%E5%A4%9C/")
    assert (report.status_code, "夜" in report.text) == (200, True)
    assert 'found "nobody"' in (inbox / "failed/broken.txt").read_text("utf-8")
    (failed,) = until(lambda: [run for run in one.runs("produce_inbox") if run["state_type"] == "FAILED"])
    assert failed["created_by"]["type"] == "SCHEDULE", "not by hand"
    assert failed["state"]["message"].startswith("1 of 2 scripts are not done. broken.csv: ")
    produced = [run for run in one.runs("produce") if run["start_time"] > failed["start_time"]]
    assert sorted(run["state_type"] for run in produced) == ["COMPLETED", "FAILED"]


def test_a_port_that_is_taken_is_said_and_another_is_found_where_none_is_asked_for(
    desk: Callable[..., Desk], script_folder: Path
) -> None:
    with listen() as taken:
        port = str(taken.getsockname()[1])
        told = subprocess.run(
            [BIN / "callsheet", "ui", "--port", port], capture_output=True, text=True, check=False
        )
    assert told.returncode == 2
    assert f"port {port}: found it taken" in told.stderr
