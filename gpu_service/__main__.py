"""Starts the draft host on 127.0.0.1 and prints its address as one line of JSON.

python -m gpu_service --draft --port 8000
{"url": "http://127.0.0.1:8000"}
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from callsheet.serving import listen, serve
from callsheet.workflow import SHIPPED_WORKFLOWS, read_workflows
from gpu_service.app import draft_app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gpu_service", description=__doc__)
    parser.add_argument("--draft", action="store_true", required=True, help="serve drafts: no GPU, no models")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; a free one when not given")
    parser.add_argument(
        "--workflows",
        type=Path,
        default=SHIPPED_WORKFLOWS,
        help="folder of the workflows whose models it has",
    )
    parser.add_argument(
        "--with-parent",
        action="store_true",
        help="end when standard input closes, which it does when the parent dies",
    )
    options = parser.parse_args()
    app = draft_app(read_workflows(options.workflows))
    asyncio.run(serve(app, listen(options.port), with_parent=options.with_parent))


if __name__ == "__main__":
    main()
