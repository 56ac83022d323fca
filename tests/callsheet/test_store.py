"""Both stores behave alike: the same tests run on a folder and on a bucket of moto's server."""

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from callsheet.errors import BadInput, StoreFault
from callsheet.r2 import R2Store
from callsheet.r2_client import R2Settings
from callsheet.store import LocalFolder, Store, StoredFile, open_store
from tests.buckets import bucket


def test_what_is_put_is_got(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"from a file")
    store.put("takes/speech/a.bin", tmp_path / "a.bin")
    store.put("takes/speech/b.json", b"{}")
    assert store.get("takes/speech/a.bin") == b"from a file"
    assert store.size("takes/speech/a.bin") == 11
    assert store.fetch("takes/speech/b.json", tmp_path).read_bytes() == b"{}"
    assert set(store.list("takes/speech/")) == {
        StoredFile("takes/speech/a.bin", 11),
        StoredFile("takes/speech/b.json", 2),
    }
    assert [file.path for file in store.list("takes/speech/a")] == ["takes/speech/a.bin"]


def test_chinese_names_and_copies(store: Store) -> None:
    store.put("takes/clip/k.mp4", b"clip")
    store.copy("takes/clip/k.mp4", "batches/demo/雨夜茶馆/cg 01.mp4")
    store.copy("takes/clip/k.mp4", "batches/demo/雨夜茶馆/cg 01.mp4")
    assert store.get("batches/demo/雨夜茶馆/cg 01.mp4") == b"clip"


def test_what_is_not_there_is_said(store: Store, tmp_path: Path) -> None:
    assert store.size("none.json") is None
    assert list(store.list("none/")) == []
    store.delete("none.json")
    for read in (store.get, lambda path: store.fetch(path, tmp_path), lambda path: store.copy(path, "x")):
        with pytest.raises(FileNotFoundError):
            read("none.json")


def test_put_replaces_and_delete_removes(store: Store) -> None:
    store.put("a.json", b"first")
    store.put("a.json", b"second")
    assert store.get("a.json") == b"second"
    store.delete("a.json")
    assert store.size("a.json") is None


def test_conditional_write_of_one_who_came_second_is_refused(store: Store) -> None:
    assert store.version("hosts/a.json") is None
    assert store.put_if("hosts/a.json", b"1", None)
    assert not store.put_if("hosts/a.json", b"2", None)
    version = store.version("hosts/a.json")
    assert store.put_if("hosts/a.json", b"3", version)
    assert not store.put_if("hosts/a.json", b"4", version)
    assert store.get("hosts/a.json") == b"3"
    store.delete("hosts/a.json")
    assert not store.put_if("hosts/a.json", b"5", version)


def test_of_many_who_write_at_once_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.put_if("x.json", str(n).encode(), None), range(8)))
    assert sum(won) == 1
    assert store.get("x.json") == str(won.index(True)).encode()


def test_what_is_not_to_be_replaced_stays(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"first")
    sha256 = store.put("a.bin", tmp_path / "a", replace=False)
    assert store.put("a.bin", tmp_path / "a", replace=False) == sha256
    with pytest.raises(FileExistsError):
        store.put("a.bin", b"other", replace=False)
    assert store.get("a.bin") == b"first"


def test_a_disk_without_links_keeps_takes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    store = LocalFolder(tmp_path / "store")
    store.put("a.bin", b"first", replace=False)
    with pytest.raises(FileExistsError):
        store.put("a.bin", b"other", replace=False)
    assert store.get("a.bin") == b"first"
    assert [file.path for file in store.list("")] == ["a.bin"]


@pytest.mark.parametrize("path", ["../a", "/etc/passwd", "a/../../b", "a\0b"])
def test_no_path_leaves_the_store(store: Store, path: str) -> None:
    for use in (store.get, store.size, store.delete, lambda p: store.put(p, b"x")):
        with pytest.raises(ValueError, match="no path inside a store"):
            use(path)


def test_address_of_a_file_can_be_opened(s3: str, tmp_path: Path) -> None:
    import httpx

    folder = LocalFolder(tmp_path / "store")
    folder.put("雨/a b.txt", b"x")
    assert folder.url("雨/a b.txt") == (tmp_path / "store/雨/a b.txt").as_uri()
    remote = bucket(s3, "addresses")
    remote.put("雨/a b.txt", b"x")
    assert httpx.get(remote.url("雨/a b.txt")).content == b"x"
    assert "secret-of-the-test" not in remote.url("雨/a b.txt")
    public = R2Store(R2Settings(s3, "b", "k", SecretStr("s"), "p", public_url="https://media.example/"))
    assert public.url("雨/a.txt") == "https://media.example/p/%E9%9B%A8/a.txt"


def test_bucket_knows_what_its_files_are(s3: str) -> None:
    remote = bucket(s3, "types")
    for name, kind in (
        ("a.vtt", "text/vtt; charset=utf-8"),
        ("a.html", "text/html; charset=utf-8"),
        ("a.mp4", "video/mp4"),
    ):
        remote.put(name, b"x")
        head = remote._client.head_object(Bucket="types", Key=f"callsheet/{name}")
        assert head["ContentType"] == kind


def test_refused_bucket_is_a_store_fault_without_the_keys(s3: str) -> None:
    absent = R2Store(R2Settings(s3, "no-such-bucket", "key", SecretStr("secret-of-the-test")))
    with pytest.raises(StoreFault) as caught:
        absent.put("a.json", b"x")
    assert "no-such-bucket" in str(caught.value)
    assert "secret-of-the-test" not in str(caught.value) + repr(absent.settings)


def test_store_settings_that_lack_something_say_what(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="R2_ACCOUNT_ID or R2_ENDPOINT_URL, no R2_ACCESS_KEY_ID"):
        open_store("r2://media/callsheet")
    monkeypatch.setenv("R2_ACCOUNT_ID", "abc")
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "s")
    store = open_store("r2://media/a/b/")
    assert isinstance(store, R2Store)
    assert (store.settings.endpoint, store.settings.bucket, store.settings.prefix) == (
        "https://abc.r2.cloudflarestorage.com", "media", "a/b",
    )  # fmt: skip
    with pytest.raises(BadInput, match="no a bucket's name"):
        open_store("r2://")
    with pytest.raises(BadInput, match="expected a folder or r2://"):
        open_store("s3://media")


def test_second_run_of_a_batch_is_turned_away(tmp_path: Path) -> None:
    store = LocalFolder(tmp_path)
    with (
        store.only_run("demo"),
        pytest.raises(BadInput, match="batch demo: found another run"),
        LocalFolder(tmp_path).only_run("demo"),
    ):
        pass
    with store.only_run("demo"), store.only_run("other"):
        pass


FULL = """
    import resource, signal, sys
    from pathlib import Path
    from callsheet.store import LocalFolder
    from callsheet.errors import StoreFault
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        LocalFolder(Path(sys.argv[1])).put("takes/speech/a.wav", bytes(200_000))
    except StoreFault as error:
        print(error)
"""


def test_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """The system's own limit on the size of a file stands in for the disk's: the write fails in the middle."""
    store = LocalFolder(tmp_path / "store")
    store.put("takes/speech/a.wav", b"the take before")
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "takes/speech/a.wav could not be written or read: File too large; free some space" in result.stdout
    assert store.get("takes/speech/a.wav") == b"the take before"
    assert [file.path for file in store.list("")] == ["takes/speech/a.wav"]
    assert not list((tmp_path / "store" / ".incoming").iterdir())


def test_folder_that_cannot_be_written_is_a_store_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreFault, match="could not be written"):
        LocalFolder(tmp_path / "file").put("a.json", b"x")
