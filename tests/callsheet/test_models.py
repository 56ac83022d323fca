"""Models in the store: brought there once, listed when they are whole, and said when they are not."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from callsheet import digests
from callsheet.errors import BadInput, StoreFault
from callsheet.models import ModelFile, ModelShelf, files_below, wanted_by
from callsheet.r2 import R2Store
from callsheet.r2_client import R2Settings
from callsheet.store import LocalFolder, Store
from callsheet.workflow import SHIPPED_WORKFLOWS, read_workflows
from tests.buckets import bucket
from tests.fakes.proxy import FaultyProxy

UNET, LORA = "unet/wan.gguf", "loras/fast.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    for path in (UNET, LORA, ".cache/x", "unet/half.part"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode() * 100)
    return root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalFolder(tmp_path / "store")


def test_files_are_sent_once_and_listed_when_they_are_there(folder: Path, store: Store) -> None:
    shelf = ModelShelf(store)
    assert shelf.manifest().files == []
    assert files_below(folder) == [LORA, UNET]
    assert [one.was_there for one in shelf.upload(folder, [UNET, LORA])] == [False, False]
    assert [file.path for file in shelf.manifest().files] == [LORA, UNET]
    assert [one.was_there for one in shelf.upload(folder, [UNET, LORA])] == [True, True]
    (folder / UNET).write_bytes(b"a newer one")
    assert [one.was_there for one in shelf.upload(folder, [UNET, LORA])] == [False, True]
    assert store.get(f"models/{UNET}") == b"a newer one"
    assert shelf.faults() == {}


def test_what_is_not_there_is_told_and_what_was_sent_before_is_listed(folder: Path, store: Store) -> None:
    shelf = ModelShelf(store)
    with pytest.raises(BadInput, match=r"model unet/none\.gguf: found no such file below"):
        list(shelf.upload(folder, [UNET, "unet/none.gguf"]))
    assert [file.path for file in shelf.manifest().files] == [UNET]
    store.put("models/vae/lone.pt", b"x")
    store.delete(f"models/{UNET}")
    assert shelf.faults() == {UNET: f"found nothing at models/{UNET}, expected 1,300 bytes"}
    assert shelf.unlisted() == ["vae/lone.pt"]
    with pytest.raises(BadInput, match=r"names unet/wan\.gguf; found nothing at .*; nothing is rented"):
        shelf.check(shelf.manifest().files[0])


@pytest.mark.parametrize("path", ["../secrets", "/etc/passwd", "unet/../../x", "", "a\\b", "a\0b"])
def test_no_path_leaves_the_folder(folder: Path, store: Store, path: str) -> None:
    with pytest.raises(BadInput, match="expected a path below the folder of models"):
        list(ModelShelf(store).upload(folder, [path]))
    with pytest.raises(ValidationError):
        ModelFile(path=path, sha256="0" * 64, bytes=1)


def test_two_who_upload_at_once_list_both(folder: Path, store: Store) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda path: list(ModelShelf(store).upload(folder, [path])), [UNET, LORA]))
    assert [file.path for file in ModelShelf(store).manifest().files] == [LORA, UNET]


def test_a_list_that_is_none_is_told(store: Store) -> None:
    store.put("models/manifest.json", b"[]")
    with pytest.raises(BadInput, match=r"models/manifest\.json is no list of models"):
        ModelShelf(store).manifest()


def test_workflows_tell_what_they_load() -> None:
    wanted = wanted_by(read_workflows(SHIPPED_WORKFLOWS).values())
    model, workflows = wanted["unet/Wan2.2-I2V-A14B-HighNoise-Q4_K_M.gguf"]
    assert (workflows, model.gigabytes) == (["wan_i2v"], 9.6)


@pytest.mark.slow
def test_a_large_upload_that_was_cut_off_goes_on(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "PART_BYTES", 5 << 20)
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.2")
    direct = bucket(s3, "large")
    (tmp_path / "unet").mkdir()
    (tmp_path / UNET).write_bytes(bytes(range(256)) * (17 << 12))  # 17 MiB: four parts
    with FaultyProxy(s3) as proxy:
        store = R2Store(R2Settings(proxy.url, "large", "key", SecretStr("secret"), "callsheet", threads=1))
        proxy.fail("partNumber=3", "reset", times=1000)
        with pytest.raises(StoreFault):
            list(ModelShelf(store).upload(tmp_path, [UNET]))
        assert ModelShelf(direct).manifest().files == []
        proxy.requests.clear()
        proxy.fail_no_more()
        told: list[int] = []
        assert [one.was_there for one in ModelShelf(store).upload(tmp_path, [UNET], told.append)] == [False]
        assert (sum(told), len(told)) == (17 << 20, 4)
        assert [one.was_there for one in ModelShelf(store).upload(tmp_path, [UNET], told.append)] == [True]
        assert sum(told) == 2 * (17 << 20)
        sent = [n for n in range(1, 5) if proxy.count(f"partNumber={n}", "PUT")]
    assert sent[0] == 3, "the first two were there already"
    assert direct.fetch(f"models/{UNET}", tmp_path / "back").read_bytes() == (tmp_path / UNET).read_bytes()
    assert "Uploads" not in direct._client.list_multipart_uploads(Bucket="large")


def test_an_upload_of_another_file_is_not_gone_on_with(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "PART_BYTES", 5 << 20)
    store = bucket(s3, "other")
    place = {"Bucket": "other", "Key": f"callsheet/models/{UNET}"}
    upload = store._client.create_multipart_upload(**place)["UploadId"]
    store._client.upload_part(**place, UploadId=upload, PartNumber=1, Body=bytes(5 << 20))
    (tmp_path / "unet").mkdir()
    (tmp_path / UNET).write_bytes(b"x" * (11 << 20))
    list(ModelShelf(store).upload(tmp_path, [UNET]))
    assert store.size(f"models/{UNET}") == 11 << 20
    assert "Uploads" not in store._client.list_multipart_uploads(Bucket="other")


@pytest.mark.slow
def test_the_command_line_lists_uploads_and_verifies(folder: Path, tmp_path: Path) -> None:
    wanted = "unet/Wan2.2-I2V-A14B-HighNoise-Q4_K_M.gguf"
    (folder / wanted).write_bytes(b"a model")

    def models(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).parent / "callsheet", "models", *arguments]
        command += ["--store", str(tmp_path / "store"), "--json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert json.loads(models("verify").stdout) == {"models": 0, "faults": {}, "unlisted": []}
    sent = models("upload", str(folder))
    assert [model["path"] for model in json.loads(sent.stdout)["models"]] == [wanted]
    assert "Not below" in sent.stderr
    rows = {row["path"]: row for row in json.loads(models("list").stdout)["models"]}
    assert (rows[wanted]["bytes"], rows[wanted]["workflows"]) == (7, ["wan_i2v"])
    assert rows["unet/Wan2.2-I2V-A14B-LowNoise-Q4_K_M.gguf"]["bytes"] is None
    (tmp_path / "store/models" / wanted).unlink()
    checked = models("verify")
    assert (checked.returncode, wanted in checked.stderr) == (1, True)
    missing = models("upload", str(tmp_path / "none"))
    assert (missing.returncode, "found no folder" in missing.stderr) == (2, True)
