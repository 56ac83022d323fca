"""What a file is known by in a store: its length, its sha256, and what S3 calls it."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callsheet.errors import StoreFault

#: Files of so many bytes and more go in parts of this size.
PART_BYTES = 64 << 20


#: So many large files are hashed at once: the first are on their way while others wait their turn, and not all at the end.
_hashing = threading.Semaphore(max(1, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True)
class Digests:
    """What a file is known by.

    Attributes:
        md5: of all of it; of the parts' md5s where it is large.
        parts: the md5 of each part that it goes in, where it is large.
        etag: what S3 calls it: its md5, or where it goes in parts the md5 of their md5s and how many there are.
    """

    size: int
    sha256: str
    md5: bytes
    etag: str
    parts: tuple[bytes, ...] = ()
    part_bytes: int = 0

    @classmethod
    def of_bytes(cls, content: bytes) -> Digests:
        md5 = _md5(content)
        return cls(len(content), hashlib.sha256(content).hexdigest(), md5.digest(), md5.hexdigest())

    @classmethod
    def of_file(cls, path: Path) -> Digests:
        sha256, md5, parts, size = hashlib.sha256(), _md5(), list[bytes](), path.stat().st_size
        part = _md5()
        read = 0
        with _hashing, path.open("rb") as file:
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
                # What goes in parts is known by theirs, what goes whole by its own.
                (part if size >= PART_BYTES else md5).update(chunk)
                read += len(chunk)
                if read % PART_BYTES == 0:
                    parts.append(part.digest())
                    part = _md5()
        if read != size:
            raise StoreFault(f"{path.name} was changed while it was read")
        if size < PART_BYTES:
            return cls(size, sha256.hexdigest(), md5.digest(), md5.hexdigest())
        if size % PART_BYTES:
            parts.append(part.digest())
        joined = _md5(b"".join(parts))
        return cls(
            size,
            sha256.hexdigest(),
            joined.digest(),
            f"{joined.hexdigest()}-{len(parts)}",
            tuple(parts),
            PART_BYTES,
        )

    @property
    def content_md5(self) -> str:
        return base64.b64encode(self.md5).decode()


def _md5(content: bytes = b"") -> Any:
    return hashlib.md5(content, usedforsecurity=False)  # S3's checksum, and no secret
