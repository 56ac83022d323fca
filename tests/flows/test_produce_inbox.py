"""An inbox of scripts: whole ones are produced once each, a broken one stops no other, and two runs never take the same."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from callsheet.inbox import StoreInbox
from callsheet.store import LocalFolder
from callsheet.store_lease import StoreLease
from flows import produce_inbox as module
from flows.produce_inbox import Picked, ProduceInboxParameters, produce_inbox
from tests.conftest import write_csv, write_fleet

LINE = {"shot_id": "a", "text": "A line of the night is spoken.", "voice": "anna"}
BROKEN = {"shot_id": "a", "text": "Nobody says this.", "voice": "nobody"}
Drop = Callable[..., Path]


@pytest.fixture
def drop(script_folder: Path) -> Drop:
    """Puts a script into the inbox, beside its voices."""

    def put(name: str, *rows: dict[str, str]) -> Path:
        return write_csv(script_folder / name, rows)

    return put


@pytest.fixture
def parameters(
    script_folder: Path,
    tmp_path: Path,
    draft_host: str,
    prefect_api: str,
    monkeypatch: pytest.MonkeyPatch,
) -> ProduceInboxParameters:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.6)
    fleet = write_fleet(tmp_path / "fleet.toml", {"inbox-host": draft_host})
    return ProduceInboxParameters(inbox=str(script_folder), store=str(tmp_path / "out"), fleet=str(fleet))


async def run(parameters: ProduceInboxParameters) -> tuple[Any, list[Picked]]:
    state: Any = await produce_inbox(parameters, return_state=True)
    picked = await state.aresult(raise_on_failure=False)
    return state, picked


def outcomes(picked: Sequence[Picked]) -> dict[str, str]:
    return {one.script: one.outcome for one in picked}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


async def test_whole_scripts_are_produced_and_a_broken_and_a_growing_one_stop_no_other(
    drop: Drop, script_folder: Path, parameters: ProduceInboxParameters, tmp_path: Path
) -> None:
    drop("夜 one.csv", LINE)
    drop("broken.csv", BROKEN)
    growing = drop("growing.csv", LINE)
    written = asyncio.Event()

    async def copy() -> None:
        while not written.is_set():
            with growing.open("a", encoding="utf-8") as file:
                file.write(" ")
            await asyncio.sleep(0.1)

    copying = asyncio.create_task(copy())
    state, picked = await run(parameters)
    written.set()
    await copying
    assert state.is_failed()
    assert state.message.startswith("1 of 2 scripts are not done. broken.csv: ")
    assert 'found "nobody"' in state.message
    assert outcomes(picked) == {"夜 one.csv": "done", "broken.csv": "failed"}
    assert names(script_folder / "done") == ["夜 one.csv", "夜 one.json", "夜 one.txt"]
    assert names(script_folder / "failed") == ["broken.csv", "broken.txt"]
    assert 'found "nobody"' in (script_folder / "failed/broken.txt").read_text("utf-8")
    summary = json.loads((script_folder / "done/夜 one.json").read_text("utf-8"))
    assert (summary["batch"], summary["done"], summary["takes_made"]) == ("夜 one", 1, 2)
    assert "1 shots done" in (script_folder / "done/夜 one.txt").read_text("utf-8")
    assert (tmp_path / "out/batches/夜 one/report.html").is_file()
    assert growing.is_file(), "it is for the next run"
    assert (script_folder / "voices.csv").is_file()


async def test_scripts_stay_where_they_are_for_faults_that_are_not_theirs(
    drop: Drop, script_folder: Path, parameters: ProduceInboxParameters, tmp_path: Path
) -> None:
    drop("one.csv", LINE)
    nowhere = parameters.model_copy(update={"fleet": str(tmp_path / "nowhere.toml")})
    state = await produce_inbox(nowhere, return_state=True)
    assert state.is_failed()
    assert "nowhere.toml" in (state.message or "")
    fleet = tmp_path / "gone.toml"
    write_fleet(fleet, {"gone": "http://127.0.0.1:1"})
    state, picked = await run(parameters.model_copy(update={"fleet": str(fleet)}))
    assert state.is_failed()
    assert outcomes(picked) == {"one.csv": "left"}
    assert names(script_folder) == ["anna.wav", "one.csv", "voices.csv", "wei.wav"]


@pytest.mark.slow
async def test_a_name_as_long_as_a_disk_takes_is_produced_and_stops_no_other(
    drop: Drop, script_folder: Path, parameters: ProduceInboxParameters
) -> None:
    drop(f"{'a' * 230}.csv", LINE)
    drop("b.csv", LINE | {"text": "The other line."})
    state, picked = await run(parameters)
    assert state.is_completed(), state.message
    assert sorted(outcomes(picked).values()) == ["done", "done"]


async def test_two_runs_at_once_produce_each_script_once(
    drop: Drop, script_folder: Path, parameters: ProduceInboxParameters
) -> None:
    for name in ("one", "two", "three"):
        drop(f"{name}.csv", LINE | {"text": f"The line of number {name}."})
    (first, ours), (second, theirs) = await asyncio.gather(run(parameters), run(parameters))
    assert first.is_completed(), first.message
    assert second.is_completed(), second.message
    taken = Counter(one.script for one in [*ours, *theirs])
    assert taken == {"one.csv": 1, "two.csv": 1, "three.csv": 1}
    assert [name for name in names(script_folder / "done") if name.endswith(".csv")] == [
        "one.csv",
        "three.csv",
        "two.csv",
    ]
    third, nothing = await run(parameters)
    assert (third.is_completed(), nothing) == (True, [])


async def test_a_script_of_a_bucket_whose_run_was_killed_is_produced_by_the_next(
    drop: Drop,
    script_folder: Path,
    parameters: ProduceInboxParameters,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its lease is dead when nobody renewed it for a while; a run that looks at it meanwhile waits so long."""
    drop("night.csv", LINE)
    store = LocalFolder(tmp_path / "bucket")
    for path in script_folder.iterdir():
        store.put(f"inbox/{path.name}", path)
    inbox = StoreInbox(store)
    assert StoreLease(store, inbox.lease_path("night.csv")).try_take()
    monkeypatch.setattr("callsheet.store_lease.LEASE_SECONDS", 3.0)
    monkeypatch.setattr(module, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.5)

    async def opened(_: ProduceInboxParameters) -> StoreInbox:
        return inbox

    monkeypatch.setattr(module, "open_inbox", opened)
    state, picked = await run(parameters)
    assert state.is_completed(), state.message
    assert outcomes(picked) == {"night.csv": "done"}
    assert sorted(file.path for file in store.list("inbox/done/")) == [
        "inbox/done/night.csv",
        "inbox/done/night.json",
        "inbox/done/night.txt",
    ]
    assert store.size("inbox/night.csv") is None


async def test_the_inbox_is_in_the_store_where_none_is_named(tmp_path: Path) -> None:
    of_store = await module.open_inbox(ProduceInboxParameters(store=str(tmp_path / "out")))
    assert str(of_store) == str(tmp_path / "out/inbox")
    named = await module.open_inbox(ProduceInboxParameters(inbox=str(tmp_path / "in")))
    assert str(named) == str(tmp_path / "in")


async def test_an_inbox_of_a_bucket_is_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "b")
    of_store = await module.open_inbox(ProduceInboxParameters(store="r2://media/callsheet"))
    assert isinstance(of_store, StoreInbox)
    assert of_store.prefix == "inbox/"
    named = await module.open_inbox(ProduceInboxParameters(inbox="r2://media/in", store="out"))
    assert isinstance(named, StoreInbox)
    assert (named.prefix, str(named.store)) == ("", "r2://media/in")
