"""What our blocks share: the logo, and how it gets into Prefect's register of block types.

class GpuFleet(CallsheetBlock):
    "The hosts that a batch may use."
"""

from __future__ import annotations

from typing import Any, ClassVar

from prefect.blocks.core import Block

#: 64 x 64 PNG: a clapperboard. Inside the code, so that nothing is fetched to show or to test it.
LOGO = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAMAAACdt4HsAAAAYFBMVEX9x1QfJjIiJzMAAFYiKzJaXG"
    "He4eUvNUCKjpbfrk+4u8FXTjuwjkkfJjSPdURVVVUAVVV6ejJgVT3/qlVQSDp4ZUF/Pz9BPzt4fYX//wD//3////8iKDQAAADz9f"
    "gVHCsXcczNAAAAIHRSTlP++kcCFP7////+//v6ofkDAwOVA3K0BP//AQIB/gD//r5F6mkAAAIwSURBVHja5ZfrkpswDIUtIwiuDQ"
    "npbq8mfv+3rJAJNqRgA73N9PzILDPWJx1ZyhLRn5T4fwHFp+4EAD+eqOCGX5nxBrK/7gZgwZ/y3hoFzU7AtfPBjTZKCKHAYr6Fov"
    "s2RlsLHC5aZ2VfZAF83b28a0sCECwNtukxCSjQM97eDSe11pUcTw4sYMKCvy2qm6vmpBRl+G+GIXkQmy3rKZhixqTeQQST5EFs1C"
    "3v5vNwzkVJnQ4wasJPLOAtXPWY1EZJCTY8GceEZROv3ffhk1yPSU2cFAaAh6kBBo2cAULLpnNCu+CAYaCFMqWGIbiIdmF0Le+lac"
    "Gf806XMNDaOp+a1uIW9QBRvvOI+qTtLCnLO3gGX8cCGFAMdcOrU1FOMKp7cC2xC2sZAAj+nFok9TBQqiXTjlIjFTopfB9g39hxR2"
    "ZJeVx5dtxA8g9BDT4BRS+DUz+uKkzOa+RTgDFgbBsn5YVTRtuEmrgH8Y6Apqu2zqUA0zLhYkfo0YHNkAyA2Y5kKwbQjtBt2cMAy1"
    "cNJwBud/QCcEgvAEhrEwBwSWo2lwsAlFWGSlgDAFSP6pEQHXHrFdSPDJUbAFtmyG3dgksLfuscQEYFbgMAlzqtLxtzYKucW6g3bu"
    "E0oPyQVn2Bk02Ev7HO+XOwss6riNx1rvMAq+tczTZwq4K1da5yLaytc24PVtf5D36t79X437ngN5QDCi/bCAcLmF7zsDmYP3pPlD"
    "uFg/df+sPzVuzUP/Pb+QcioGbNOwAIIwAAAABJRU5ErkJggg=="
)


class CallsheetBlock(Block):
    """A block of Callsheet's."""

    _logo_url: ClassVar[Any] = LOGO

    @classmethod
    def _to_block_type(cls) -> Any:
        """Prefect's register takes http(s) addresses only, and we publish none: the type goes in without a logo."""
        logo, cls._logo_url = cls._logo_url, None
        try:
            return super()._to_block_type()
        finally:
            cls._logo_url = logo
