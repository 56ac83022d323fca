"""The command line as a person has it: a process, its exit code, what it prints and what it leaves behind."""

import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_fleet
from tests.fakes.proxy import FaultyProxy
from tests.processes import is_alive

CALLSHEET = str(Path(sys.executable).with_name("callsheet"))
LINE = {"shot_id": "a", "title": "One", "text": "The keeper lit the lamp at six.", "voice": "anna"}
SMALL = {"width": 256, "height": 256}
#: Each kind of step, with something that waits for something else.
FILM = (
    LINE | {"visual": "flux_dev", "prompt": "a lamp"} | SMALL,
    {
        "shot_id": "b",
        "title": "One",
        "text": "He wrote one line. " * 5,
        "voice": "anna",
        "visual": "wan_t2v",
        "prompt": "x",
    }
    | SMALL,
    {
        "shot_id": "c",
        "title": "One",
        "text": "雨下了三天。",
        "voice": "wei",
        "visual": "wan_s2v",
        "prompt": "x",
        "image": "shot:a",
    }
    | SMALL,
    {
        "shot_id": "d",
        "title": "One",
        "visual": "wan_i2v",
        "prompt": "y",
        "image": "shot:a",
        "param.FRAMES": 33,
    }
    | SMALL,
)


def callsheet(*arguments: object, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    command = [CALLSHEET, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def digests(store: Path) -> dict[str, str]:
    """Every take and every deliverable, by content; not what holds times: sidecars, journals, manifest, report data."""
    left_out = (".json", ".jsonl", ".js", ".lock")
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in store.rglob("*")
        if path.is_file() and not path.name.endswith(left_out)
    }


def test_plan_is_a_table_or_json_and_needs_no_prefect(
    write_script: Callable[..., Path], tmp_path: Path
) -> None:
    script = write_script(*FILM)
    table = callsheet("plan", script, "--store", tmp_path / "out")
    assert table.returncode == 0
    assert "4 shots, 1 programmes" in table.stdout
    assert "comfyui" in table.stdout
    code = (
        "import sys; from callsheet.cli import main\n"
        f"sys.argv = ['callsheet', 'plan', {str(script)!r}, '--json', '--store', {str(tmp_path / 'out')!r}]\n"
        "try: main()\n"
        "finally: print('prefect' in sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plan = json.loads(result.stdout.splitlines()[-1])
    assert (plan["shots"], plan["done"], plan["batch"]) == (4, 0, "script")
    assert result.stderr.strip() == "False"
    assert not (tmp_path / "out").exists()


def test_broken_script_lists_every_mistake_and_starts_nothing(
    write_script: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLSHEET_HOME", str(tmp_path / "home"))
    script = write_script(
        LINE | {"voice": "bob"}, LINE | {"shot_id": "b/c"}, LINE | {"shot_id": "d", "speed": "fast"}
    )
    for command in ("plan", "run"):
        result = callsheet(command, script, "--store", tmp_path / "out")
        assert result.returncode == 2
        assert "3 mistakes; nothing was started" in result.stderr
        for row, column in ((2, "voice"), (3, "shot_id"), (4, "speed")):
            assert f"script.csv row {row}, column {column}: found" in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "home").exists(), "no server was started"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("plan", "nowhere.csv"), "nowhere.csv: found No such file"),
        (("run", "SCRIPT", "--fleet", "nowhere.toml"), "nowhere.toml: found No such file"),
        (("run", "SCRIPT", "--store", "ftp://x"), 'store "ftp://x": expected a folder'),
        (("run", "SCRIPT", "--max-cost", "-1"), "max-cost"),
        (("run", "SCRIPT", "--retakes", "99"), "retakes"),
        (("run", "SCRIPT", "--workflows", "nowhere"), "nowhere: found no such folder"),
        (("run",), "SCRIPT"),
        (("report", "nowhere", "--store", "STORE"), "batch nowhere: found no manifest"),
        (("fly",), "fly"),
    ],
)
def test_bad_settings_exit_with_2_and_a_plain_message(
    write_script: Callable[..., Path], tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    places = {"SCRIPT": write_script(LINE), "STORE": tmp_path / "out"}
    result = callsheet(*(places.get(argument, argument) for argument in arguments))
    assert result.returncode == 2, result.stderr
    assert told in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@pytest.fixture
def proxy(draft_host: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(draft_host) as proxy:
        yield proxy


def test_text_shows_what_will_be_spoken_before_anything_is_paid(write_script: Callable[..., Path]) -> None:
    script = write_script(
        LINE | {"text": "Dr. Hale paid $3.50. [pause 1s] He left."}, LINE | {"shot_id": "b"}
    )
    shown = callsheet("text", script)
    assert shown.returncode == 0, shown.stderr
    assert "a  Dr. Hale paid $3.50.  [pause 1 s]" in shown.stdout
    assert " → Doctor Hale paid three dollars and fifty cents." in shown.stdout
    assert "3 pieces, 1 read otherwise than written" in shown.stdout
    changed = callsheet("text", script, "--changed", "--json")
    assert json.loads(changed.stdout.splitlines()[-1])["lines"] == [
        {
            "shot_id": "a",
            "written": "Dr. Hale paid $3.50.",
            "spoken": "Doctor Hale paid three dollars and fifty cents.",
            "pause": 1.0,
        }
    ]
    broken = callsheet("text", write_script(LINE | {"text": "<|x|>"}))
    assert (broken.returncode, broken.stdout) == (2, "")


@pytest.mark.slow
def test_run_tells_its_result_and_a_second_one_makes_nothing(
    write_script: Callable[..., Path], tmp_path: Path
) -> None:
    script, store = write_script(*FILM), tmp_path / "out"
    first = callsheet("run", script, "--store", store, "--json")
    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout.splitlines()[-1])
    assert (summary["shots"], summary["done"], summary["failed"], summary["needs_review"]) == (4, 4, [], 0)
    assert "Prefect UI: http://127.0.0.1:" in first.stderr
    assert Path(summary["report"].removeprefix("file://")).is_file()
    second = callsheet("run", script, "--store", store)
    assert second.returncode == 0
    assert "no new take: everything was there already" in second.stderr
    shown = callsheet("report", "script", "--store", store)
    assert shown.returncode == 0
    assert summary["report"] in shown.stdout
    planned = json.loads(callsheet("plan", script, "--store", store, "--json").stdout)
    assert planned["done"] == planned["steps"]


@pytest.mark.slow
def test_failed_shot_is_exit_code_1_and_one_line(
    write_script: Callable[..., Path], tmp_path: Path, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.5")  # the server's start has its share of it
    monkeypatch.setattr("tasks.policy.DELAYS", (0.1, 0.1, 0.1))
    proxy.fail("/prompt", "500", times=100)
    fleet = write_fleet(tmp_path / "f.toml", {"host": proxy.url})
    script = write_script(LINE, {"shot_id": "p", "visual": "flux_dev", "prompt": "x"} | SMALL)
    result = callsheet("run", script, "--store", tmp_path / "out", "--fleet", fleet, "--json")
    assert result.returncode == 1
    (failed,) = json.loads(result.stdout.splitlines()[-1])["failed"]
    assert (failed["shot_id"], failed["step"], failed["error"]) == ("p", "p image", "Transient")
    assert "Not done: p: p image: host/comfyui: answered 500: sorry" in result.stderr
    assert "Traceback" not in result.stderr


class Interrupted:
    """A run in a process of its own that gets a signal once so many takes are committed."""

    def __init__(self, store: Path, arguments: list[object], takes: int, number: signal.Signals) -> None:
        command = [CALLSHEET, "run", *(str(argument) for argument in arguments)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell that runs the tests in the background has SIGINT ignored, and every child would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.children = self._watch(store, takes)
        self.process.send_signal(number)
        self.output = self.process.communicate(timeout=180)[0]

    def _watch(self, store: Path, takes: int) -> list[int]:
        pause = threading.Event()
        while len(list(store.glob("takes/*/*.json"))) < takes:
            assert self.process.poll() is None, self.process.communicate()[0]
            pause.wait(0.02)
        listed = subprocess.run(
            ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
        ).stdout
        return [
            int(pid) for pid, parent in map(str.split, listed.splitlines()) if int(parent) == self.process.pid
        ]

    def wait_for_children(self) -> None:
        """Returns when no process that the run had started is left; fails after half a minute."""
        pause = threading.Event()
        for _ in range(300):
            alive = [pid for pid in self.children if is_alive(pid)]
            if not alive:
                return
            pause.wait(0.1)
        raise AssertionError(f"left behind: {alive}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, draft_host: str) -> Any:
    """What the film comes to when nothing happens, and how many engine calls that takes."""
    from tests.conftest import VOICE_ROWS, write_csv, write_tone

    folder = tmp_path_factory.mktemp("undisturbed")
    write_tone(folder / "anna.wav", pitch=210)
    write_tone(folder / "wei.wav", pitch=110)
    write_csv(folder / "voices.csv", VOICE_ROWS)
    script = write_csv(folder / "script.csv", FILM)
    fleet = write_fleet(folder / "f.toml", {"host": draft_host})
    result = callsheet("run", script, "--store", folder / "out", "--fleet", fleet)
    assert result.returncode == 0, result.stderr
    return digests(folder / "out")


def engine_calls(proxy: FaultyProxy) -> int:
    """How many takes engines were asked for; a canary is none."""
    asked = zip(proxy.requests, proxy.bodies, strict=True)
    is_canary = [
        b"canary" in body or "金丝雀".encode() in body for line, body in asked if "/inference" in line
    ]
    return is_canary.count(False) + proxy.count("/prompt", "POST")


@pytest.mark.slow
@pytest.mark.parametrize("takes", [1, 9])
def test_run_that_was_killed_goes_on_and_comes_to_the_same(
    write_script: Callable[..., Path],
    tmp_path: Path,
    proxy: FaultyProxy,
    undisturbed: dict[str, str],
    takes: int,
) -> None:
    script, store = write_script(*FILM), tmp_path / "out"
    arguments = [script, "--store", store, "--fleet", write_fleet(tmp_path / "f.toml", {"host": proxy.url})]
    killed = Interrupted(store, arguments, takes, signal.SIGKILL)
    killed.wait_for_children()
    engine_kinds = ("speech", "image", "video", "avatar")
    committed = [path for path in store.glob("takes/*/*.json") if path.parent.name in engine_kinds]
    before = {path: path.read_bytes() for path in committed}
    calls = engine_calls(proxy)
    again = callsheet("run", *arguments)
    assert again.returncode == 0, again.stderr
    assert all(path.read_bytes() == content for path, content in before.items()), (
        "takes that were done are kept"
    )
    wanted = len(
        [path for path in undisturbed if path.startswith(tuple(f"takes/{kind}/" for kind in engine_kinds))]
    )
    # A prompt that the killed run left on the host is found there and not sent again.
    assert engine_calls(proxy) - calls <= wanted - len(committed), "no remaining step ran twice"
    assert digests(store) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_keeps_what_is_done_and_leaves_no_process(
    write_script: Callable[..., Path], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    store = tmp_path / "out"
    run = Interrupted(store, [write_script(*FILM), "--store", store], 3, number)
    assert run.process.returncode == code
    assert "Interrupted. What is done is kept" in run.output
    assert "Traceback" not in run.output
    assert len(run.children) >= 2, "a Prefect server and a draft host"
    run.wait_for_children()
    assert len(list(store.glob("takes/*/*.json"))) >= 3
    assert list((store / ".incoming").iterdir()) == []
    assert list(store.glob("batches/script/journal-*.jsonl"))


@pytest.mark.slow
def test_two_runs_of_one_batch_at_once_do_not_pay_twice(
    write_script: Callable[..., Path], tmp_path: Path, proxy: FaultyProxy
) -> None:
    script, store = write_script(*FILM), tmp_path / "out"
    arguments = [
        "run",
        script,
        "--store",
        store,
        "--fleet",
        write_fleet(tmp_path / "f.toml", {"host": proxy.url}),
    ]
    command = [CALLSHEET, *(str(argument) for argument in arguments)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 2]), outputs
    assert codes == [0, 0] or any("found another run at work on it" in output for output in outputs)
    takes = [path for path in store.glob("takes/*/*.json") if path.parent.name not in ("clip", "programme")]
    assert engine_calls(proxy) <= len(takes)  # fewer where the host knows a prompt of another test


def test_help_names_every_command() -> None:
    result = callsheet("--help")
    assert result.returncode == 0
    assert all(command in result.stdout for command in ("plan", "text", "run", "hosts", "report"))
