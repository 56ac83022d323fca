"""Blocks of the stores: a folder, and a Cloudflare R2 bucket.

from blocks.store import R2Bucket, open_store

await open_store("out")                     # a folder
await open_store("r2://media/callsheet")    # a bucket; account and keys from the environment
await open_store("block:r2-bucket/main")    # a saved block
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl, SecretStr

import callsheet.store
from blocks.base import CallsheetBlock
from callsheet.errors import BadInput
from callsheet.r2 import R2Store
from callsheet.r2_client import R2Settings, endpoint_of
from callsheet.store import Store

BLOCK = "block:"


class LocalFolder(CallsheetBlock):
    """
    A folder of this machine, or one that all machines share.

    Example:
        List what a saved folder holds:
        ```python
        from blocks.store import LocalFolder

        folder = LocalFolder.load("BLOCK_NAME")
        print([file.path for file in folder.client().list("batches/")])
        ```
    """

    _block_type_name = "Callsheet Local Folder"
    _block_type_slug = "callsheet-local-folder"
    _documentation_url = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")

    folder: str = Field(default="out", description="Path of the folder; it is made where it does not exist.")

    def client(self) -> callsheet.store.LocalFolder:
        """The core's store."""
        return callsheet.store.LocalFolder(Path(self.folder).expanduser())


class R2Bucket(CallsheetBlock):
    """
    A Cloudflare R2 bucket, or one of any other S3 service.

    Example:
        List what a saved bucket holds:
        ```python
        from blocks.store import R2Bucket

        bucket = R2Bucket.load("BLOCK_NAME")
        print([file.path for file in bucket.client().list("batches/")])
        ```
    """

    _block_type_name = "R2 Bucket"
    _block_type_slug = "r2-bucket"
    _documentation_url = HttpUrl("https://developers.cloudflare.com/r2/api/s3/api/")

    account_id: str = Field(default="", description="Cloudflare account; not needed with an endpoint.")
    bucket: str = Field(description="Name of the bucket.")
    prefix: str = Field(default="", description="Folder within the bucket.")
    jurisdiction: Literal["", "eu", "fedramp"] = Field(
        default="", description="Jurisdiction of the bucket, if it has one."
    )
    access_key_id: str = Field(description="Access key id of an R2 API token.")
    secret_access_key: SecretStr = Field(description="Secret access key of that token.")
    endpoint: str = Field(default="", description="Address of the S3 API, where it is not Cloudflare's.")
    public_url: str = Field(default="", description="Custom domain under which the bucket is published.")

    def client(self) -> R2Store:
        """The core's store. Raises BadInput where neither account nor endpoint is given."""
        if not self.account_id and not self.endpoint:
            raise BadInput("R2 bucket: found neither account_id nor endpoint; expected one of them")
        settings = R2Settings(
            endpoint=self.endpoint or endpoint_of(self.account_id, self.jurisdiction),
            bucket=self.bucket,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            prefix=self.prefix.strip("/"),
            public_url=self.public_url,
        )
        return R2Store(settings)


async def open_store(setting: str) -> Store:
    """The store that a setting names: a folder, ``r2://BUCKET/PREFIX``, or ``block:TYPE/NAME``."""
    if not setting.startswith(BLOCK):
        return callsheet.store.open_store(setting)
    try:
        block: Block = await Block.aload(setting.removeprefix(BLOCK))
    except ValueError as error:
        raise BadInput(f'store "{setting}": {error}') from None
    if not isinstance(block, LocalFolder | R2Bucket):
        raise BadInput(
            f'store "{setting}": found a {type(block).__name__}; expected an R2Bucket or a LocalFolder'
        )
    return block.client()
