"""A whole store looked over and repaired, in a folder and in a bucket: nothing that is whole is ever lost."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from callsheet.errors import StoreFault
from callsheet.manifest import batch_path
from callsheet.store import LocalFolder, Store
from callsheet.store_check import StoreCheck, check_store
from callsheet.store_lease import StoreLease, lease_path
from callsheet.store_repair import repair
from callsheet.takes import sidecar_path
from tests.callsheet.stored import (
    DAY,
    content_of,
    key_of,
    killed_at_every_call,
    make_sidecar,
    new_stores,
    paths,
    put_batch,
    put_journal,
    put_media,
    put_plan,
    put_sidecar,
    put_take,
)

NOW = time.time()
#: When all that a test writes is older than the grace hours.
LATER = NOW + 3 * DAY


@pytest.fixture(params=["folder", "bucket"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    return new_stores(
        request.param, lambda: request.getfixturevalue("s3"), tmp_path, f"check {request.node.name}"
    )


@pytest.fixture
def store(new_store: Callable[[], Store]) -> Store:
    return new_store()


def found(check: StoreCheck) -> dict[str, list[str]]:
    """Paths by kind."""
    kinds: dict[str, list[str]] = {}
    for finding in check.findings:
        kinds.setdefault(finding.kind, []).append(finding.path)
    return kinds


def repaired(store: Store, **how: object) -> StoreCheck:
    """Checks and repairs when all is old enough."""
    return repair(store, check_store(store, now=LATER, **how), now=LATER)  # type: ignore[arg-type]


def test_a_store_that_is_well_has_no_findings(store: Store) -> None:
    takes = {
        "cg 01": put_take(store, "雨"),
        "b": put_take(store, "b", attempts=2, kind="clip", suffix=".mp4"),
    }
    put_batch(store, "茶馆", takes, finished=NOW)
    store.put("models/unet/x.gguf", b"model")
    store.put("hosts/book", b"12345678")
    store.put(f"inputs/{key_of('i')}.wav", b"input")
    store.put("batches/茶馆/shards/1f0c9a2e/plan-0.json", b"{}")
    before = paths(store)
    check = repaired(store, deep=True)
    assert check.findings == ()
    assert paths(store) == before
    (batch,) = check.batches
    size = sum(attempt.bytes for take in takes.values() for attempt in take.attempts)
    sidecars = sum(len(store.get(sidecar_path(take.kind, take.key))) for take in takes.values())
    delivered = sum(take.take.bytes for take in takes.values())
    assert (batch.batch, batch.takes, batch.deliverables, batch.at_work) == ("茶馆", 2, 2, False)
    assert (batch.take_bytes, batch.deliverable_bytes) == (size + sidecars, delivered)
    assert check.totals["takes"] == size + sidecars
    assert check.totals["models"] == 5
    assert check.totals["all"] == sum(file.bytes for file in store.list(""))
    assert (check.totals["unreferenced"], check.totals["foreign"]) == (0, 0)


def test_takes_that_are_not_whole_are_forgotten_and_what_is_whole_stays(store: Store) -> None:
    whole = put_take(store, "whole", attempts=2)
    gone, cut = put_take(store, "gone"), put_take(store, "cut", attempts=2)
    torn, other = put_take(store, "torn"), put_take(store, "other")
    put_batch(store, "demo", {"a": whole, "b": gone, "c": cut, "d": torn, "e": other}, finished=NOW)
    store.delete("batches/demo/journal-1f0c9a2e.jsonl")
    store.delete(gone.take.file)
    store.put(cut.take.file, b"cut")
    store.put(sidecar_path("speech", torn.key), b'{"key": ')
    store.put(sidecar_path("speech", other.key), whole.model_dump_json().encode())
    before = paths(store)
    check = check_store(store, now=LATER)
    assert paths(store) == before, "checking changes nothing"
    assert found(check) == {
        "missing": [sidecar_path("speech", gone.key)],
        "truncated": [sidecar_path("speech", cut.key)],
        "damaged": sorted([sidecar_path("speech", torn.key), sidecar_path("speech", other.key)]),
    }
    assert f"found 3 bytes at {cut.take.file}, expected 60" in check.of("truncated")[0].what
    for finding in check.findings:
        assert finding.deletes[0] == finding.path, "the sidecar goes first"
    done = repair(store, check, now=LATER)
    assert {finding.state for finding in done.findings} == {"repaired"}
    assert done.faults == []
    assert paths(store, "takes/") == {
        whole.attempts[0].file,
        whole.attempts[1].file,
        sidecar_path("speech", whole.key),
    }
    assert check_store(store, now=LATER).findings == ()


@pytest.mark.parametrize("content", [b"[]", b'{"chosen": 7}', b"../../etc", b"\xff\xfe"])
def test_a_sidecar_of_any_content_is_a_finding_and_no_crash(store: Store, content: bytes) -> None:
    put_take(store, "a")
    path = sidecar_path("speech", key_of("a"))
    if b"chosen" in content:
        content = make_sidecar("a").model_copy(update={"chosen": 7}).model_dump_json().encode()
    if b"etc" in content:
        sidecar = make_sidecar("a")
        sidecar.attempts[0].file = "../../etc/passwd"
        content = sidecar.model_dump_json().encode()
    store.put(path, content)
    assert found(repaired(store)) == {"damaged": [path]}
    assert paths(store) == set()


def test_a_journal_gives_a_sidecar_back_that_was_lost(store: Store) -> None:
    lost, torn = put_take(store, "丢失", attempts=2), put_take(store, "torn")
    put_batch(store, "茶馆", {"a": lost, "b": torn}, finished=NOW)
    store.delete(sidecar_path("speech", lost.key))
    store.put(sidecar_path("speech", torn.key), b"")
    check = repaired(store)
    assert found(check) == {
        "damaged": [sidecar_path("speech", torn.key)],
        "uncommitted": [lost.attempts[0].file],
    }
    assert check.faults == []
    for take in (lost, torn):
        content = store.get(sidecar_path("speech", take.key))
        assert json.loads(content) == take.model_dump(mode="json")
    assert store.get(lost.take.file) == content_of("丢失", 1)
    assert check_store(store, now=LATER, deep=True).findings == ()


def test_a_journal_tells_of_nothing_whose_media_is_not_whole(store: Store) -> None:
    lost = put_media(store, "lost")
    put_plan(store, "demo", [], NOW)
    put_journal(store, "demo", [lost])
    store.put(lost.take.file, b"cut")
    assert found(repaired(store)) == {"uncommitted": [lost.take.file]}
    assert paths(store, "takes/") == set()


def test_where_journals_disagree_the_content_decides(store: Store) -> None:
    true = put_media(store, "true")
    false = true.model_copy(update={"attempts": [true.attempts[0].model_copy(update={"sha256": "0" * 64})]})
    put_plan(store, "demo", [true], NOW)
    put_journal(store, "demo", [false], run="00000000")
    put_journal(store, "demo", [true], run="11111111")
    repaired(store)
    assert store.get(sidecar_path("speech", true.key)) == true.model_dump_json(indent=1).encode()


def test_media_that_nobody_committed_goes_when_it_is_old(store: Store) -> None:
    young, kept = put_media(store, "young", attempts=2), put_take(store, "kept")
    put_plan(store, "demo", [kept], NOW)
    check = repair(store, check_store(store, now=NOW), now=NOW)
    assert [(finding.kind, finding.state, finding.bytes) for finding in check.findings] == [
        ("uncommitted", "young", 160)
    ]
    assert check.faults == []
    assert young.take.file in paths(store)
    assert len(check_store(store, now=LATER).faults) == 1
    assert check_store(store, now=LATER, grace_hours=100).faults == []
    repaired(store)
    assert paths(store, "takes/") == {kept.take.file, sidecar_path("speech", kept.key)}


def test_attempts_of_shards_are_media_and_what_a_whole_take_does_not_name_stays(store: Store) -> None:
    take = put_take(store, "a")
    dead = f"takes/speech/{take.key}.0-1f0c9a2e.wav"
    lone = f"takes/image/{key_of('b')}.0-1f0c9a2e.png"
    store.put(dead, b"of a run that lost its lease")
    store.put(lone, b"of none")
    put_plan(store, "demo", [take], NOW)
    assert found(repaired(store)) == {"uncommitted": [lone]}
    assert store.size(dead) is not None


def test_age_is_that_of_the_file(tmp_path: Path) -> None:
    store = LocalFolder(tmp_path)
    old, young = put_media(store, "old"), put_media(store, "young")
    os.utime(tmp_path / old.take.file, (NOW - 2 * DAY, NOW - 2 * DAY))
    repair(store, check_store(store, now=NOW), now=NOW)
    assert paths(store) == {young.take.file}


def test_deep_finds_media_of_another_content(store: Store) -> None:
    good, bad = put_take(store, "good"), put_take(store, "bad")
    put_batch(store, "demo", {"a": good, "b": bad}, finished=NOW)
    store.put(bad.take.file, content_of("BAD"))
    assert found(check_store(store, now=LATER)) == {}
    check = repaired(store, deep=True)
    assert found(check) == {"foreign content": [sidecar_path("speech", bad.key)]}
    assert paths(store, "takes/") == {good.take.file, sidecar_path("speech", good.key)}
    assert store.get(good.take.file) == content_of("good"), "what was read was not taken away"
    assert check_store(store, now=LATER, deep=True).findings == ()


def test_what_cannot_be_read_is_told_and_left(store: Store) -> None:
    take = put_take(store, "a")
    put_plan(store, "demo", [take], NOW)

    class Rotten:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def fetch(self, path: str, folder: Path) -> Path:
            raise StoreFault(f"{path} is not what was written")

    rotten: Store = Rotten()  # type: ignore[assignment]
    check = repair(rotten, check_store(rotten, now=LATER, deep=True), now=LATER)
    assert [(fault.kind, fault.path) for fault in check.faults] == [("unreadable", take.take.file)]
    assert len(paths(store, "takes/")) == 2


def test_what_a_cut_publishing_left_goes_and_what_is_missing_is_told(store: Store) -> None:
    take = put_take(store, "a")
    put_batch(store, "茶馆", {"a": take, "b": take}, finished=NOW)
    left = batch_path("茶馆", "雨夜茶馆/old 名.mp4")
    store.put(left, b"left")
    store.put(batch_path("never", "雨夜茶馆/a.mp4"), b"never published")
    store.delete(batch_path("茶馆", "雨夜茶馆/b.wav"))
    before = paths(store)
    young = repair(store, check_store(store, now=NOW), now=NOW)
    assert paths(store) == before
    assert [fault.kind for fault in young.faults] == ["published but missing"]
    check = repaired(store)
    assert found(check) == {
        "leftover": [batch_path("never", "雨夜茶馆/a.mp4"), left],
        "published but missing": [batch_path("茶馆", "雨夜茶馆/b.wav")],
    }
    assert [fault.path for fault in check.faults] == [batch_path("茶馆", "雨夜茶馆/b.wav")]
    assert "run the batch again" in check.faults[0].what
    held = {lease_path("茶馆"), lease_path("never")} if store.is_shared else set()
    assert paths(store) == before - {left, batch_path("never", "雨夜茶馆/a.mp4")} | held
    for path in held:
        assert json.loads(store.get(path))["held"] is False


def test_a_manifest_that_does_not_parse_costs_no_file(store: Store) -> None:
    put_batch(store, "demo", {"a": put_take(store, "a")}, finished=NOW)
    put_take(store, "nobody's")
    store.put("batches/demo/manifest.json", b'{"batch": "de')
    before = paths(store)
    check = repaired(store)
    assert found(check) == {"unreadable": ["batches/demo/manifest.json"]}
    assert len(check.faults) == 1
    assert paths(store) == before


def test_takes_that_no_batch_needs_are_told_and_kept(store: Store) -> None:
    take, lone = put_take(store, "a"), put_take(store, "lone")
    put_batch(store, "demo", {"a": take}, finished=NOW)
    check = repaired(store)
    assert found(check) == {"unreferenced": [sidecar_path("speech", lone.key)]}
    assert check.totals["unreferenced"] == check.findings[0].bytes > lone.take.bytes
    assert check.faults == [], "it is prune's to delete"
    assert lone.take.file in paths(store)


def test_what_is_not_callsheets_is_told_and_kept(store: Store) -> None:
    foreign = {
        "readme.txt", "takes/speech/notes.txt", f"takes/dance/{key_of('a')}.json", "batches/lone.txt", "latest/a/b.json",
        f"takes/speech/{'A' * 64}.0.wav", "我的/文件.mp4",
    }  # fmt: skip
    for path in foreign:
        store.put(path, b"mine")
    check = repaired(store)
    assert found(check) == {"foreign": sorted(foreign)}
    assert (check.totals["foreign"], check.faults) == (4 * len(foreign), [])
    assert paths(store) == foreign


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_a_batch_that_a_run_is_at_work_on_is_left_alone(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    store = new_stores(kind, lambda: request.getfixturevalue("s3"), tmp_path, f"live {kind}")()
    cut, fresh, lone = put_take(store, "cut"), put_media(store, "fresh"), put_take(store, "lone")
    put_batch(store, "live", {"a": cut}, finished=NOW)
    put_plan(store, "live", [cut, fresh], NOW)
    store.put("batches/live/雨夜茶馆/new.wav", b"just published")
    for broken in (cut, lone):
        store.put(broken.take.file, b"cut")
    store.delete("batches/live/雨夜茶馆/a.wav")
    lease = StoreLease(store, lease_path("live"))
    with store.only_run("live"):
        assert not store.is_shared or lease.try_take()
        check = repair(store, check_store(store, now=time.time(), grace_hours=0), now=time.time())
        assert check.batches[0].at_work
        states = {finding.path: finding.state for finding in check.findings}
        assert states == {
            sidecar_path("speech", cut.key): "left",
            fresh.take.file: "left",
            sidecar_path("speech", lone.key): "repaired",
        }
        assert {cut.take.file, fresh.take.file, "batches/live/雨夜茶馆/new.wav"} <= paths(store)
    lease.give_back()
    check = repair(store, check_store(store, now=time.time() + 2, grace_hours=0), now=time.time() + 2)
    assert [fault.kind for fault in check.faults] == ["published but missing"]
    assert "batches/live/雨夜茶馆/new.wav" not in paths(store)
    assert paths(store, "takes/") == set()


def test_a_run_that_begins_between_check_and_repair_is_left_alone(store: Store) -> None:
    cut = put_take(store, "cut")
    put_batch(store, "demo", {"a": cut}, finished=NOW)
    store.put(cut.take.file, b"cut")
    store.put("batches/demo/left.wav", b"left")
    check = check_store(store, now=time.time() + 2, grace_hours=0)
    lease = StoreLease(store, lease_path("demo"))
    with store.only_run("demo"):
        assert not store.is_shared or lease.try_take()
        done = repair(store, check, now=time.time())
    assert {finding.state for finding in done.findings} == {"left"}
    assert {cut.take.file, "batches/demo/left.wav"} <= paths(store)


def test_a_take_that_was_made_again_meanwhile_stays(store: Store) -> None:
    cut, lone = put_take(store, "cut"), put_media(store, "lone")
    store.put(cut.take.file, b"cut")
    check = check_store(store, now=LATER)
    assert len(check.faults) == 2
    store.put(cut.take.file, content_of("cut"))
    put_sidecar(store, lone)
    done = repair(store, check, now=LATER)
    assert {finding.why for finding in done.findings} == {"somebody else was faster"}
    assert found(check_store(store, now=LATER)).keys() == {"unreferenced"}
    assert len(paths(store)) == 4


@pytest.mark.parametrize("kind", ["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def test_a_repair_that_is_killed_anywhere_loses_nothing_and_the_next_completes_it(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    new_store = new_stores(kind, lambda: request.getfixturevalue("s3"), tmp_path, "check killed")

    def make() -> Store:
        store = new_store()
        names = ("fine", "gone", "cut", "torn", "lost")
        takes = {name: put_take(store, name) for name in names}
        put_batch(store, "demo", takes, finished=NOW)
        put_journal(store, "demo", [takes["lost"]])
        put_media(store, "lone", attempts=2)
        put_take(store, "nobody's")
        store.delete(takes["gone"].take.file)
        store.put(takes["cut"].take.file, b"cut")
        store.put(sidecar_path("speech", takes["torn"].key), b"{")
        store.delete(sidecar_path("speech", takes["lost"].key))
        store.put("batches/demo/left.wav", b"left")
        store.put("batches/demo/雨夜茶馆/left.wav", b"left")
        return store

    def whole(store: Store, *names: str) -> bool:
        return all(
            store.size(make_sidecar(name).take.file) == make_sidecar(name).take.bytes
            and store.size(sidecar_path("speech", key_of(name))) is not None
            for name in names
        )

    def check(store: Store, lives: int) -> None:
        assert whole(store, "fine", "nobody's"), lives
        assert store.get(make_sidecar("lost").take.file) == content_of("lost")
        assert repaired(store).faults == []
        assert found(check_store(store, now=LATER)).keys() == {"unreferenced"}
        assert whole(store, "fine", "nobody's", "lost")
        assert len(paths(store, "takes/")) == 6
        assert "batches/demo/left.wav" not in paths(store)

    calls = killed_at_every_call(make, repaired, check)
    assert calls >= 9, "sidecars, media, a sidecar restored, leftovers"


@pytest.mark.slow
def test_the_command_line_says_what_is_wrong_and_repairs_it(tmp_path: Path) -> None:
    store = LocalFolder(tmp_path / "store")
    cut = put_take(store, "cut")
    put_batch(store, "茶馆", {"a": cut}, finished=NOW)

    def check(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).parent / "callsheet", "store", "check", *arguments]
        command += ["--store", str(store)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    well = check()
    assert (well.returncode, "All is well." in well.stdout, "茶馆" in well.stdout) == (0, True, True), well
    store.put(cut.take.file, b"cut")
    wrong = check("--json")
    told = json.loads(wrong.stdout.splitlines()[-1])
    assert (wrong.returncode, told["well"]) == (1, False)
    assert [(finding["kind"], finding["state"]) for finding in told["findings"]] == [("truncated", "found")]
    shown = check()
    assert (shown.returncode, "found 3 bytes" in shown.stdout) == (1, True)
    assert cut.take.file in paths(store)
    assert (check("--repair", "--deep").returncode, check().returncode) == (0, 0)
    assert paths(store, "takes/") == set()
    bad = check("--grace-hours", "-1")
    assert (bad.returncode, "--grace-hours" in bad.stderr) == (2, True)
