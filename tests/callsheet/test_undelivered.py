"""What was made and is not in the store yet survives its run."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from callsheet.errors import StoreFault
from callsheet.home import callsheet_home
from callsheet.r2 import R2Store
from callsheet.takes import Attempt, Sidecar, sidecar_path
from callsheet.undelivered import Undelivered, bring
from tests.buckets import bucket
from tests.fakes.proxy import FaultyProxy

CONTENT = b"what an engine made"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(s3: str, request: pytest.FixtureRequest) -> R2Store:
    return bucket(s3, f"u{abs(hash(request.node.name))}")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    path = tmp_path / "made.wav"
    path.write_bytes(CONTENT)
    return path


def sidecar(key: str = "k", sha256: str = "") -> Sidecar:
    attempt = Attempt(
        n=1, file=f"takes/speech/{key}.1.wav", sha256=sha256, bytes=len(CONTENT), seed=7, cost=0.25
    )
    failed = Attempt(n=0, error="silent")
    return Sidecar(
        key=key, kind="speech", engine="e", revision="r", inputs={}, chosen=1, attempts=[failed, attempt]
    )


def killed(run: Undelivered) -> None:
    """What the system does when a process is gone: its locks are given back."""
    assert run._lock is not None
    run._lock.close()


def left() -> list[str]:
    return [path.name for path in callsheet_home().glob("undelivered/*/*/*")]


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_HOME", str(tmp_path / "home"))


def check_there(store: R2Store) -> None:
    there = Sidecar.model_validate_json(store.get(sidecar_path("speech", "k")))
    assert there == sidecar(sha256=SHA256)
    assert store.get(there.take.file) == CONTENT


def test_what_a_killed_run_did_not_bring_is_brought(store: R2Store, media: Path) -> None:
    run = Undelivered(store)
    assert run.add(sidecar(), media).read_bytes() == CONTENT
    assert not media.exists()
    assert bring(store) == []  # it is at work yet
    killed(run)
    assert bring(store) == [sidecar(sha256=SHA256)]
    check_there(store)
    assert left() == []
    assert bring(store) == []


def test_what_was_there_and_not_committed_is_committed(store: R2Store, media: Path) -> None:
    run = Undelivered(store)
    path = run.add(sidecar(), media)
    store.put(sidecar().take.file, path)
    run.delivered(sidecar(sha256=SHA256))
    path.unlink()  # moved to where the clip is built from it
    killed(run)
    assert bring(store) == [sidecar(sha256=SHA256)]
    check_there(store)


def test_what_is_committed_is_not_brought_again(store: R2Store, media: Path) -> None:
    run = Undelivered(store)
    run.add(sidecar(), media)
    run.remove("k")
    run.close()
    assert left() == []
    run = Undelivered(store)
    media.write_bytes(CONTENT)
    run.add(sidecar(), media)
    another = sidecar().model_copy(update={"attempts": [sidecar().take.model_copy(update={"sha256": "x"})]})
    store.put(sidecar_path("speech", "k"), another.model_dump_json().encode())
    store.put(sidecar().take.file, CONTENT)
    killed(run)
    assert bring(store) == []
    assert Sidecar.model_validate_json(store.get(sidecar_path("speech", "k"))) == another
    assert left() == []


def test_many_threads_share_the_folder_of_a_run(store: R2Store, tmp_path: Path) -> None:
    run, barrier = Undelivered(store), threading.Barrier(8)

    def add(number: int) -> Path:
        path = tmp_path / f"{number}.wav"
        path.write_bytes(CONTENT)
        barrier.wait()
        return run.add(sidecar(f"k{number}"), path)

    with ThreadPoolExecutor(8) as pool:
        assert len({path.parent for path in pool.map(add, range(8))}) == 1
    assert bring(store) == []
    killed(run)
    assert len(bring(store)) == 8


def test_what_cannot_be_kept_lies_where_it_lay(store: R2Store, media: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("in the way", "utf-8")
    with pytest.raises(OSError, match="home"):
        Undelivered(store).add(sidecar(), media)
    assert media.read_bytes() == CONTENT


def test_a_take_that_is_committed_and_not_whole_is_replaced(store: R2Store, media: Path) -> None:
    """And what another run put under the path of the attempt is left."""
    old = sidecar().model_copy(update={"sources": {"s": "old"}})
    store.put(sidecar_path("speech", "k"), old.model_dump_json().encode())
    store.put(sidecar().take.file, b"another's media of 9")
    run = Undelivered(store)
    run.add(sidecar(), media)
    killed(run)
    (brought,) = bring(store)
    assert brought.take.file != sidecar().take.file
    assert store.get(brought.take.file) == CONTENT
    assert store.get(sidecar().take.file) == b"another's media of 9"
    assert Sidecar.model_validate_json(store.get(sidecar_path("speech", "k"))) == brought


def test_another_account_with_a_bucket_of_that_name_is_another_store(store: R2Store, media: Path) -> None:
    run = Undelivered(store)
    run.add(sidecar(), media)
    killed(run)
    other = R2Store(replace(store.settings, endpoint="http://127.0.0.1:9"))
    assert bring(other) == []
    assert len(bring(store)) == 1


def test_what_is_not_whole_is_let_go(store: R2Store, media: Path) -> None:
    run = Undelivered(store)
    run.add(sidecar("k"), media).write_bytes(CONTENT[:5])
    media.write_bytes(CONTENT)
    path = run.add(sidecar("m"), media)
    path.with_suffix(".json").write_text("{", "utf-8")
    killed(run)
    assert bring(store) == []
    assert list(store.list("takes/")) == []
    assert left() == []


def test_a_store_that_refuses_loses_nothing(s3: str, media: Path) -> None:
    direct = bucket(s3, "undelivered-refused")
    with FaultyProxy(s3) as proxy:
        store = R2Store(replace(direct.settings, endpoint=proxy.url))
        run = Undelivered(store)
        run.add(sidecar(), media)
        run.close()
        proxy.fail("PUT", "keys expired", times=5)
        with pytest.raises(StoreFault, match="does not accept the keys"):
            bring(store)
        proxy.fail_no_more()
        assert len(bring(store)) == 1
    check_there(direct)
