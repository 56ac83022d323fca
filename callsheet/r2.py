"""Cloudflare R2 (or any S3) as a store, over boto3.

    settings = R2Settings.from_environment("r2://media/callsheet")
    store = R2Store(settings)

What is written is compared with what was meant, by its md5 and its ETag; what is read, with the sha256 that
was written beside it. Large files go in parts of equal size, as R2 wants them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import mimetypes
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import boto3
import botocore.config
import botocore.exceptions
from s3transfer.utils import ReadFileChunk  # comes with boto3

from callsheet.digests import Digests
from callsheet.errors import StoreFault
from callsheet.hiding import without
from callsheet.r2_client import R2Settings, client_of, may_pass, refusal
from callsheet.store import StoredFile, check_path, served_bucket

#: Answers that mean that there is no such object; HEAD has no body and gives the bare status.
_ABSENT = ("NoSuchKey", "404", "NotFound")
#: Answers that mean that a conditional write came too late; two at once give 409.
_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "412")
#: How often a file is read on from where its connection broke.
READ_ATTEMPTS = 8
_BROKEN = (
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ReadTimeoutError,
    botocore.exceptions.ResponseStreamingError,
)
#: So many files are asked for one by one rather than by a list, which costs as much as a dozen questions.
_WORTH_A_LIST = 12
#: Files of so many bytes at most are read once, for their hashes and to be sent.
_READ_WHOLE_BYTES = 1 << 20
#: So many files a page of a list tells of at most.
_PAGE = 1_000
#: The metadata that says what an object's content is.
_SHA256 = "sha256"
#: Presigned addresses live for a day; R2 allows up to seven.
_URL_SECONDS = 86_400
_LONGEST_SECONDS = 7 * 86_400
#: The threads that send parts, of however many files at once.
_senders = ThreadPoolExecutor(8, "r2-parts")


class _LargeReads:
    """A file that gives a mebibyte wherever less is asked for: urllib3 asks for 16 KiB, and each costs a turn and a call."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        return self._file.read(max(count, 1 << 20) if count >= 0 else -1)


class _Conflict(Exception):
    """The object is not as the condition of a write says."""


class R2Store:
    """A bucket, or a folder of one, as a store."""

    is_shared = True
    signs = True

    def __init__(self, settings: R2Settings) -> None:
        self.settings = settings
        self.at_once = settings.threads
        self.identity = f"{settings.endpoint} {settings.bucket} {settings.prefix}"
        self._client = client_of(settings)

    def put(
        self,
        path: str,
        content: Path | bytes,
        sent: Callable[[int], None] | None = None,
        *,
        replace: bool = True,
    ) -> str:
        with self._faults(path):
            if isinstance(content, Path) and content.stat().st_size <= _READ_WHOLE_BYTES:
                content = content.read_bytes()
            digests = Digests.of_bytes(content) if isinstance(content, bytes) else Digests.of_file(content)
            if not replace and digests.parts and self._check_same(path, digests):
                return digests.sha256  # what goes in parts cannot be sent on a condition
            if isinstance(content, bytes):
                self._put_whole(path, content, digests, replace=replace)
            elif digests.parts:
                self._put_parts(path, content, digests, sent)
                return digests.sha256
            else:
                with content.open("rb") as file:
                    self._put_whole(path, _LargeReads(file), digests, replace=replace)
            if sent:
                sent(digests.size)
            return digests.sha256

    def put_if(self, path: str, content: bytes, version: str | None) -> bool:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            with self._faults(path):
                self._put_object(path, content, Digests.of_bytes(content), **condition)
        except (_Conflict, FileNotFoundError):  # IfMatch on what is gone is "no such key"
            return False
        return True

    def _put_whole(self, path: str, content: bytes | _LargeReads, digests: Digests, *, replace: bool) -> None:
        if replace:
            self._put_object(path, content, digests)
            return
        try:
            with self._faults(path):
                self._put_object(path, content, digests, IfNoneMatch="*")
        except _Conflict:
            # It came in between; or it is ours, sent again because the answer was lost.
            self._check_same(path, digests)

    def _check_same(self, path: str, digests: Digests) -> bool:
        """Whether the very same file is there. Raises FileExistsError where another one is."""
        head = self._head(path)
        if head is None:
            return False
        if head["ContentLength"] != digests.size or head["Metadata"].get(_SHA256) != digests.sha256:
            raise FileExistsError(path)
        return True

    def _put_object(
        self, path: str, content: bytes | _LargeReads, digests: Digests, **condition: str
    ) -> None:
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

    def _put_parts(
        self, path: str, content: Path, digests: Digests, sent: Callable[[int], None] | None
    ) -> None:
        """Parts of equal size, as R2 wants them; what stands there afterwards is compared. One that was cut off goes on."""
        place = {"Bucket": self.settings.bucket, "Key": self._key(path)}
        upload, there = self._begun(place, digests)
        if upload is None:
            headers = _headers(path, digests.sha256)
            upload = self._client.create_multipart_upload(**place, **headers)["UploadId"]

        def put(number: int) -> None:
            start = (number - 1) * digests.part_bytes
            if number not in there:
                md5 = base64.b64encode(digests.parts[number - 1]).decode()
                with ReadFileChunk.from_filename(str(content), start, digests.part_bytes) as body:
                    self._client.upload_part(
                        **place, UploadId=upload, PartNumber=number, Body=body, ContentMD5=md5
                    )
            if sent:
                sent(min(digests.part_bytes, digests.size - start))

        numbers = range(1, len(digests.parts) + 1)
        under_way = [_senders.submit(put, number) for number in numbers]
        try:
            for part in under_way:
                part.result()
        except BaseException:
            for part in under_way:
                part.cancel()  # the others would not get through either
            raise
        parts = [{"PartNumber": n, "ETag": f'"{digests.parts[n - 1].hex()}"'} for n in numbers]
        self._complete(place, upload, parts)
        head = self._client.head_object(**place)
        self._compare(path, head["ETag"], digests)
        if head["ContentLength"] != digests.size:
            raise StoreFault(
                f"store {self}: {path}: {head['ContentLength']:,} bytes are there, and {digests.size:,} were written"
            )

    def _complete(self, place: Mapping[str, str], upload: str, parts: list[dict[str, Any]]) -> None:
        try:
            self._client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
        except self._client.exceptions.ClientError as error:
            # Its answer was lost and it was sent again, or another brought the same file: what stands there decides.
            if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
                raise

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
            if parts:  # one without any may have been begun by another a moment ago
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

    def sizes(self, paths: Iterable[str]) -> dict[str, int]:
        """Asks for each, or lists the folder where many of its files are wanted: whichever takes fewer requests."""
        by_folder: dict[str, list[str]] = {}
        for path in sorted(set(paths)):
            by_folder.setdefault(path.rpartition("/")[0], []).append(path)
        runs = []
        for folder, wanted in by_folder.items():
            step = max(_WORTH_A_LIST, -(-len(wanted) // self.at_once))
            runs += [(f"{folder}/", wanted[at : at + step]) for at in range(0, len(wanted), step)]
        found: dict[str, int] = {}
        with ThreadPoolExecutor(self.at_once) as pool:
            for part in pool.map(lambda run: self._sizes(*run), runs):
                found |= part
        return found

    def _sizes(self, folder: str, wanted: Sequence[str]) -> dict[str, int]:
        """Sizes of files of one folder, in order. A page of a list that tells of few of them is not asked for again soon."""
        found: dict[str, int] = {}
        at, asked_until = 0, 0
        # A whole page takes a while to make and to read. Beside a medium lies its sidecar: where that is all, this will do.
        most = min(_PAGE, 2 * len(wanted) + _WORTH_A_LIST)
        while at < len(wanted):
            if len(wanted) - at < _WORTH_A_LIST or at < asked_until:
                if (size := self.size(wanted[at])) is not None:
                    found[wanted[at]] = size
                at += 1
                continue
            page, last = self._page(folder, wanted[at], most)
            began = at
            while at < len(wanted) and (last is None or wanted[at] <= last):
                if wanted[at] in page:
                    found[wanted[at]] = page[wanted[at]]
                at += 1
            if at - began < _WORTH_A_LIST and most == _PAGE:
                asked_until = at + 20 * _WORTH_A_LIST
            most = _PAGE
        return found

    def _page(self, folder: str, first: str, most: int) -> tuple[dict[str, int], str | None]:
        """Up to ``most`` files of a folder from ``first`` on, with their sizes; the last of them, None where no more come."""
        with self._faults(folder):
            answer = self._client.list_objects_v2(
                Bucket=self.settings.bucket,
                Prefix=self._key(folder),
                StartAfter=self._key(first)[:-1],  # just before it: what a list starts after is not in it
                MaxKeys=most,
            )
        cut = len(self._key(""))
        page = {item["Key"][cut:]: int(item["Size"]) for item in answer.get("Contents", ())}
        return page, max(page) if answer.get("IsTruncated") and page else None

    def list(self, prefix: str) -> Iterator[StoredFile]:
        pages = self._client.get_paginator("list_objects_v2")
        cut = len(self._key(""))
        with self._faults(prefix):
            for page in pages.paginate(Bucket=self.settings.bucket, Prefix=self._key(prefix)):
                for item in page.get("Contents", ()):
                    yield StoredFile(item["Key"][cut:], item["Size"], item["LastModified"].timestamp())

    def delete(self, path: str) -> None:
        with self._faults(path):
            self._client.delete_object(Bucket=self.settings.bucket, Key=self._key(path))

    def url(self, path: str) -> str:
        return self.link(path) or self.signed(path, _URL_SECONDS)

    def link(self, path: str) -> str:
        if public := self.settings.public_url.rstrip("/"):
            return f"{public}/{urllib.parse.quote(self._key(path))}"
        served = served_bucket(str(self))
        return f"{served}/{urllib.parse.quote(path)}" if served else ""

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
        except (FileNotFoundError, FileExistsError):
            raise
        except botocore.exceptions.ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _ABSENT:
                raise FileNotFoundError(path) from None
            if code in _CONFLICTS:
                raise _Conflict from None
            told = self._without_keys(error.response.get("Error", {}).get("Message", ""))
            what = f"store {self}: {path}: {code} {refusal(error, self.settings) or told}".rstrip()
            raise StoreFault(what, may_pass=may_pass(error)) from error
        except (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError) as error:
            raise StoreFault(f"store {self}: {path}: {self._without_keys(error)}", may_pass=True) from error
        except (botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error, OSError) as error:
            raise StoreFault(f"store {self}: {path}: {self._without_keys(error)}") from error

    def _without_keys(self, told: object) -> str:
        """A store that refuses a request may repeat it, and so may what cannot send one."""
        keys = (self.settings.secret_access_key.get_secret_value(), self.settings.access_key_id)
        return without(str(told), keys)


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
    return _type_of(PurePosixPath(path).suffix)


@functools.lru_cache(64)  # one is asked for with every request
def _type_of(suffix: str) -> str:
    kind, _ = mimetypes.guess_type(f"file{suffix}")
    if suffix == ".vtt":
        kind = "text/vtt"
    if kind is None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") or kind.endswith("json") else kind
