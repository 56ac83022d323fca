"""Buckets of moto's server, empty ones, and folders to compare with."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from callsheet.r2 import R2Store
from callsheet.r2_client import R2Settings
from callsheet.store import LocalFolder, Store


def bucket(s3: str, name: str, prefix: str = "callsheet") -> R2Store:
    store = R2Store(R2Settings(s3, name, "key", SecretStr("secret-of-the-test"), prefix))
    store._client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "auto"})
    return store


def folder_or_bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """What the fixture's parameter says, for this test alone."""
    if request.param == "folder":
        return LocalFolder(tmp_path / "store")
    return bucket(request.getfixturevalue("s3"), f"b{abs(hash(request.node.nodeid))}")
