"""Cloudflare R2 (or any S3) as a store, over boto3.

    settings = R2Settings.from_environment("r2://media/callsheet")
    store = R2Store(settings)

The client's settings are those that R2 needs (facts, section 7): boto3's newer checksum headers are
off, because some of R2's paths reject them, and addresses have the bucket in the path.
"""

from __future__ import annotations

import mimetypes
import os
import shutil
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
from boto3.s3.transfer import TransferConfig
from pydantic import SecretStr

from callsheet.errors import BadInput, StoreFault
from callsheet.store import StoredFile, check_path
from callsheet.timing import scaled

#: Answers that mean that there is no such object; HEAD has no body and gives the bare status.
_ABSENT = ("NoSuchKey", "404", "NotFound")
#: Answers that mean that a conditional write came too late; two at once give 409.
_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "412")
#: Presigned addresses live for a day; R2 allows up to seven.
_URL_SECONDS = 86_400
_LONGEST_SECONDS = 7 * 86_400


@dataclass(frozen=True)
class R2Settings:
    """Where the bucket is and who we are.

    Attributes:
        endpoint: address of the S3 API, such as https://ACCOUNT.r2.cloudflarestorage.com.
        prefix: folder within the bucket, without a slash at either end; may be empty.
        public_url: address under which the bucket is published; empty for presigned addresses.
    """

    endpoint: str
    bucket: str
    access_key_id: str
    secret_access_key: SecretStr
    prefix: str = ""
    public_url: str = ""
    threads: int = field(default=8)

    @classmethod
    def from_environment(cls, setting: str) -> R2Settings:
        """From ``r2://BUCKET/PREFIX`` and R2_ACCOUNT_ID or R2_ENDPOINT_URL, R2_ACCESS_KEY_ID, R2_SECRET_ACCESS_KEY.

        Raises:
            BadInput: naming what is missing.
        """
        bucket, _, prefix = setting.removeprefix("r2://").partition("/")
        account, endpoint = os.environ.get("R2_ACCOUNT_ID", ""), os.environ.get("R2_ENDPOINT_URL", "")
        key, secret = os.environ.get("R2_ACCESS_KEY_ID", ""), os.environ.get("R2_SECRET_ACCESS_KEY", "")
        wanted = {"a bucket's name": bucket, "R2_ACCOUNT_ID or R2_ENDPOINT_URL": account or endpoint}
        wanted |= {"R2_ACCESS_KEY_ID": key, "R2_SECRET_ACCESS_KEY": secret}
        if missing := [name for name, value in wanted.items() if not value]:
            raise BadInput(
                f'store "{setting}": found no {", no ".join(missing)}; expected r2://BUCKET/PREFIX and these in the environment'
            )
        return cls(
            endpoint=endpoint or f"https://{account}.r2.cloudflarestorage.com",
            bucket=bucket,
            access_key_id=key,
            secret_access_key=SecretStr(secret),
            prefix=prefix.strip("/"),
            public_url=os.environ.get("R2_PUBLIC_URL", ""),
        )


class _Conflict(Exception):
    """The object is not as the condition of a write says."""


class R2Store:
    """A bucket, or a folder of one, as a store."""

    is_shared = True
    signs = True

    def __init__(self, settings: R2Settings) -> None:
        self.settings = settings
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=settings.endpoint,
            region_name="auto",
            aws_access_key_id=settings.access_key_id,
            aws_secret_access_key=settings.secret_access_key.get_secret_value(),
            config=botocore.config.Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"max_attempts": 8, "mode": "adaptive"},
                connect_timeout=scaled(10),
                read_timeout=scaled(60),
                max_pool_connections=4 * settings.threads,
            ),
        )
        # All parts but the last of equal size, as R2 demands, which boto3's fixed chunk gives.
        self._transfer = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=64 << 20)

    def put(self, path: str, content: Path | bytes) -> None:
        kind = {"ContentType": _content_type(path)}
        with self._faults(path):
            if isinstance(content, bytes):
                self._client.put_object(
                    Bucket=self.settings.bucket, Key=self._key(path), Body=content, **kind
                )
            else:
                self._client.upload_file(
                    str(content), self.settings.bucket, self._key(path), ExtraArgs=kind, Config=self._transfer
                )

    def put_if(self, path: str, content: bytes, version: str | None) -> bool:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            with self._faults(path):
                self._client.put_object(
                    Bucket=self.settings.bucket,
                    Key=self._key(path),
                    Body=content,
                    ContentType=_content_type(path),
                    **condition,
                )
        except (_Conflict, FileNotFoundError):  # IfMatch on what is gone is "no such key"
            return False
        return True

    def version(self, path: str) -> str | None:
        head = self._head(path)
        return None if head is None else str(head["ETag"])

    def get(self, path: str) -> bytes:
        with self._faults(path):
            answer = self._client.get_object(Bucket=self.settings.bucket, Key=self._key(path))
            content: bytes = answer["Body"].read()
            return content

    def fetch(self, path: str, folder: Path) -> Path:
        local = folder / path
        if local.is_file():
            return local
        local.parent.mkdir(parents=True, exist_ok=True)
        part = local.with_name(f"{local.name}.{uuid.uuid4().hex}.part")
        with self._faults(path):
            answer = self._client.get_object(Bucket=self.settings.bucket, Key=self._key(path))
            with part.open("wb") as file:
                shutil.copyfileobj(answer["Body"], file)
        if part.stat().st_size != answer["ContentLength"]:
            raise StoreFault(
                f"store {self}: {path} came cut: {part.stat().st_size} of {answer['ContentLength']} bytes"
            )
        return part.replace(local)

    def copy(self, source: str, target: str) -> None:
        with self._faults(source):
            self._client.copy_object(
                Bucket=self.settings.bucket,
                Key=self._key(target),
                CopySource={"Bucket": self.settings.bucket, "Key": self._key(source)},
                ContentType=_content_type(target),
                MetadataDirective="REPLACE",
            )

    def size(self, path: str) -> int | None:
        head = self._head(path)
        return None if head is None else int(head["ContentLength"])

    def list(self, prefix: str) -> Iterator[StoredFile]:
        pages = self._client.get_paginator("list_objects_v2")
        cut = len(self._key(""))
        with self._faults(prefix):
            for page in pages.paginate(Bucket=self.settings.bucket, Prefix=self._key(prefix)):
                for item in page.get("Contents", ()):
                    yield StoredFile(item["Key"][cut:], item["Size"])

    def delete(self, path: str) -> None:
        with self._faults(path):
            self._client.delete_object(Bucket=self.settings.bucket, Key=self._key(path))

    def url(self, path: str) -> str:
        if self.settings.public_url:
            return f"{self.settings.public_url.rstrip('/')}/{urllib.parse.quote(self._key(path))}"
        return self.signed(path, _URL_SECONDS)

    def signed(self, path: str, seconds: float) -> str:
        place = {"Bucket": self.settings.bucket, "Key": self._key(path)}
        lasts = max(1, min(int(seconds), _LONGEST_SECONDS))
        address: str = self._client.generate_presigned_url("get_object", Params=place, ExpiresIn=lasts)
        return address

    def only_run(self, batch: str) -> AbstractContextManager[None]:
        return nullcontext()

    def __str__(self) -> str:
        return f"r2://{self.settings.bucket}/{self.settings.prefix}".rstrip("/")

    def _head(self, path: str) -> dict[str, Any] | None:
        try:
            with self._faults(path):
                answer: dict[str, Any] = self._client.head_object(
                    Bucket=self.settings.bucket, Key=self._key(path)
                )
        except FileNotFoundError:
            return None
        return answer

    def _key(self, path: str) -> str:
        return f"{self.settings.prefix}/{check_path(path)}" if self.settings.prefix else check_path(path)

    @contextmanager
    def _faults(self, path: str) -> Iterator[None]:
        """Turns what boto3 says into FileNotFoundError or a StoreFault that names the object, not the keys."""
        try:
            yield
        except botocore.exceptions.ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _ABSENT:
                raise FileNotFoundError(path) from None
            if code in _CONFLICTS:
                raise _Conflict from None
            message = error.response.get("Error", {}).get("Message", "")
            raise StoreFault(f"store {self}: {path}: {code} {message}".rstrip()) from error
        except (botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error, OSError) as error:
            raise StoreFault(f"store {self}: {path}: {error}") from error


def _content_type(path: str) -> str:
    kind, _ = mimetypes.guess_type(path)
    if path.endswith(".vtt"):
        kind = "text/vtt"
    if kind is None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") or kind.endswith("json") else kind
