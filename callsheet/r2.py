"""Cloudflare R2 (or any S3) as a store, over boto3.

    settings = R2Settings.from_environment("r2://media/callsheet")
    store = R2Store(settings)

The client's settings are those that R2 needs (facts, section 7): boto3's newer checksum headers are
off, because some of R2's paths reject them, and addresses have the bucket in the path.
"""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import os
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import boto3
import botocore.config
import botocore.exceptions
from pydantic import SecretStr
from s3transfer.utils import ReadFileChunk  # comes with boto3

from callsheet.errors import BadInput, StoreFault
from callsheet.store import StoredFile, check_path
from callsheet.timing import scaled

#: Answers that mean that there is no such object; HEAD has no body and gives the bare status.
_ABSENT = ("NoSuchKey", "404", "NotFound")
#: Answers that mean that a conditional write came too late; two at once give 409.
_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "412")
#: Files of so many bytes and more go in parts of this size.
PART_BYTES = 64 << 20
#: How often a file is read on from where its connection broke.
READ_ATTEMPTS = 8
_BROKEN = (
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ReadTimeoutError,
    botocore.exceptions.ResponseStreamingError,
)
#: The metadata that says what an object's content is.
_SHA256 = "sha256"
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


@dataclass(frozen=True)
class Digests:
    """What a file is known by.

    Attributes:
        parts: the md5 of each part that it goes in, where it is large.
        etag: what S3 calls it: its md5, or where it goes in parts the md5 of their md5s and how many there are.
    """

    size: int
    sha256: str
    md5: bytes
    etag: str
    parts: tuple[bytes, ...] = ()

    @classmethod
    def of_bytes(cls, content: bytes) -> Digests:
        md5 = hashlib.md5(content, usedforsecurity=False)
        return cls(len(content), hashlib.sha256(content).hexdigest(), md5.digest(), md5.hexdigest())

    @classmethod
    def of_file(cls, path: Path) -> Digests:
        sha256, md5, parts, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), list[bytes](), 0
        with path.open("rb") as file:
            part = hashlib.md5(usedforsecurity=False)
            while chunk := file.read(1 << 20):
                for digest in (sha256, md5, part):
                    digest.update(chunk)
                size += len(chunk)
                if size % PART_BYTES == 0:
                    parts.append(part.digest())
                    part = hashlib.md5(usedforsecurity=False)
        if size % PART_BYTES:
            parts.append(part.digest())
        etag = md5.hexdigest()
        if size >= PART_BYTES:
            etag = f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"
        return cls(size, sha256.hexdigest(), md5.digest(), etag, tuple(parts) if size >= PART_BYTES else ())

    @property
    def content_md5(self) -> str:
        return base64.b64encode(self.md5).decode()


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

    def put(self, path: str, content: Path | bytes) -> None:
        with self._faults(path):
            if isinstance(content, bytes):
                self._put_whole(path, content, Digests.of_bytes(content))
                return
            digests = Digests.of_file(content)
            if digests.size < PART_BYTES:
                with content.open("rb") as file:
                    self._put_whole(path, file, digests)
            else:
                self._put_parts(path, content, digests)

    def put_if(self, path: str, content: bytes, version: str | None) -> bool:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            with self._faults(path):
                self._put_whole(path, content, Digests.of_bytes(content), **condition)
        except (_Conflict, FileNotFoundError):  # IfMatch on what is gone is "no such key"
            return False
        return True

    def _put_whole(self, path: str, content: bytes | BinaryIO, digests: Digests, **condition: str) -> None:
        """One request; the server refuses what is not as long, or not the same, as what was meant."""
        answer = self._client.put_object(
            Bucket=self.settings.bucket,
            Key=self._key(path),
            Body=content,
            ContentMD5=digests.content_md5,
            **_headers(path, digests.sha256),
            **condition,
        )
        self._compare(path, answer["ETag"], digests)

    def _put_parts(self, path: str, content: Path, digests: Digests) -> None:
        """Parts of equal size, as R2 wants them; what stands there afterwards is compared. One that was cut off goes on."""
        place = {"Bucket": self.settings.bucket, "Key": self._key(path)}
        upload, there = self._begun(place, digests)
        if upload is None:
            headers = _headers(path, digests.sha256)
            upload = self._client.create_multipart_upload(**place, **headers)["UploadId"]

        def put(number: int) -> None:
            body = ReadFileChunk.from_filename(str(content), (number - 1) * PART_BYTES, PART_BYTES)
            md5 = base64.b64encode(digests.parts[number - 1]).decode()
            with body:
                self._client.upload_part(
                    **place, UploadId=upload, PartNumber=number, Body=body, ContentMD5=md5
                )

        numbers = range(1, len(digests.parts) + 1)
        with ThreadPoolExecutor(self.settings.threads) as pool:
            sent = [pool.submit(put, number) for number in numbers if number not in there]
            try:
                for part in sent:
                    part.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # the others would not get through either
                raise
        parts = [{"PartNumber": n, "ETag": f'"{digests.parts[n - 1].hex()}"'} for n in numbers]
        try:
            self._client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
        except self._client.exceptions.ClientError as error:
            # Its answer was lost and it was sent again, or another brought the same file: what stands there decides.
            if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
                raise
        head = self._client.head_object(**place)
        self._compare(path, head["ETag"], digests)
        if head["ContentLength"] != digests.size:
            raise StoreFault(
                f"store {self}: {path}: {head['ContentLength']:,} bytes are there, and {digests.size:,} were written"
            )

    def _begun(self, place: Mapping[str, str], digests: Digests) -> tuple[str | None, set[int]]:
        """An upload of this very file that was begun and not ended, and the parts that it has; those of others are ended."""
        bucket, key = place["Bucket"], place["Key"]
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key)
        begun = [one["UploadId"] for page in pages for one in page.get("Uploads", ()) if one["Key"] == key]
        for upload in begun:
            listed = self._client.get_paginator("list_parts").paginate(**place, UploadId=upload)
            parts = {
                part["PartNumber"]: part["ETag"].strip('"')
                for page in listed
                for part in page.get("Parts", ())
            }
            meant = {number: digest.hex() for number, digest in enumerate(digests.parts, 1)}
            if parts and parts.items() <= meant.items():
                return upload, set(parts)
            self._client.abort_multipart_upload(**place, UploadId=upload)
        return None, set()

    def _compare(self, path: str, etag: str, digests: Digests) -> None:
        if etag.strip('"') != digests.etag:
            raise StoreFault(
                f"store {self}: {path}: what is there has the ETag {etag}, and what was written has {digests.etag}"
            )

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
        try:
            with self._faults(path):
                self._read_into(path, part)
            return part.replace(local)
        except _Conflict:
            raise StoreFault(f"store {self}: {path} was changed while it was read") from None
        finally:
            part.unlink(missing_ok=True)

    def _read_into(self, path: str, part: Path) -> None:
        """Reads a file, from where it stood each time that the connection broke; what it is to be is known by its metadata."""
        place = {"Bucket": self.settings.bucket, "Key": self._key(path)}
        sha256, condition, total = hashlib.sha256(), dict[str, str](), None
        with part.open("wb") as file:
            for attempt in range(READ_ATTEMPTS):
                if file.tell():
                    condition["Range"] = f"bytes={file.tell()}-"
                answer = self._client.get_object(**place, **condition)
                if total is None:
                    total, meant = answer["ContentLength"], answer["Metadata"].get(_SHA256)
                    condition["IfMatch"] = answer[
                        "ETag"
                    ]  # the rest of another file is not the rest of this one
                try:
                    for chunk in answer["Body"].iter_chunks(1 << 20):
                        file.write(chunk)
                        sha256.update(chunk)
                except _BROKEN:
                    if attempt == READ_ATTEMPTS - 1:
                        raise
                if file.tell() == total:
                    break
        if (found := part.stat().st_size) != total:
            raise StoreFault(f"store {self}: {path} came cut: {found} of {total} bytes")
        if meant and sha256.hexdigest() != meant:
            raise StoreFault(
                f"store {self}: {path} is not what was written: its sha256 is {sha256.hexdigest()}"
            )

    def copy(self, source: str, target: str) -> None:
        with self._faults(source):
            self._client.copy_object(
                Bucket=self.settings.bucket,
                Key=self._key(target),
                CopySource={"Bucket": self.settings.bucket, "Key": self._key(source)},
                MetadataDirective="REPLACE",
                **_headers(target, self._sha256(source)),
            )

    def _sha256(self, path: str) -> str:
        head = self._head(path)
        if head is None:
            raise FileNotFoundError(path)
        return str(head["Metadata"].get(_SHA256, ""))

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
        except FileNotFoundError:
            raise
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


def _headers(path: str, sha256: str) -> dict[str, Any]:
    """What an object is served with, and what its content is."""
    # A take never changes: its name is the hash of what it was made from. Pages do, and with them what they link to.
    is_take = path.startswith("takes/") and not path.endswith(".json")
    cache = "public, max-age=31536000, immutable" if is_take else "no-cache"
    return {
        "ContentType": _content_type(path),
        "CacheControl": cache,
        "Metadata": {_SHA256: sha256} if sha256 else {},
    }


def _content_type(path: str) -> str:
    kind, _ = mimetypes.guess_type(path)
    if path.endswith(".vtt"):
        kind = "text/vtt"
    if kind is None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") or kind.endswith("json") else kind
