"""`deployments/hosts/lighttts.sh` on real processes, with a stand-in where LightTTS would be."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "deployments/hosts/lighttts.sh"
MODEL_FILES = (
    "cosyvoice2.yaml llm.pt flow.pt hift.pt campplus.onnx speech_tokenizer_v2.onnx "
    "flow.decoder.estimator.fp32.onnx CosyVoice-BlankEN/config.json CosyVoice-BlankEN/model.safetensors "
    "CosyVoice-BlankEN/tokenizer_config.json CosyVoice-BlankEN/vocab.json CosyVoice-BlankEN/merges.txt"
).split()

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the script is for Linux hosts")


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def until(condition: Callable[[], Any], seconds: float = 5) -> Any:
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
    return result


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Host:
    """A GPU host as the script sees it: a model, a LightTTS, an nvidia-smi, and the settings of its operator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model"
        self.run_dir = folder / "run"
        self.port, self.second = free_ports(2)
        for name in MODEL_FILES:
            (self.model / name).parent.mkdir(parents=True, exist_ok=True)
            (self.model / name).write_bytes(b"weights")
        self.nvidia_smi("echo 0, NVIDIA A10, 1 MiB, 23028 MiB")
        self.environ = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "LIGHTTTS_HOME": str(ROOT / "tests/fakes"),
            "LIGHTTTS_PYTHON": sys.executable,
            "LIGHTTTS_MODEL_DIR": str(self.model),
            "LIGHTTTS_RUN_DIR": str(self.run_dir),
            "LIGHTTTS_PORT": str(self.port),
            "LIGHTTTS_SECOND_PORT": str(self.second),
            "LIGHTTTS_STAGGER_SECONDS": "0",
            "LIGHTTTS_START_SECONDS": "10",
            "LIGHTTTS_STOP_SECONDS": "5",
            "FAKE_RECORD": str(folder / "record"),
        }

    def nvidia_smi(self, command: str) -> None:
        program = self.folder / "bin/nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{command}\n")
        program.chmod(0o755)

    def popen(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(SCRIPT), *arguments],
            env=self.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )

    def call(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        process = self.popen(*arguments, **environ)
        out, err = process.communicate(timeout=20)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def start(self, *arguments: str, **environ: str) -> None:
        done = self.call("start", *arguments, **environ)
        assert done.returncode == 0, done.stderr

    def refusal(self, *arguments: str, **environ: str) -> str:
        """What `start` says, having started nothing."""
        done = self.call("start", *arguments, **environ)
        assert done.returncode == 1, done.stdout
        assert not self.records("argv")
        return done.stderr

    def records(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "record"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if kind in event]

    def pid_file(self, port: int | None = None) -> Path:
        return self.run_dir / f"lighttts-{port or self.port}.pid"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.call("stop", LIGHTTTS_STOP_SECONDS="0")
    left = [event for kind in ("argv", "worker") for event in host.records(kind)]
    left_pids = {event["pid"] for event in left} | {event["worker"] for event in left if "worker" in event}
    assert not [pid for pid in left_pids if lives(pid)]


# --- what is refused before anything starts -------------------------------------------------------


def test_batch_smaller_than_request_is_refused_before_anything_starts(host: Host) -> None:
    said = host.refusal(LIGHTTTS_BATCH_MAX_TOKENS="8192", LIGHTTTS_MAX_REQ_TOTAL_LEN="16384")
    assert "LIGHTTTS_BATCH_MAX_TOKENS is 8192" in said
    assert "LIGHTTTS_MAX_REQ_TOTAL_LEN is 16384" in said
    assert not host.run_dir.exists()


def test_memory_smaller_than_batch_is_refused_before_anything_starts(host: Host) -> None:
    said = host.refusal("double", LIGHTTTS_MAX_TOTAL_TOKEN_NUM="12000")
    assert "LIGHTTTS_MAX_TOTAL_TOKEN_NUM is 12000" in said
    assert "LIGHTTTS_BATCH_MAX_TOKENS is 12288" in said


@pytest.mark.parametrize("value", ["-1", "16k", "0", "1.5", "010"])
def test_parameter_that_is_no_count_is_refused(host: Host, value: str) -> None:
    assert f'LIGHTTTS_CACHE_CAPACITY is "{value}"' in host.refusal(LIGHTTTS_CACHE_CAPACITY=value)


def test_every_file_that_a_model_lacks_is_named_at_once(host: Host) -> None:
    (host.model / "flow.pt").unlink()
    (host.model / "hift.pt").write_bytes(b"")
    (host.model / "llm.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (host.model / "CosyVoice-BlankEN/vocab.json").unlink()
    said = host.refusal()
    assert said.strip().endswith(": llm.pt flow.pt hift.pt CosyVoice-BlankEN/vocab.json")


def test_a_cosyvoice_3_model_needs_the_tokenizer_of_version_3(host: Host) -> None:
    (host.model / "cosyvoice2.yaml").rename(host.model / "cosyvoice3.yaml")
    assert host.refusal().strip().endswith(": speech_tokenizer_v3.onnx")
    (host.model / "speech_tokenizer_v2.onnx").rename(host.model / "speech_tokenizer_v3.onnx")
    host.start()


def test_a_built_plan_or_no_tensorrt_does_without_what_a_plan_is_built_from(host: Host) -> None:
    (host.model / "flow.decoder.estimator.fp32.onnx").unlink()
    (host.model / "flow.decoder.estimator.fp16.a10.plan").write_bytes(
        b"CosyVoice's, which LightTTS does not read"
    )
    assert "flow.decoder.estimator.fp32.onnx" in host.refusal()
    (host.model / "flow.decoder.estimator.fp16.sm86.plan").write_bytes(b"plan")
    host.start()
    host.call("stop")
    (host.model / "flow.decoder.estimator.fp16.sm86.plan").unlink()
    host.start(LIGHTTTS_LOAD_TRT="False")
    assert host.records("argv")[-1]["arguments"]["load_trt"] is False


def test_a_folder_that_is_not_there_is_named(host: Host) -> None:
    assert "LIGHTTTS_MODEL_DIR is not set" in host.refusal(LIGHTTTS_MODEL_DIR="")
    assert "LIGHTTTS_MODEL_DIR is /nowhere" in host.refusal(LIGHTTTS_MODEL_DIR="/nowhere")
    assert "LIGHTTTS_HOME is /nowhere" in host.refusal(LIGHTTTS_HOME="/nowhere")
    assert "LIGHTTTS_PYTHON is nowhere/python" in host.refusal(LIGHTTTS_PYTHON="nowhere/python")


def test_a_gpu_that_does_not_work_is_refused_and_its_fault_told(host: Host) -> None:
    host.nvidia_smi("echo 'Driver/library version mismatch'; exit 18")
    assert "Driver/library version mismatch" in host.refusal()


def test_a_host_without_nvidia_smi_is_warned_of_and_works(host: Host) -> None:
    (host.folder / "bin/nvidia-smi").unlink()
    for tool in "sh cat date dirname flock grep head mkdir mv rm sed setsid sleep tail tr".split():
        (host.folder / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    done = host.call("start", PATH=str(host.folder / "bin"))
    assert done.returncode == 0
    assert "nvidia-smi is not there" in done.stderr


def test_a_port_of_another_program_is_refused(host: Host) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", host.port))
        other.listen()
        assert f"port {host.port} is taken" in host.refusal()


def test_starting_twice_is_refused_and_the_first_goes_on(host: Host) -> None:
    host.start()
    (first,) = host.records("argv")
    for mode in ("single", "double"):
        again = host.call("start", mode)
        assert again.returncode == 1
        assert f"already running (process {first['pid']})" in again.stderr
    assert host.records("argv") == [first]
    assert host.call("status").returncode == 0


def test_two_starts_at_once_start_one_server(host: Host) -> None:
    ready = host.folder / "ready"
    first = host.popen("start", FAKE_READY_FILE=str(ready))
    until(lambda: host.records("argv"))
    second = host.call("start", LIGHTTTS_PORT=str(host.second))
    ready.touch()
    assert "another start is at work" in second.stderr
    assert first.wait(10) == 0
    assert len(host.records("argv")) == 1


# --- what is started ------------------------------------------------------------------------------


def test_single_runs_one_server_with_the_proven_parameters_on_this_machine_alone(host: Host) -> None:
    host.start()
    (server,) = host.records("argv")
    assert server["arguments"] == {
        "host": "127.0.0.1",
        "port": host.port,
        "model_dir": str(host.model),
        "max_total_token_num": 32768,
        "max_req_total_len": 16384,
        "batch_max_tokens": 16384,
        "cache_capacity": 100,
        "encode_process_num": 1,
        "decode_process_num": 1,
        "load_trt": True,
        "health_monitor": False,
    }
    assert httpx.get(f"http://127.0.0.1:{host.port}/query_tts_model").json() == {"tts_models": ["cosyvoice"]}


def test_double_runs_two_smaller_servers(host: Host) -> None:
    host.start("double")
    servers = [server["arguments"] for server in host.records("argv")]
    assert [server["port"] for server in servers] == [host.port, host.second]
    for server in servers:
        assert (server["max_total_token_num"], server["max_req_total_len"]) == (24576, 12288)
        assert (server["batch_max_tokens"], server["cache_capacity"]) == (12288, 80)


def test_every_parameter_can_be_set(host: Host) -> None:
    wanted = {
        "max_total_token_num": 400,
        "max_req_total_len": 200,
        "batch_max_tokens": 300,
        "cache_capacity": 7,
        "encode_process_num": 2,
        "decode_process_num": 3,
    }
    settings = {f"LIGHTTTS_{name.upper()}": str(value) for name, value in wanted.items()}
    host.start(LIGHTTTS_BIND="0.0.0.0", **settings)
    (server,) = host.records("argv")
    assert wanted.items() <= server["arguments"].items()
    assert server["arguments"]["host"] == "0.0.0.0"


def test_the_server_finds_its_code_and_the_programs_of_its_python(host: Host) -> None:
    host.start(PYTHONPATH="/own")
    environ = host.records("argv")[0]["environ"]
    assert environ["PYTHONPATH"] == f"{ROOT / 'tests/fakes'}:/own"
    assert environ["PATH"].startswith(f"{Path(sys.executable).parent}:")  # LightTTS calls `gunicorn`


def test_relative_folders_are_those_of_whoever_calls(host: Host) -> None:
    host.start(LIGHTTTS_MODEL_DIR="model", LIGHTTTS_RUN_DIR="./run")
    assert host.records("argv")[0]["arguments"]["model_dir"] == str(host.model)
    assert host.call("stop", LIGHTTTS_RUN_DIR="run").returncode == 0
    assert not lives(host.records("argv")[0]["pid"])


def test_the_second_server_waits_out_the_stagger(host: Host) -> None:
    host.start("double", LIGHTTTS_STAGGER_SECONDS="2")
    first, second = host.records("argv")
    assert second["at"] - first["at"] >= 1  # `date` counts whole seconds, so 2 of it are more than 1


def test_the_second_server_is_not_started_when_the_first_has_died(host: Host) -> None:
    done = host.call("start", "double", FAKE_DIE=str(host.port), LIGHTTTS_STAGGER_SECONDS="30")
    assert done.returncode == 1
    assert "CUDA out of memory" in done.stderr
    assert [server["arguments"]["port"] for server in host.records("argv")] == [host.port]


def test_two_servers_do_not_build_one_tensorrt_plan_at_once(host: Host) -> None:
    ready = host.folder / "ready"
    starting = host.popen("start", "double", FAKE_READY_FILE=str(ready))
    until(lambda: host.records("argv"))
    time.sleep(0.7)  # the stagger is over, and a second server would have recorded its start
    assert len(host.records("argv")) == 1
    ready.touch()
    assert starting.wait(10) == 0
    assert len(host.records("argv")) == 2


# --- until it is ready ----------------------------------------------------------------------------


def test_start_comes_back_only_when_the_server_answers(host: Host) -> None:
    ready = host.folder / "ready"
    starting = host.popen("start", FAKE_READY_FILE=str(ready))
    until(lambda: host.pid_file().exists() and host.records("argv"))
    assert "does not answer" in host.call("status").stdout
    assert starting.poll() is None
    ready.touch()
    out, _ = starting.communicate(timeout=10)
    assert starting.returncode == 0
    assert "ready, models: cosyvoice" in out
    assert [event["asked"] for event in host.records("asked")] == ["/query_tts_model", "/healthz"]


def test_a_server_that_dies_while_it_loads_fails_with_the_end_of_its_log(host: Host) -> None:
    done = host.call("start", FAKE_DIE="all", FAKE_WORKER="1")
    assert done.returncode == 1
    assert "CUDA out of memory" in done.stderr
    assert not host.pid_file().exists()
    assert not lives(host.records("worker")[0]["worker"])


def test_a_failed_second_server_takes_the_first_along(host: Host) -> None:
    done = host.call("start", "double", FAKE_DIE=str(host.second))
    assert done.returncode == 1
    assert not any(lives(server["pid"]) for server in host.records("argv"))
    assert not list(host.run_dir.glob("*.pid"))


def test_a_server_that_is_never_ready_is_given_up_and_ended(host: Host) -> None:
    done = host.call("start", FAKE_READY_FILE="/nowhere", LIGHTTTS_START_SECONDS="1")
    assert done.returncode == 1
    assert "not ready after 1 s" in done.stderr
    (pid,) = re.findall(r"started, process (\d+)", done.stdout)  # it may not have come to record its start
    assert not lives(int(pid))


def test_a_server_without_a_model_is_not_ready(host: Host) -> None:
    done = host.call("start", FAKE_STYLES="", LIGHTTTS_START_SECONDS="1")
    assert "not ready after 1 s" in done.stderr


def test_a_server_that_cannot_speak_is_not_left_running(host: Host) -> None:
    done = host.call("start", FAKE_MUTE="1")
    assert done.returncode == 1
    assert "cannot speak (/healthz)" in done.stderr
    assert not lives(host.records("argv")[0]["pid"])


def test_no_synthesis_is_asked_for_where_healthz_is_off(host: Host) -> None:
    host.start(LIGHTTTS_HEALTHZ="0", FAKE_MUTE="1")
    assert {event["asked"] for event in host.records("asked")} == {"/query_tts_model"}


def test_an_interrupted_start_leaves_nothing_running(host: Host) -> None:
    starting = host.popen("start", FAKE_READY_FILE="/nowhere", FAKE_WORKER="1")
    until(lambda: host.records("worker"))
    starting.send_signal(signal.SIGTERM)
    assert starting.wait(10) == 1
    assert not lives(host.records("argv")[0]["pid"])
    assert not lives(host.records("worker")[0]["worker"])
    assert not host.pid_file().exists()


# --- stop and status ------------------------------------------------------------------------------


def test_stop_ends_the_server_and_the_workers_that_ignore_it(host: Host) -> None:
    host.start("double", FAKE_WORKER="1")
    assert host.call("stop").returncode == 0
    assert not any(lives(server["pid"]) for server in host.records("argv"))
    assert not any(lives(event["worker"]) for event in host.records("worker"))
    assert not list(host.run_dir.glob("*.pid"))


def test_a_server_that_does_not_listen_is_killed(host: Host) -> None:
    host.start(FAKE_DEAF="1")
    assert host.call("stop", LIGHTTTS_STOP_SECONDS="1").returncode == 0
    assert not lives(host.records("argv")[0]["pid"])


def test_stop_ends_a_start_that_is_under_way(host: Host) -> None:
    starting = host.popen("start", FAKE_READY_FILE="/nowhere")
    until(lambda: host.records("argv"))
    assert host.call("stop").returncode == 0
    assert starting.wait(10) == 1
    assert not lives(host.records("argv")[0]["pid"])


def test_stop_does_not_touch_a_process_that_is_not_ours(host: Host) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        host.run_dir.mkdir()
        for started in ("1", ""):  # another start time, and none
            host.pid_file().write_text(f"{other.pid} {started}\n")
            done = host.call("stop")
            assert "was not touched" in done.stderr
            assert other.poll() is None
            assert not host.pid_file().exists()
        other.kill()


@pytest.mark.parametrize("content", ["", "0 1", "1 1", "-1 1", "rubbish\n", "99999999 1"])
def test_a_stale_pid_file_is_in_nobodys_way(host: Host, content: str) -> None:
    host.run_dir.mkdir()
    host.pid_file().write_text(content)
    assert host.call("status").returncode == 1
    assert host.pid_file().exists()  # looking changes nothing
    done = host.call("start")
    assert done.returncode == 0
    assert "stale pid file removed" in done.stderr


def test_workers_that_outlived_their_server_are_found_and_ended(host: Host) -> None:
    host.start(FAKE_WORKER="1")
    worker = host.records("worker")[0]["worker"]
    os.kill(host.records("argv")[0]["pid"], signal.SIGKILL)
    until(lambda: not lives(host.records("argv")[0]["pid"]))
    assert "orphaned" in host.call("status").stdout
    assert "has ended and left workers" in host.call("start").stderr
    assert lives(worker)
    assert host.call("stop").returncode == 0
    assert not lives(worker)


def test_stop_and_status_say_when_nothing_runs(host: Host) -> None:
    stopped, status = host.call("stop"), host.call("status")
    assert (stopped.returncode, status.returncode) == (0, 3)
    assert "nothing is running" in stopped.stdout
    assert "nothing is running" in status.stdout


def test_status_names_port_process_and_models(host: Host) -> None:
    host.start("double", FAKE_STYLES="calm,bright")
    done = host.call("status")
    assert done.returncode == 0
    for server in host.records("argv"):
        port = server["arguments"]["port"]
        assert f"port {port}: ready, models: calm, bright, process {server['pid']}" in done.stdout


def test_the_log_of_the_start_before_is_kept(host: Host) -> None:
    host.call("start", FAKE_DIE="all")
    host.start()
    assert "CUDA out of memory" in (host.run_dir / f"lighttts-{host.port}.log.1").read_text()


def test_an_unknown_word_is_answered_with_how_to_use_it(host: Host) -> None:
    for arguments in ([], ["begin"], ["start", "triple"]):
        done = host.call(*arguments)
        assert done.returncode == 2
        assert "start [single|double]" in done.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
