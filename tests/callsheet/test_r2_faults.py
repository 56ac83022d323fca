"""A bucket over a bad line: what was written is there and whole, or it is said that it is not."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from callsheet import digests
from callsheet.digests import Digests
from callsheet.errors import StoreFault
from callsheet.patience import Patience
from callsheet.r2 import R2Store
from callsheet.r2_client import ATTEMPTS, R2Settings
from tests.buckets import bucket
from tests.fakes.proxy import Fault, FaultyProxy

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def proxy(s3: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3) as proxy:
        yield proxy


@pytest.fixture
def store(s3: str, proxy: FaultyProxy, request: pytest.FixtureRequest) -> R2Store:
    name = f"b{abs(hash(request.node.name))}"
    bucket(s3, name)
    return R2Store(R2Settings(proxy.url, name, "key", SecretStr("secret"), "p"))


@pytest.mark.parametrize(
    "fault",
    ["503", pytest.param("429", marks=pytest.mark.slow), "500", "reset", "done, then reset"],
)
def test_a_write_is_sent_again_until_it_is_there(
    store: R2Store, proxy: FaultyProxy, tmp_path: Path, fault: Fault
) -> None:
    proxy.fail("/p/a.bin", fault, times=2)
    (tmp_path / "a.bin").write_bytes(CONTENT)
    store.put("a.bin", tmp_path / "a.bin")
    assert (store.get("a.bin"), proxy.count("/p/a.bin", "PUT")) == (CONTENT, 3)


@pytest.mark.slow
def test_a_write_whose_answer_never_comes_is_there_once(
    store: R2Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.02")
    hasty = R2Store(store.settings)
    proxy.fail("/p/a.bin", "done, then hang")
    hasty.put("a.bin", CONTENT)
    assert (store.get("a.bin"), proxy.count("/p/a.bin", "PUT")) == (CONTENT, 2)


def test_keys_that_expired_are_said_and_not_asked_again_for(store: R2Store, proxy: FaultyProxy) -> None:
    proxy.fail("/p/a.bin", "keys expired", times=9)
    with pytest.raises(
        StoreFault, match=r"a\.bin: ExpiredToken the store does not accept the keys it was given"
    ) as caught:
        store.put("a.bin", CONTENT)
    assert not caught.value.may_pass
    assert "run again, what is done is kept" in str(caught.value)
    assert proxy.count("/p/a.bin") == 1


def test_a_clock_that_is_wrong_is_said_with_both_times(store: R2Store, proxy: FaultyProxy) -> None:
    proxy.fail("/p/a.bin", "clock skewed", times=9)
    with pytest.raises(
        StoreFault,
        match=r"this machine's clock says .* GMT and the store's Sat, 21 Nov 2026 08:00:00 GMT; set it",
    ):
        store.put("a.bin", CONTENT)


@pytest.mark.slow
def test_a_storm_is_one_that_may_pass(
    store: R2Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More refusals than one request is patient with; who can wait asks again."""
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.02")
    proxy.fail("/p/a.bin", "503", times=ATTEMPTS + 3)
    with pytest.raises(StoreFault, match="503") as caught:
        store.put("a.bin", CONTENT)
    assert caught.value.may_pass
    Patience()(lambda: store.put("a.bin", CONTENT))
    assert store.get("a.bin") == CONTENT


@pytest.mark.slow
def test_a_store_that_is_not_there_may_come_back() -> None:
    away = R2Store(R2Settings("http://127.0.0.1:9", "b", "key", SecretStr("secret")))
    with pytest.raises(StoreFault, match="Could not connect") as caught:
        away.size("a.bin")
    assert caught.value.may_pass


def test_sizes_of_many_files_take_few_requests(store: R2Store, proxy: FaultyProxy) -> None:
    there = [f"takes/speech/{n:03}.wav" for n in range(0, 300, 2)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda path: store.put(path, path[:20].encode()), there))
    store.put("takes/speech-of-another/001.wav", b"x")
    asked = len(proxy.requests)
    wanted = [f"takes/speech/{n:03}.wav" for n in range(300)]
    assert store.sizes([*wanted, *wanted, "takes/clip/none.mp4"]) == {path: 20 for path in there}
    assert len(proxy.requests) - asked <= 40


@pytest.mark.slow
def test_sizes_of_few_files_among_many_are_asked_for_one_by_one(
    s3: str, store: R2Store, proxy: FaultyProxy
) -> None:
    """A page of a list tells of 1,000 files; where hardly one of them is wanted, the question is cheaper."""
    direct = R2Store(replace(store.settings, endpoint=s3))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: direct.put(f"takes/clip/{n:05}.mp4", b"x"), range(0, 3000)))
    wanted = [f"takes/clip/{n:05}.mp4" for n in range(0, 6000, 300)]
    assert store.sizes(wanted) == {path: 1 for path in wanted[:10]}
    assert proxy.count("?", "GET") <= 2
    assert proxy.count("/takes/", "HEAD") >= 10


def test_what_was_written_is_known_by_its_hash(store: R2Store) -> None:
    store.put("takes/speech/a.wav", CONTENT)
    store.copy("takes/speech/a.wav", "batches/b/a.wav")
    for path, cache in (("takes/speech/a.wav", "immutable"), ("batches/b/a.wav", "no-cache")):
        head = store._client.head_object(Bucket=store.settings.bucket, Key=f"p/{path}")
        assert head["Metadata"] == {"sha256": hashlib.sha256(CONTENT).hexdigest()}
        assert cache in head["CacheControl"]


@pytest.mark.parametrize("fault", ["cut", "reset", "503"])
def test_a_file_is_read_on_from_where_the_line_broke(
    store: R2Store, proxy: FaultyProxy, tmp_path: Path, fault: Fault
) -> None:
    store.put("a.bin", CONTENT)
    proxy.fail("/p/a.bin", fault, times=2)
    assert store.fetch("a.bin", tmp_path).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_file_that_is_not_what_was_written_is_not_taken(
    store: R2Store, proxy: FaultyProxy, tmp_path: Path
) -> None:
    store.put("a.bin", CONTENT)
    proxy.fail("/p/a.bin", "one byte wrong")
    with pytest.raises(StoreFault, match=r"a\.bin is not what was written: its sha256 is"):
        store.fetch("a.bin", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert store.fetch("a.bin", tmp_path).read_bytes() == CONTENT


class Meddler(FaultyProxy):
    """Does something else after each answer that it cuts."""

    meddle: Callable[[], None]

    async def _answer(self, fault: Fault | None, *more: Any) -> None:
        await super()._answer(fault, *more)
        if fault == "cut":
            self.meddle()


def test_a_file_that_changes_while_it_is_read_is_not_patched_together(s3: str, tmp_path: Path) -> None:
    direct = bucket(s3, "changing")
    direct.put("a.bin", CONTENT)
    with Meddler(s3) as proxy:
        proxy.meddle = lambda: direct.put("a.bin", CONTENT[::-1])
        proxy.fail("/a.bin", "cut")
        settings = replace(direct.settings, endpoint=proxy.url)
        with pytest.raises(StoreFault, match=r"a\.bin was changed while it was read"):
            R2Store(settings).fetch("a.bin", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_large_file_goes_in_equal_parts_and_is_compared(
    store: R2Store, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "PART_BYTES", 5 << 20)
    store = R2Store(store.settings)
    large = tmp_path / "large.bin"
    large.write_bytes(CONTENT * 12)
    proxy.fail("partNumber=2", "reset")
    proxy.fail("partNumber=3", "done, then reset")
    store.put("large.bin", large)
    assert proxy.count("partNumber=2", "PUT") == 2
    assert store.size("large.bin") == 12 << 20
    assert store.fetch("large.bin", tmp_path / "back").read_bytes() == CONTENT * 12
    assert Digests.of_file(large).etag.endswith("-3")


def test_digests_of_bytes_and_of_a_file_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    assert Digests.of_file(tmp_path / "a.bin") == Digests.of_bytes(CONTENT)


def test_a_store_that_repeats_the_request_shows_no_key(s3: str, proxy: FaultyProxy) -> None:
    bucket(s3, "echoing")
    keys = SecretStr("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    store = R2Store(R2Settings(proxy.url, "echoing", "AKIAIOSFODNN7EXAMPLE", keys, "p"))
    proxy.fail("/p/a.bin", "S3 echo")
    with pytest.raises(StoreFault, match=r"InvalidRequest Authorization: .*Credential=…/") as fault:
        store.put("a.bin", b"x")
    assert "AKIAIOSFODNN7EXAMPLE" not in str(fault.value)
