"""Old batches go, and takes that no other batch needs; in a folder and in a bucket, killed anywhere."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from callsheet.errors import BadInput
from callsheet.journal import journal_path
from callsheet.manifest import latest_path
from callsheet.store import LocalFolder, Store
from callsheet.store_check import check_store
from callsheet.store_lease import StoreLease, lease_path
from callsheet.store_prune import Pruning, Receipt, find_prunable, parse_age, prune
from callsheet.takes import Sidecar, sidecar_path
from tests.callsheet.stored import (
    DAY,
    key_of,
    killed_at_every_call,
    make_sidecar,
    new_stores,
    paths,
    put_batch,
    put_journal,
    put_media,
    put_plan,
    put_take,
)

NOW = time.time()
#: When all that a test writes is 100 days old.
LATER = NOW + 100 * DAY
OLD, NEW = NOW, LATER - 10 * DAY


def pruned(store: Store, **how: Any) -> tuple[Pruning, Receipt]:
    """Deletes what is older than 90 days."""
    pruning = find_prunable(store, now=LATER, **({"older_than": 90 * DAY} | how))
    return pruning, prune(store, pruning, now=LATER)[1]


def names(pruning: Pruning) -> list[str]:
    return [batch.name for batch in pruning.batches]


def is_whole(store: Store, take: Sidecar) -> bool:
    there = store.sizes([take.take.file, sidecar_path(take.kind, take.key)])
    return len(there) == 2 and there[take.take.file] == take.take.bytes


@pytest.mark.parametrize(("text", "hours"), [("12h", 12), ("30d", 720), ("4w", 672), (" 1d ", 24)])
def test_ages_are_hours_days_and_weeks(text: str, hours: float) -> None:
    assert parse_age(text) == hours * 3600


@pytest.mark.parametrize(
    "text", ["", "90", "d", "0d", "-1d", "1.5d", "3 months", "9" * 400 + "d", "９d", "1D"]
)
def test_another_age_is_refused_with_what_is_right(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_age(text)
    assert f'found "{text}"; expected a number of hours, days or weeks, such as 12h' in str(caught.value)


def test_a_prune_without_a_measure_is_refused(store: Store) -> None:
    with pytest.raises(BadInput, match="neither --older-than nor --keep-batches"):
        find_prunable(store, now=NOW)


def test_an_old_batch_goes_and_a_take_that_another_needs_stays(store: Store) -> None:
    own, shared, kept = put_take(store, "旧", attempts=2), put_take(store, "shared"), put_take(store, "kept")
    put_batch(store, "雨夜茶馆", {"a": own, "b": shared}, finished=OLD)
    put_batch(store, "新", {"a": shared, "b": kept}, finished=NEW)
    store.put("batches/雨夜茶馆/shards/1f0c9a2e/run.json", b"{}")
    for path in ("models/unet/x.gguf", "hosts/book", f"inputs/{key_of('i')}.wav", "我的.txt"):
        store.put(path, b"not to be touched")
    before = paths(store)
    pruning = find_prunable(store, now=LATER, older_than=90 * DAY)
    assert (names(pruning), pruning.kept, [take.name for take in pruning.takes]) == (
        ["雨夜茶馆"],
        ["新"],
        [f"takes/speech/{own.key}"],
    )
    assert pruning.takes[0].files[0] == sidecar_path("speech", own.key), "the sidecar goes first"
    assert paths(store) == before, "nothing was written, not even a receipt"
    path, receipt = prune(store, pruning, now=LATER)
    gone = {path for path in before if path.startswith(("batches/雨夜茶馆/", "latest/雨夜茶馆"))} | {
        sidecar_path("speech", own.key),
        *(attempt.file for attempt in own.attempts),
    }
    assert latest_path("雨夜茶馆") in gone
    assert paths(store) == before - gone | {path}
    assert all(is_whole(store, take) for take in (shared, kept))
    assert (receipt.state, receipt.left, receipt.deleted) == ("done", {}, pruning.bytes)
    told = json.loads(store.get(path))
    assert path.startswith("receipts/prune-20")
    assert (told["state"], told["bytes"]) == ("done", pruning.bytes)
    assert {file for batch in told["pruning"]["batches"] for file in batch["files"]} <= gone
    assert told["pruning"]["batches"][0]["why"].startswith("the last run on it was on 20")
    assert find_prunable(store, now=LATER, older_than=90 * DAY).is_empty
    assert check_store(store, now=LATER).faults == []


def test_the_newest_batches_stay_however_old(store: Store) -> None:
    for n in range(4):
        take = put_take(store, f"take {n}")
        put_batch(store, f"b{n}", {"a": take}, finished=OLD - n * DAY, pointer=False)
    assert names(find_prunable(store, now=LATER, older_than=90 * DAY)) == ["b0", "b1", "b2", "b3"]
    assert names(find_prunable(store, now=LATER, older_than=90 * DAY, keep_batches=3)) == ["b3"]
    assert names(find_prunable(store, now=LATER, older_than=102.5 * DAY, keep_batches=1)) == ["b3"]
    assert names(find_prunable(store, now=LATER, keep_batches=2)) == ["b2", "b3"]
    assert names(find_prunable(store, now=LATER, keep_batches=9)) == []
    pruning, _ = pruned(store, older_than=None, keep_batches=2)
    assert len(pruning.takes) == 2
    assert {path.split("/")[1] for path in paths(store, "batches/")} == {"b0", "b1"}


def test_without_an_age_takes_of_the_last_day_stay(store: Store) -> None:
    lone = put_media(store, "lone")
    assert find_prunable(store, now=time.time(), keep_batches=0).is_empty
    assert [take.files for take in find_prunable(store, now=NOW + 2 * DAY, keep_batches=0).takes] == [
        [lone.take.file]
    ]


def test_ages_of_takes_and_of_batches_without_a_manifest_are_those_of_files(tmp_path: Path) -> None:
    store = LocalFolder(tmp_path)
    old, young = put_take(store, "old"), put_take(store, "young")
    put_media(store, "lone")
    put_take(store, "half")
    for batch in ("old", "young"):
        store.put(f"batches/{batch}/雨/a.mp4", b"never published")
        store.put(f"batches/{batch}/report.html", b"looked at today")
    past = NOW - 100 * DAY
    for path in (
        old.take.file,
        sidecar_path("speech", old.key),
        make_sidecar("half").take.file,
        "batches/old/雨/a.mp4",
    ):
        os.utime(tmp_path / path, (past, past))
    pruning = find_prunable(store, now=time.time(), older_than=90 * DAY)
    assert names(pruning) == ["old"]
    assert [take.name for take in pruning.takes] == [f"takes/speech/{old.key}"]
    prune(store, pruning, now=time.time())
    assert is_whole(store, young)
    assert store.size(make_sidecar("half").take.file) is not None


def test_a_batch_on_which_a_run_began_since_is_not_old(store: Store) -> None:
    take = put_take(store, "a")
    put_batch(store, "demo", {"a": take}, finished=OLD)
    put_plan(store, "demo", [take], NEW)
    assert find_prunable(store, now=LATER, older_than=90 * DAY).is_empty


def test_what_is_needed_is_read_from_plan_journals_and_manifest(store: Store) -> None:
    takes = {name: put_take(store, name) for name in ("planned", "journalled", "published")}
    waiting = put_media(store, "planned and not committed yet")
    put_batch(store, "demo", {"a": takes["published"]}, finished=NEW)
    put_plan(store, "demo", [takes["planned"], waiting], NEW)
    put_journal(store, "demo", [takes["journalled"]], run="22222222")
    store.delete(journal_path("demo", "1f0c9a2e"))
    assert find_prunable(store, now=LATER, older_than=90 * DAY).is_empty


def test_no_take_goes_where_a_batch_does_not_tell_what_it_needs(store: Store) -> None:
    take = put_take(store, "a")
    put_batch(store, "old", {"a": take}, finished=OLD)
    put_batch(store, "new", {"a": take}, finished=NEW)
    store.put("batches/new/manifest.json", b'{"batch": "ne')
    store.delete(journal_path("new", "1f0c9a2e"))
    pruning, receipt = pruned(store)
    assert (names(pruning), pruning.takes) == (["old"], [])
    assert "batches/new/manifest.json does not parse" in pruning.held_back
    assert receipt.state == "done"
    assert is_whole(store, take)


def test_a_batch_that_a_run_is_at_work_on_stays(store: Store) -> None:
    take = put_take(store, "a")
    put_batch(store, "live", {"a": take}, finished=NOW - 100 * DAY)
    put_plan(store, "live", [take], NOW - 100 * DAY)
    lease = StoreLease(store, lease_path("live"))
    before = paths(store)
    with store.only_run("live"):
        assert not store.is_shared or lease.try_take()
        pruning = find_prunable(store, now=time.time(), older_than=90 * DAY)
    assert (names(pruning), pruning.at_work, pruning.takes) == ([], ["live"], [])
    assert before <= paths(store)
    lease.give_back()
    assert names(find_prunable(store, now=time.time(), older_than=90 * DAY)) == ["live"]


def test_a_run_that_begins_between_look_and_deletion_keeps_its_batch_and_its_takes(store: Store) -> None:
    takes = [put_take(store, name) for name in ("one", "two", "three")]
    put_batch(store, "held", {"a": takes[0]}, finished=OLD)
    put_batch(store, "done", {"a": takes[1]}, finished=OLD)
    pruning = find_prunable(store, now=LATER, older_than=90 * DAY)
    assert len(pruning.batches) == 2
    assert len(pruning.takes) == 3
    lease = StoreLease(store, lease_path("held"))
    put_plan(store, "done", [takes[1]], NEW)  # a run began on it and is over
    put_plan(store, "fresh", [takes[2]], NEW)  # and another batch counts on what nobody needed
    with store.only_run("held"):
        assert not store.is_shared or lease.try_take()
        _, receipt = prune(store, pruning, now=time.time())
    assert receipt.left["held"] == "a run began on it"
    assert receipt.left["done"] == "it was run meanwhile"
    assert receipt.left[f"takes/speech/{takes[2].key}"] == "batch fresh needs it"
    assert receipt.deleted == 0
    assert all(is_whole(store, take) for take in takes)
    assert store.size("batches/held/manifest.json") is not None


def test_a_pointer_that_names_another_batch_by_now_stays(store: Store) -> None:
    take = put_take(store, "a")
    put_batch(store, "old", {"a": take}, finished=OLD)
    put_batch(store, "new", {"a": take}, finished=NEW)
    pruning = find_prunable(store, now=LATER, older_than=90 * DAY)
    assert pruning.pointers == {"old": ["latest/old.json"]}
    store.copy(latest_path("new"), latest_path("old"))
    prune(store, pruning, now=LATER)
    assert json.loads(store.get(latest_path("old")))["batch"] == "new"


@pytest.mark.parametrize("kind", ["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def test_a_prune_that_is_killed_anywhere_loses_nothing_and_the_next_completes_it(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    new_store = new_stores(kind, lambda: request.getfixturevalue("s3"), tmp_path, "prune killed")
    own, shared, kept = (make_sidecar(name) for name in ("own", "shared", "kept"))

    def make() -> Store:
        store = new_store()
        for name in ("own", "shared", "kept"):
            put_take(store, name)
        put_media(store, "lone")
        put_batch(store, "旧", {"a": own, "b": shared}, finished=OLD)
        put_batch(store, "new", {"a": shared, "b": kept}, finished=NEW)
        return store

    def check(store: Store, lives: int) -> None:
        assert is_whole(store, shared), lives
        assert is_whole(store, kept), lives
        assert store.size(own.take.file) or not store.size(sidecar_path("speech", own.key))
        manifest, pointer = store.size("batches/旧/manifest.json"), store.size(latest_path("旧"))
        assert manifest or not pointer, "a pointer never names a batch that is gone"
        delivered = store.sizes(["batches/旧/雨夜茶馆/a.wav", "batches/旧/雨夜茶馆/b.wav"])
        assert not manifest or len(delivered) == 2, "a manifest never names what is gone"
        written = [json.loads(store.get(path)) for path in paths(store, "receipts/")]
        assert lives == 0 or written, "written down before anything goes"
        pruned(store)
        assert {path.split("/")[1] for path in paths(store, "batches/")} == {"new"}
        assert paths(store, "latest/") == {latest_path("new")}
        assert len(paths(store, "takes/")) == 4
        assert all(is_whole(store, take) for take in (shared, kept))
        assert len(check_store(store, now=LATER).findings) == 0
        assert find_prunable(store, now=LATER, older_than=90 * DAY).is_empty

    calls = killed_at_every_call(make, pruned, check)
    assert calls >= 14, "receipts, a pointer, eight files of the batch, a lease, three of takes"


@pytest.mark.slow
def test_the_command_line_says_what_would_go_and_deletes_it(tmp_path: Path) -> None:
    store = LocalFolder(tmp_path / "store")
    take = put_take(store, "a")
    put_batch(store, "旧", {"a": take}, finished=NOW - 100 * DAY)
    for path in paths(store, "takes/"):
        os.utime(tmp_path / "store" / path, (NOW - 100 * DAY, NOW - 100 * DAY))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).parent / "callsheet", "store", "prune", *arguments]
        command += ["--store", str(store)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    for arguments, message in (((), "expected at least one"), (("--older-than", "90"), 'found "90"')):
        bad = run(*arguments)
        assert (bad.returncode, message in bad.stderr) == (2, True), bad
    before = paths(store)
    shown = run("--older-than", "90d")
    assert (shown.returncode, "旧" in shown.stdout, "would go" in shown.stdout) == (0, True, True), shown
    assert paths(store) == before
    kept = json.loads(run("--older-than", "90d", "--keep-batches", "1", "--json").stdout.splitlines()[-1])
    assert (kept["batches"], kept["takes"], kept["receipt"]) == ([], [], None)
    gone = run("--older-than", "90d", "--delete", "--json")
    told = json.loads(gone.stdout.splitlines()[-1])
    assert (gone.returncode, paths(store)) == (0, {told["receipt"]})
    assert told["deleted"] == told["bytes"] > 0
    assert "Nothing to delete" in run("--older-than", "90d", "--delete").stdout
