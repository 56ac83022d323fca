"""Where Callsheet keeps what belongs to this machine and its user: ``~/.callsheet``, or CALLSHEET_HOME."""

from __future__ import annotations

import os
from pathlib import Path


def callsheet_home() -> Path:
    """The folder; it may not be there yet."""
    base = os.environ.get("CALLSHEET_HOME")
    return Path(base) if base else Path.home() / ".callsheet"
