"""The demo comes to the same in a bucket as in a folder, byte for byte."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from callsheet.store import Store, open_store
from tests.buckets import bucket
from tests.callsheet.published import check_published
from tests.callsheet.test_cli import CALLSHEET
from tests.conftest import ROOT


def run(store: str, home: Path, env: dict[str, str]) -> dict[str, object]:
    command = [CALLSHEET, "run", "data/demo.csv", "--store", store, "--json"]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **env, "CALLSHEET_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    told: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    assert "secret-of-the-test" not in result.stdout + result.stderr
    return told


def media_of(store: Store) -> dict[str, str]:
    """The takes' media, by path."""
    return {
        file.path: hashlib.sha256(store.get(file.path)).hexdigest()
        for file in store.list("takes/")
        if not file.path.endswith(".json")
    }


@pytest.mark.slow
def test_the_demo_is_the_same_in_a_bucket_and_in_a_folder(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket(s3, "demo")
    keys = {
        "R2_ENDPOINT_URL": s3,
        "R2_ACCESS_KEY_ID": "key",
        "R2_SECRET_ACCESS_KEY": "secret-of-the-test",
    }
    in_bucket = run("r2://demo/studio", tmp_path / "home", keys)
    in_folder = run(str(tmp_path / "out"), tmp_path / "home", {})
    for told in (in_bucket, in_folder):
        assert (told["failed"], told["takes_reused"]) == ([], 0)
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    remote, folder = open_store("r2://demo/studio"), open_store(str(tmp_path / "out"))
    assert media_of(remote) == media_of(folder)
    there, here = check_published(remote), check_published(folder)
    assert there.files == here.files
    again = run("r2://demo/studio", tmp_path / "home", keys)
    assert (again["takes_made"], again["takes_reused"]) == (0, in_bucket["takes_made"])
