"""Publishing: what the manifest names is there and whole, whenever it is killed and whoever else publishes."""

import hashlib
import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from callsheet.errors import LeaseLost, StoreFault
from callsheet.manifest import LatestRun, Manifest
from callsheet.publishing import Publisher
from callsheet.r2 import R2Store
from callsheet.store import LocalFolder, Store
from tests.buckets import bucket, folder_or_bucket
from tests.callsheet.published import (
    Watched,
    batch_in,
    check_published,
    content_of,
    keep_takes,
    manifest_in,
    plan_of,
    publish_until,
    publisher_of,
)
from tests.fakes.proxy import FaultyProxy

SHOTS = (
    {"shot_id": "a", "title": "雨夜茶馆", "text": "The keeper lit the lamp.", "voice": "anna"},
    {"shot_id": "b", "title": "雨夜茶馆", "text": "And then it rained.", "voice": "anna"},
    {"shot_id": "p", "visual": "flux_dev", "prompt": "a lamp"},
)


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """For what takes long in a bucket."""
    return folder_or_bucket(request, tmp_path)


@pytest.fixture
def script(write_script: Callable[..., Path]) -> Path:
    return write_script(*SHOTS)


def test_a_batch_is_published_and_again_without_a_write_of_media(store: Store, script: Path) -> None:
    keep_takes(plan_of(script), store)
    manifest = publisher_of(store, script).publish()
    assert check_published(store) == manifest
    assert [shot.state for shot in manifest.shots] == ["done"] * 3
    assert set(manifest.shots[0].sha256) == {"clip", "srt", "vtt"}
    assert set(manifest.shots[2].sha256) == {"clip", "poster"}
    writes: list[str] = []
    seen: Any = Watched(store, lambda _, name: writes.append(name))
    again = publisher_of(seen, script).publish()
    assert again.files == manifest.files
    assert sorted(writes) == ["put", "put", "put_if", "put_if"]  # report, its data, manifest, pointer


def test_what_is_damaged_or_gone_is_published_anew(store: Store, script: Path) -> None:
    keep_takes(plan_of(script), store)
    manifest = publisher_of(store, script).publish()
    clip, captions, poster = (
        manifest.shots[0].clip, manifest.shots[1].captions["vtt"], manifest.shots[2].poster,
    )  # fmt: skip
    assert clip
    assert poster
    store.delete(clip)
    store.put(captions, b"cut")
    store.delete(poster)
    publisher_of(store, script).publish()
    check_published(store)


def test_an_edited_script_leaves_nothing_stale(store: Store, write_script: Callable[..., Path]) -> None:
    script = write_script(*SHOTS)
    keep_takes(plan_of(script), store)
    before = publisher_of(store, script).publish()
    write_script(SHOTS[0] | {"text": "The keeper slept."}, SHOTS[1] | {"title": "Rain"})
    keep_takes(plan_of(script), store)
    after = publisher_of(store, script).publish()
    check_published(store)
    assert before.shots[0].clip == after.shots[0].clip
    assert not {path for path in before.files if "/p" in path} & set(after.files)


def test_the_newest_batch_of_a_script_is_pointed_to(store: Store, script: Path) -> None:
    keep_takes(plan_of(script), store)
    publisher = publisher_of(store, script)
    publisher.publish()

    def latest() -> LatestRun:
        return LatestRun.model_validate_json(store.get("latest/script.json"))

    assert (latest().batch, latest().manifest) == ("demo", "batches/demo/manifest.json")
    later = latest().model_copy(update={"batch": "later", "finished": "2999-01-01T00:00:00+00:00"})
    store.put("latest/script.json", later.model_dump_json().encode())
    publisher_of(store, script).publish()
    assert latest() == later  # one that finished later is not pointed away from
    store.put("latest/script.json", b"nonsense")
    publisher_of(store, script).publish()
    assert latest().batch == "demo"


def test_a_take_that_was_taken_away_is_said_and_the_manifest_stands(store: Store, script: Path) -> None:
    sidecars = keep_takes(plan_of(script), store)
    publisher = publisher_of(store, script)
    for sidecar in sidecars:
        if sidecar.kind == "clip":
            store.delete(sidecar.take.file)
    with pytest.raises(
        StoreFault, match=r"takes/clip/.* was taken away while the batch was made; run it again"
    ):
        publisher.publish()
    assert manifest_in(store) is None


def test_who_has_lost_the_batch_writes_nothing_more(store: Store, script: Path) -> None:
    keep_takes(plan_of(script), store)
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) > 3:
            raise LeaseLost("another has it")

    with pytest.raises(LeaseLost):
        publisher_of(store, script, check=check).publish()
    assert len(list(store.list("batches/demo/"))) <= 3 + 1  # and the journal
    assert manifest_in(store) is None


def test_what_a_killed_run_replaced_is_not_taken_for_what_was_there(
    store: Store, write_script: Callable[..., Path]
) -> None:
    """The script is edited, the run is killed before its manifest, and the edit is taken back: files of the same size."""
    script = write_script(SHOTS[0])
    keep_takes(plan_of(script), store)
    publisher_of(store, script).publish()
    write_script(SHOTS[0] | {"text": "The keeper lit the pipe."})
    keep_takes(plan_of(script), store)

    def stop(_: int, name: str) -> None:
        if name == "put_if":
            raise Stopped

    seen: Any = Watched(store, stop)
    with pytest.raises(Stopped):
        publisher_of(seen, script).publish()
    write_script(SHOTS[0])
    publisher_of(store, script).publish()
    check_published(store)


def test_a_clip_that_was_made_again_has_a_new_poster(store: Store, script: Path) -> None:
    sidecars = {one.key: one for one in keep_takes(plan_of(script), store)}
    publisher = publisher_of(store, script)
    key = str(publisher.publish().shots[2].takes["clip"])
    take = sidecars[key].take
    store.put(take.file.replace(".0.", ".1."), b"another clip")
    again = take.model_copy(
        update={
            "n": 1,
            "file": take.file.replace(".0.", ".1."),
            "sha256": hashlib.sha256(b"another clip").hexdigest(),
            "bytes": 12,
        }
    )
    batch = batch_in(store, plan_of(script))
    batch.takes[key] = sidecars[key].model_copy(update={"chosen": 1, "attempts": [take, again]})
    manifest = Publisher(batch, store, "then", posters=lambda _: b"a new poster").publish()
    assert manifest.shots[2].poster is not None
    assert store.get(manifest.shots[2].poster) == b"a new poster"


class Stopped(Exception):
    """Stands for a process that is no more."""


def test_stopped_before_any_write_it_leaves_no_half_and_the_next_completes_it(
    any_store: Store, write_script: Callable[..., Path]
) -> None:
    """First the batch is new, then its script was edited: the manifest names what is whole at every point."""
    store = any_store
    script = write_script(*SHOTS)
    sidecars = keep_takes(plan_of(script), store)
    write_script(SHOTS[0] | {"text": "The keeper slept."}, *SHOTS[1:2])
    sidecars += keep_takes(plan_of(script), store)
    whole = {one.take.sha256 for one in sidecars}
    for rows in (SHOTS, (SHOTS[0] | {"text": "The keeper slept."}, SHOTS[1])):
        write_script(*rows)
        before = manifest_in(store)
        number = 0
        while True:
            number += 1

            def stop(count: int, _: str, last: int = number) -> None:
                if count >= last:
                    raise Stopped

            store_: Any = Watched(store, stop)
            try:
                publisher_of(store_, script).publish()
                break
            except Stopped:
                check_whole(store, before, whole)
        check_published(store)
        assert number > 10


def check_whole(store: Store, before: Manifest | None, whole: set[str]) -> None:
    """The old manifest stands or the new one does: the new one is true, and what the old one names is whole."""
    manifest = manifest_in(store)
    if manifest is None:
        assert before is None
        return
    is_new = before is None or manifest.finished != before.finished or manifest.files != before.files
    for shot in manifest.shots:
        assert shot.clip is not None
        found = content_of(store, shot.clip)
        assert found == shot.sha256["clip"] if is_new else found in whole


@pytest.mark.slow
@pytest.mark.parametrize("places", [pytest.param(30, id="folder"), pytest.param(6, id="bucket")])
def test_killed_at_every_kind_of_step_of_500_takes(
    places: int, write_script: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """SIGKILL in the middle of many writes at once, at places from the first to the last, and at each of the last."""
    rows = [
        {"shot_id": f"s{n}", "title": f"Part {n // 50}", "text": f"Line {n} is spoken.", "voice": "anna"}
        for n in range(247)
    ]
    script = write_script(*rows)
    open_it: Callable[[], Store] = partial(LocalFolder, tmp_path / "store")
    if request.node.callspec.id == "bucket":
        open_it = partial(R2Store, bucket(request.getfixturevalue("s3"), "killed").settings)
    there = open_it()
    sidecars = keep_takes(plan_of(script), there)
    assert len(sidecars) >= 494
    whole = {one.take.sha256 for one in sidecars}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.callsheet.published", "callsheet.r2"])

    def killed(number: int) -> bool:
        child = context.Process(target=publish_until, args=(open_it, script, number))
        child.start()
        child.join(120)
        assert child.exitcode in (0, -signal.SIGKILL)
        return child.exitcode != 0

    # Each that is killed leaves the batch to the next, as it is.
    writes = 3 * 247 + 5 * 3  # clips, captions, programmes
    for number in sorted({*range(1, writes, writes // places), *range(writes, writes + 8)}):
        if not killed(number):
            break
        check_whole(there, None, whole)
    else:
        raise AssertionError("it was never published to the end")
    assert check_published(there).totals.done == 247
    assert set(batch_in(there, plan_of(script)).takes) == {one.key for one in sidecars}
    assert all(content_of(there, one.take.file) == one.take.sha256 for one in sidecars)


def test_two_who_publish_at_once_end_in_one_consistent_batch(
    store: Store, write_script: Callable[..., Path]
) -> None:
    """Without the lease of the batch, even: who comes second with the manifest begins again."""
    script = write_script(*SHOTS)
    keep_takes(plan_of(script), store)
    publishers = [publisher_of(store, script) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        manifests = list(pool.map(lambda one: one.publish(), publishers))
    assert manifests[0].files == manifests[1].files
    check_published(store)


@pytest.mark.slow
def test_a_storm_of_refusals_is_waited_out(s3: str, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that answers 503 to everything for a while costs time and nothing else."""
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.05")
    direct = bucket(s3, "storm")
    keep_takes(plan_of(script), direct)
    with FaultyProxy(s3) as proxy:
        remote = R2Store(replace(direct.settings, endpoint=proxy.url))
        publisher = publisher_of(remote, script)
        proxy.fail("/storm/", "503", times=30)
        publisher.publish()
    check_published(direct)
