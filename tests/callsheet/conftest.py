"""Both kinds of store behave alike: tests that ask for `store` run on a folder and on a bucket of moto's server."""

from pathlib import Path

import pytest

from callsheet.store import Store
from tests.buckets import folder_or_bucket


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return folder_or_bucket(request, tmp_path)
