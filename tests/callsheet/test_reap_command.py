"""``callsheet reap`` as cron runs it: in a process of its own, without Prefect."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from callsheet.hosts import HostBook, HostLabel
from callsheet.store import LocalFolder
from tests.callsheet.test_hosts import record
from tests.fakes.vast import KEY, Vast

CALLSHEET = Path(sys.executable).parent / "callsheet"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def vast() -> Iterator[Vast]:
    with Vast() as server:
        server.now = time.time() - 3600
        yield server


@pytest.fixture
def reap(vast: Vast, tmp_path: Path) -> Run:
    def run(*options: str, key: str = KEY, command: str = "reap") -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        own = {"VAST_URL": vast.url, "CALLSHEET_TIME_SCALE": "0.03", "HOME": str(tmp_path), "COLUMNS": "200"}
        return subprocess.run(
            [CALLSHEET, command, *options],
            env=kept | own | ({"VAST_API_KEY": key} if key else {}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_what_is_over_goes_and_what_is_not_stays(vast: Vast, reap: Run, tmp_path: Path) -> None:
    book = HostBook(LocalFolder(tmp_path / "out"))
    boxes = []
    for seconds, state in ((1800.0, "ready"), (6 * 3600.0, "ready"), (6 * 3600.0, "draining")):
        label = HostLabel.new("studio", book.id(), vast.now, seconds)
        boxes.append(vast.made(vast.offer(), {"label": str(label), "disk": 80}))
        book.write(record(label, state=state, instance=boxes[-1].id))
    vast.made(vast.offer(), {"label": "somebody's"})
    vast.advance(3600)
    dry = reap("--dry-run", "--store", str(tmp_path / "out"))
    assert (dry.returncode, len(vast.billable())) == (0, 4), dry.stderr
    assert dry.stdout.count("would be destroyed") == 2
    assert "its time is over" in dry.stdout
    told = reap("--store", str(tmp_path / "out"), "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout.splitlines()[-1])
    assert (found["destroyed"], found["kept"], found["foreign"]) == (
        [boxes[0].id, boxes[2].id],
        [boxes[1].id],
        1,
    )
    assert "1 hosts kept, 0 destroyed, 1 not ours." in reap("--store", str(tmp_path / "out")).stdout
    assert KEY not in dry.stdout + dry.stderr + told.stdout + told.stderr


@pytest.mark.slow
def test_what_could_not_be_destroyed_has_an_exit_code(vast: Vast, reap: Run) -> None:
    box = vast.made(vast.offer(), {"label": str(HostLabel.new("studio", "5e77ab01", vast.now, 60))})
    vast.advance(3600)
    vast.fail("destroy", "not taken on", times=4)
    told = reap()
    assert told.returncode == 1
    assert f"Not destroyed, look at it yourself: instance {box.id}" in told.stdout
    assert len(vast.billable()) == 1
    assert reap("--at-most", "0").returncode == 0, "its time is over: that needs no judgement"
    assert vast.billable() == []


def test_records_that_cannot_be_read_have_an_exit_code(vast: Vast, reap: Run, tmp_path: Path) -> None:
    book = HostBook(LocalFolder(tmp_path / "out"))
    book.id()
    (tmp_path / "out/hosts/0123456789ab.json").write_text("{}")
    told = reap("--store", str(tmp_path / "out"))
    assert (told.returncode, "0123456789ab.json is no record of a host" in told.stdout.replace("\n", "")) == (
        1,
        True,
    )


@pytest.mark.slow
def test_an_account_that_cannot_be_read_has_an_exit_code(vast: Vast, reap: Run) -> None:
    wrong = reap(key="wrong-key")
    assert (wrong.returncode, "Nothing was looked at" in wrong.stderr) == (1, True)
    assert "Invalid user key" in wrong.stderr
    none = reap(key="")
    assert (none.returncode, "VAST_API_KEY" in none.stderr) == (2, True)


FLEET = """
provider = "vastai"
[rent]
name = "studio"
max_per_hour = 0.6
image = "comfy:1"
[[host]]
name = "rented"
[[host.engine]]
kind = "lighttts"
port = 8080
revision = "x"
"""


@pytest.mark.slow
def test_what_is_rented_is_listed_with_what_it_costs(vast: Vast, tmp_path: Path, reap: Run) -> None:
    (tmp_path / "fleet.toml").write_text(FLEET)
    options = ("--fleet", str(tmp_path / "fleet.toml"), "--store", str(tmp_path / "out"))
    assert "No host is rented." in reap(*options, command="hosts").stdout
    book = HostBook(LocalFolder(tmp_path / "out"))
    now = time.time()
    for fleet, state in (("studio", "booting"), ("other", "booting")):
        label = HostLabel.new(fleet, book.id(), now - 3600, 6 * 3600)
        box = vast.made(vast.offer(), {"label": str(label), "disk": 80})
        engines = [{"name": "lighttts", "kind": "lighttts", "port": 8080, "slots": 1}]
        price = {"gpu_per_hour": 0.4, "disk_gb_month": 0.0, "down_per_gb": 0.0, "up_per_gb": 0.0}
        facts = {
            "instance": box.id,
            "engines": engines,
            "price": price,
            "owner": "0123456789",
            "ready_at": now - 3600,
        }
        book.write(record(label, state=state, **facts))
    told = reap(*options, "--json", command="hosts")
    assert told.returncode == 0, told.stderr
    (host,) = json.loads(told.stdout.splitlines()[-1])["rented"]
    assert (host["host"].startswith("studio-"), host["state"], host["engines"]) == (
        True,
        "booting",
        ["lighttts"],
    )
    assert host["cost"] == pytest.approx(0.4, rel=0.02)
    assert (host["hours"], host["hours_left"]) == pytest.approx((1.0, 5.0), abs=0.02)
    shown = reap(*options, command="hosts").stdout
    assert "studio-" in shown
    assert "other-" not in shown
