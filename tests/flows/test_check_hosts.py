"""The check of a fleet's hosts: what is well, what is not and why, as an artifact and as an exit code."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from callsheet.errors import BadInput
from callsheet.health import Health
from flows.check_hosts import CheckHostsParameters, check_hosts
from tests.conftest import ROOT, write_fleet, write_tone
from tests.fakes.speech_server import SpeechServer

pytestmark = pytest.mark.usefixtures("prefect_api")


async def checked(fleet: Path, folder: Path, **settings: Any) -> tuple[Any, Any]:
    parameters = CheckHostsParameters(fleet=str(fleet), voices=folder / "voices.csv", **settings)
    state: Any = await check_hosts(parameters, return_state=True)
    return state, await state.aresult(raise_on_failure=False)


async def test_a_host_that_is_well_says_so_with_models_and_speed(
    tmp_path: Path, script_folder: Path, draft_host: str, prefect_api: str
) -> None:
    fleet = write_fleet(tmp_path / "fleet.toml", {"here": draft_host})
    state, found = await checked(fleet, script_folder, full=True)
    assert state.is_completed()
    health = {one.engine: one for one in found}
    assert set(health) == {"here/lighttts", "here/cosyvoice", "here/comfyui"}
    assert health["here/lighttts"].models == ("draft",)
    assert 0 < health["here/cosyvoice"].real_time_factor < 5
    assert health["here/comfyui"].latency is None
    artifacts = httpx.post(
        f"{prefect_api}/api/artifacts/filter", json={"artifacts": {"key": {"any_": ["hosts"]}}}
    ).json()
    assert any("here/lighttts" in artifact["data"] for artifact in artifacts)


async def test_each_engine_that_is_not_well_is_named_with_the_reason(
    tmp_path: Path, script_folder: Path
) -> None:
    with SpeechServer(pitch=210) as deaf:
        deaf.choose = lambda request: "silence"
        fleet = write_fleet(tmp_path / "fleet.toml", {"mute": deaf.url, "gone": "http://127.0.0.1:9"})
        state, found = await checked(fleet, script_folder, full=True)
        free, _ = await checked(fleet, script_folder)
        asked = len(deaf.requests)
    assert state.is_failed()
    reasons = {one.engine: one.reason for one in found if not one.ok}
    assert "rms_dbfs is" in reasons["mute/lighttts"]
    assert "no connection" in reasons["gone/lighttts"]
    assert "gone/cosyvoice: " in state.message
    assert asked == 2, "without --full no engine works"
    assert "mute/lighttts" not in free.message, "what only looks well is found by listening alone"


async def test_an_unknown_voice_is_told_before_anything_is_asked(tmp_path: Path, script_folder: Path) -> None:
    with SpeechServer() as server:
        fleet = write_fleet(tmp_path / "fleet.toml", {"here": server.url})
        _, found = await checked(fleet, script_folder, full=True, voice="nobody")
        assert server.requests == []
    assert isinstance(found, BadInput)
    assert 'found "nobody"; expected one of anna, wei' in str(found)


async def test_a_recording_that_breaks_a_server_is_not_sent_to_it(
    tmp_path: Path, script_folder: Path
) -> None:
    write_tone(script_folder / "anna.wav", 40.0)
    with SpeechServer() as server:
        fleet = write_fleet(tmp_path / "fleet.toml", {"here": server.url})
        _, found = await checked(fleet, script_folder, full=True)
        assert server.requests == []
    assert "of 40.0 s; expected a recording of 1 to 30 s" in str(found)


def test_a_row_has_a_dash_where_nothing_was_measured() -> None:
    row = Health(engine="a/b", kind="comfyui", ok=True).row()
    assert (row["models"], row["seconds"], row["well"]) == ("-", "-", "yes")


@pytest.mark.slow
def test_the_command_line_has_the_exit_code_of_the_fleet(
    tmp_path: Path, script_folder: Path, draft_host: str, prefect_api: str
) -> None:
    command = [
        str(Path(sys.executable).with_name("callsheet")),
        "hosts",
        "--full",
        "--voices",
        str(script_folder / "voices.csv"),
    ]
    env = {**os.environ, "PREFECT_API_URL": f"{prefect_api}/api"}
    well = write_fleet(tmp_path / "well.toml", {"here": draft_host})
    ill = write_fleet(tmp_path / "ill.toml", {"here": draft_host, "gone": "http://127.0.0.1:9"})
    runs = [
        subprocess.run(
            [*command, "--fleet", str(fleet), "--json"], cwd=ROOT, env=env, capture_output=True, text=True
        )
        for fleet in (well, ill)
    ]
    assert [run.returncode for run in runs] == [0, 1], runs[0].stderr
    assert '"engine": "gone/comfyui"' in runs[1].stdout.replace('":"', '": "')
