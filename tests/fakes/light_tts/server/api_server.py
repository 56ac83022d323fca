"""Stands in for LightTTS: its command line, its start, its processes and its free routes; no model.

    PYTHONPATH=tests/fakes python -m light_tts.server.api_server --model_dir … --port 8080

Environment, none of which has to be set (a PORT limits a knob to the server of that port):
    FAKE_RECORD      file that gets a JSON line for every start, worker, and asked route
    FAKE_DIE         "PORT" or "all": ends with an error while it loads
    FAKE_READY_FILE  answers only once this file is there
    FAKE_STYLES      models it lists, separated by commas
    FAKE_MUTE        its /healthz answers 404, as where the first synthesis failed
    FAKE_WORKER      has a worker that ignores TERM, as LightTTS's do
    FAKE_DEAF        ignores TERM itself
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WORKER = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
)


def record(**event: Any) -> None:
    if path := os.environ.get("FAKE_RECORD"):
        with Path(path).open("a") as file:
            file.write(json.dumps({"pid": os.getpid(), "at": time.monotonic(), **event}) + "\n")


def parse() -> argparse.Namespace:
    """The options of LightTTS's api_cli.py that the start script may use, with its types and defaults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--model_dir")
    parser.add_argument("--max_total_token_num", type=int, default=64 * 1024)
    parser.add_argument("--batch_max_tokens", type=int)
    parser.add_argument("--max_req_total_len", type=int, default=8192)
    parser.add_argument("--encode_process_num", type=int, default=1)
    parser.add_argument("--decode_process_num", type=int, default=1)
    parser.add_argument("--cache_capacity", type=int, default=200)
    parser.add_argument("--health_monitor", action="store_true")
    parser.add_argument("--load_trt", type=bool, default=True)
    arguments = parser.parse_args()
    assert arguments.max_req_total_len <= arguments.max_total_token_num
    assert arguments.batch_max_tokens is None or arguments.batch_max_tokens >= arguments.max_req_total_len, (
        "batch_max_tokens must >= max_req_total_len"
    )
    return arguments


class Routes(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        record(asked=self.path)
        styles = os.environ.get("FAKE_STYLES", "cosyvoice")
        status, body = {
            "/query_tts_model": (200, {"tts_models": [style for style in styles.split(",") if style]}),
            "/healthz": (404, {"message": "Error"})
            if "FAKE_MUTE" in os.environ
            else (200, {"message": "Ok"}),
        }.get(self.path, (404, {"detail": "Not Found"}))
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    arguments = parse()
    record(argv=sys.argv[1:], environ=dict(os.environ), folder=str(Path.cwd()), arguments=vars(arguments))
    if "FAKE_DEAF" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "FAKE_WORKER" in os.environ:
        worker = subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE)
        assert worker.stdout is not None
        worker.stdout.readline()  # it ignores TERM from here on
        record(worker=worker.pid)
    if os.environ.get("FAKE_DIE") in ("all", str(arguments.port)):
        sys.exit("torch.OutOfMemoryError: CUDA out of memory")
    while (ready := os.environ.get("FAKE_READY_FILE")) and not Path(ready).exists():
        time.sleep(0.02)
    ThreadingHTTPServer((arguments.host, arguments.port), Routes).serve_forever()


if __name__ == "__main__":
    main()
