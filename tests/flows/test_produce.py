"""The flow, end to end: real Prefect server, real draft host, behind links that break."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from callsheet.errors import BadInput, Budget, StoreFault
from callsheet.manifest import Manifest, Summary
from callsheet.parameters import ProduceParameters
from callsheet.takes import Sidecar
from flows.produce import produce
from tests.conftest import write_csv, write_fleet
from tests.fakes.proxy import Fault, FaultyProxy

pytestmark = pytest.mark.usefixtures("prefect_api")

LINE = {"shot_id": "a", "text": "The keeper lit the lamp at six.", "voice": "anna"}
#: Before its first line an engine is asked for one sentence.
CANARY = 1
PICTURE = {"shot_id": "p", "visual": "flux_dev", "prompt": "a lamp", "width": 256, "height": 256}


@pytest.fixture
def proxy(draft_host: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(draft_host) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-offs of seconds become hundredths; time-outs stay long enough for a busy machine."""
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.05")


class Studio:
    """Runs scripts with a fleet of hosts, and looks at what came of it."""

    def __init__(self, folder: Path, write_script: Callable[..., Path], hosts: dict[str, str]) -> None:
        self.store = folder / "out"
        self.write_script = write_script
        # A revision of its own: the draft host of the session would know the prompts of other tests.
        self.fleet = write_fleet(folder / "fleet.toml", hosts, price=3.6, revision=folder.name)

    async def run(self, *rows: dict[str, Any], **settings: Any) -> Summary:
        outcome = await self.outcome(*rows, **settings)
        assert isinstance(outcome, Summary), outcome
        return outcome

    async def outcome(self, *rows: dict[str, Any], **settings: Any) -> Any:
        parameters = ProduceParameters(
            script=self.write_script(*rows), store=str(self.store), fleet=str(self.fleet), **settings
        )
        self.state: Any = await produce(parameters, return_state=True)
        return await self.state.aresult(raise_on_failure=False)

    @property
    def manifest(self) -> Manifest:
        return Manifest.model_validate_json((self.store / "batches/script/manifest.json").read_bytes())

    def sidecars(self, kind: str) -> list[Sidecar]:
        return [
            Sidecar.model_validate_json(path.read_bytes())
            for path in (self.store / "takes" / kind).glob("*.json")
        ]

    def files(self) -> set[str]:
        batch = self.store / "batches/script"
        return {path.relative_to(batch).as_posix() for path in batch.rglob("*") if path.is_file()}


@pytest.fixture
def studio(tmp_path: Path, write_script: Callable[..., Path]) -> Callable[..., Studio]:
    return lambda **hosts: Studio(tmp_path, write_script, hosts)


async def test_a_batch_is_made_published_and_not_made_again(
    studio: Callable[..., Studio], proxy: FaultyProxy
) -> None:
    mine = studio(host=proxy.url)
    rows = [
        LINE | {"title": "One"},
        PICTURE | {"title": "One"},
        {"shot_id": "v", "text": "Alone.", "voice": "wei"},
    ]
    summary = await mine.run(*rows)
    assert (summary.done, summary.failed, summary.needs_review, summary.takes_made) == (3, [], 0, 7)
    assert mine.state.is_completed()
    published = {name for name in mine.files() if not name.startswith(("journal", "."))}
    assert published == {
        "manifest.json", "plan.json", "report.html", "report-data.js", "contact-sheet.jpg",
        "One.mp4", "One.srt", "One.vtt",
        "One/a.mp4", "One/a.srt", "One/a.vtt", "One/a.jpg", "One/p.mp4", "One/p.jpg",
        "untitled/v.wav", "untitled/v.srt", "untitled/v.vtt",
    }  # fmt: skip
    asked = len(proxy.requests)
    again = await mine.run(*rows)
    assert (again.takes_made, again.takes_reused, len(proxy.requests)) == (0, 7, asked)


async def test_edited_row_makes_only_what_changed_and_stale_files_go(
    studio: Callable[..., Studio], proxy: FaultyProxy
) -> None:
    mine = studio(host=proxy.url)
    await mine.run(LINE | {"title": "One"}, PICTURE | {"title": "One"})
    summary = await mine.run(LINE | {"title": "Two", "text": "Other words."}, PICTURE | {"title": "One"})
    assert sorted(s.kind for s in mine.sidecars("speech")) == ["speech", "speech"]
    assert proxy.count("/prompt", "POST") == 1
    assert summary.takes_made == 4  # speech, clip, and both programmes
    assert "Two/a.wav" in mine.files()
    assert not {"One/a.mp4", "One/a.srt"} & mine.files()


@pytest.mark.parametrize("fault", ["cut", "empty", "500", "reset"])
async def test_broken_answer_is_asked_for_again_and_costs_no_take(
    studio: Callable[..., Studio], proxy: FaultyProxy, fault: Fault
) -> None:
    mine = studio(host=proxy.url)
    proxy.fail("/inference_zero_shot", fault, times=2, after=CANARY)
    summary = await mine.run(LINE)
    assert (summary.done, summary.needs_review) == (1, 0)
    assert proxy.count("/inference_zero_shot") == CANARY + 3
    (speech,) = mine.sidecars("speech")
    assert len(speech.attempts) == 1


async def test_host_that_hangs_is_asked_again(
    studio: Callable[..., Studio], proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.02")  # 60 s become 1.2
    mine = studio(host=proxy.url)
    proxy.fail("/inference_zero_shot", "hang", after=CANARY)
    assert (await mine.run(LINE)).done == 1
    assert proxy.count("/inference_zero_shot") == CANARY + 2


@pytest.mark.slow
async def test_shot_whose_host_never_answers_well_fails_by_name_and_the_others_are_published(
    studio: Callable[..., Studio], proxy: FaultyProxy
) -> None:
    mine = studio(host=proxy.url)
    proxy.fail("/inference_zero_shot", "500", times=100)
    summary = await mine.run(LINE | {"title": "One"}, PICTURE | {"title": "Two"})
    assert [(shot.shot_id, shot.step, shot.error) for shot in summary.failed] == [
        ("a", "a speech", "HostFault")
    ]
    assert "host/lighttts: answered 500: sorry" in summary.failed[0].reason
    assert proxy.count("/inference_zero_shot") == 4, "one try and three more, on the only lane"
    assert mine.state.is_failed()
    assert "1 of 2 shots are not done. a: a speech" in mine.state.message
    programmes = {programme.title: programme for programme in mine.manifest.programmes}
    assert programmes["One"].failed is not None
    assert programmes["One"].failed.step == "a speech"
    assert programmes["Two"].state == "done"
    assert "Two/p.mp4" in mine.files()
    proxy._rules.clear()
    assert (await mine.run(LINE | {"title": "One"}, PICTURE | {"title": "Two"})).takes_made == 3


async def test_refused_host_is_left_out_and_another_does_its_work(
    studio: Callable[..., Studio], draft_host: str
) -> None:
    mine = studio(gone="http://127.0.0.1:9", here=draft_host)
    summary = await mine.run(LINE, PICTURE)
    assert summary.done == 2
    assert {lane.host for lane in mine.manifest.lanes if lane.steps} == {"here"}


async def test_without_any_host_every_shot_says_why(studio: Callable[..., Studio]) -> None:
    mine = studio(gone="http://127.0.0.1:9")
    summary = await mine.run(LINE, PICTURE)
    assert summary.done == 0
    assert all("gone: gone/" in shot.reason and "no connection" in shot.reason for shot in summary.failed)
    assert {shot.error for shot in summary.failed} == {"HostFault"}


async def test_cut_download_of_a_picture_costs_no_second_prompt(
    studio: Callable[..., Studio], proxy: FaultyProxy
) -> None:
    mine = studio(host=proxy.url)
    proxy.fail("/view", "cut")
    assert (await mine.run(PICTURE)).done == 1
    assert (proxy.count("/prompt", "POST"), proxy.count("/view")) == (1, 2)


@pytest.mark.slow
async def test_a_result_that_is_slow_to_come_home_does_not_hold_the_lane(
    studio: Callable[..., Studio], proxy: FaultyProxy
) -> None:
    mine = studio(host=proxy.url)
    proxy.fail("/view", "hang")
    assert (await mine.run(PICTURE, PICTURE | {"shot_id": "q", "prompt": "another"})).done == 2
    asked = [line.split()[1].partition("?")[0] for line in proxy.requests]
    prompts = [at for at, path in enumerate(asked) if path == "/prompt"]
    views = [at for at, path in enumerate(asked) if path == "/view"]
    assert prompts[1] < views[1], "the second prompt was there before the first result"


async def test_silent_take_is_made_again(studio: Callable[..., Studio], proxy: FaultyProxy) -> None:
    mine = studio(host=proxy.url)
    proxy.fail("/inference_zero_shot", "silence", after=CANARY)
    summary = await mine.run(LINE)
    (speech,) = mine.sidecars("speech")
    assert (speech.chosen, speech.needs_review, len(speech.attempts)) == (1, False, 2)
    assert "rms_dbfs" in [check.name for check in speech.attempts[0].checks if not check.ok]
    assert all((mine.store / attempt.file).is_file() for attempt in speech.attempts), "all attempts are kept"
    assert summary.needs_review == 0


async def test_take_that_never_passes_is_kept_for_review(
    studio: Callable[..., Studio], proxy: FaultyProxy
) -> None:
    mine = studio(host=proxy.url)
    proxy.fail("/inference_zero_shot", "silence", times=100, after=CANARY)
    summary = await mine.run(LINE, PICTURE, advanced={"retakes": 1})
    (speech,) = mine.sidecars("speech")
    assert (speech.needs_review, len(speech.attempts), proxy.count("/inference_zero_shot")) == (
        True,
        2,
        CANARY + 2,
    )
    assert (summary.done, summary.needs_review, summary.failed) == (2, 1, [])
    assert [shot.shot_id for shot in mine.manifest.shots if shot.needs_review] == ["a"]


async def test_shot_that_waits_for_a_picture_of_another(
    studio: Callable[..., Studio], draft_host: str
) -> None:
    mine = studio(host=draft_host)
    video = {
        "shot_id": "v",
        "visual": "wan_i2v",
        "prompt": "x",
        "image": "shot:p",
        "width": 256,
        "height": 256,
        "param.FRAMES": 9,
    }
    avatar = LINE | {
        "visual": "wan_s2v",
        "prompt": "x",
        "image": "shot:p",
        "width": 256,
        "height": 256,
        "pause_after": 0.5,
    }
    summary = await mine.run(video, avatar, PICTURE)
    assert (summary.done, summary.needs_review) == (3, 0)
    (speech,), (avatar_take,) = mine.sidecars("speech"), mine.sidecars("avatar")
    assert avatar_take.sources[speech.key] == speech.take.sha256
    shot = next(shot for shot in mine.manifest.shots if shot.shot_id == "a")
    assert shot.seconds == pytest.approx(speech.take.length + 0.5, abs=1 / 16)


async def test_broken_script_starts_nothing(studio: Callable[..., Studio], proxy: FaultyProxy) -> None:
    mine = studio(host=proxy.url)
    error = await mine.outcome(LINE | {"voice": "bob"}, LINE | {"shot_id": "b", "speed": "x"})
    assert isinstance(error, BadInput)
    assert "row 2, column voice" in str(error)
    assert "row 3, column speed" in str(error)
    assert mine.state.is_failed()
    assert not mine.store.exists()
    assert proxy.requests == []


async def test_plan_over_the_cap_starts_nothing(studio: Callable[..., Studio], proxy: FaultyProxy) -> None:
    mine = studio(host=proxy.url)
    error = await mine.outcome(PICTURE, max_cost=0.0001)
    assert isinstance(error, Budget)
    assert proxy.requests == []


async def test_meter_that_reaches_the_cap_stops_the_engines_and_publishes_what_is_paid_for(
    studio: Callable[..., Studio], proxy: FaultyProxy
) -> None:
    mine = studio(host=proxy.url)
    # $1 a second and an estimate of next to nothing, so that the meter decides and not the plan.
    write_fleet(mine.fleet, {"host": proxy.url}, price=3600, relative_speed=1e6)
    rows = [PICTURE | {"shot_id": f"p{n}", "prompt": f"lamp {n}"} for n in range(20)]
    summary = await mine.run(*rows, max_cost=0.3)
    assert {shot.error for shot in summary.failed} == {"Budget"}
    assert 0 < summary.done < 20
    assert summary.done == proxy.count("/prompt", "POST")
    assert len([name for name in mine.files() if name.endswith(".mp4")]) == summary.done
    assert mine.state.is_failed()


async def test_tokens_and_keys_are_in_nothing_that_is_written(
    tmp_path: Path, write_script: Callable[..., Path], draft_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFY_TOKEN", "token-of-the-test")
    mine = Studio(tmp_path, write_script, {"host": draft_host})
    mine.fleet.write_text(mine.fleet.read_text() + '\ntoken_env = "COMFY_TOKEN"')
    assert (await mine.run(PICTURE)).done == 1
    for path in mine.store.rglob("*"):
        assert not path.is_file() or b"token-of-the-test" not in path.read_bytes(), path


async def test_report_holds_every_shot_with_text_checks_and_captions(
    studio: Callable[..., Studio], draft_host: str
) -> None:
    mine = studio(host=draft_host)
    await mine.run(LINE | {"title": "</script><b>", "text": "Say </script> & \u2028 go."}, PICTURE)
    script = (mine.store / "batches/script/report-data.js").read_text("utf-8")
    data = json.loads(script.removeprefix("window.CALLSHEET = ").removesuffix(";\n"))
    assert "\u2028" not in script
    spoken, picture = data["shots"]
    assert spoken["text"] == "Say </script> & go."
    details, takes = json.loads(spoken["details"]), json.loads(picture["details"])["takes"]
    assert details["cues"][0][2] == "Say </script> & go."
    assert [take["step"] for take in takes] == ["image", "clip"]
    checks = [check for take in takes for check in take["attempts"][0]["checks"]]
    assert all(ok for _, _, ok in checks)
    assert ["size", "256x256"] in [data["check_kinds"][kind] for kind, _, _ in checks]
    for link in (
        picture["clip"],
        picture["poster"],
        details["captions"]["vtt"],
        takes[0]["attempts"][0]["file"],
    ):
        from urllib.parse import unquote

        assert (mine.store / "batches/script" / unquote(link)).is_file(), link
    assert "</script><b>" not in (mine.store / "batches/script/report.html").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
async def test_full_disk_stops_the_batch_keeps_what_is_whole_and_goes_on_later(
    studio: Callable[..., Studio], draft_host: str
) -> None:
    import subprocess

    mine = studio(host=draft_host)
    mine.store.mkdir()
    small = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(mine.store)], capture_output=True
    )
    if small.returncode:
        pytest.skip(f"no small disk can be mounted here: {small.stderr.decode().strip()}")
    try:
        rows = [
            PICTURE | {"shot_id": f"p{n}", "prompt": f"lamp {n}", "width": 512, "height": 512}
            for n in range(12)
        ]
        error = await mine.outcome(*rows)
        assert isinstance(error, StoreFault)
        assert "No space left on device; free some space" in str(error)
        assert re.search(r"[1-9]\d* of 12 shots are not done", str(error))
        assert mine.state.is_failed()
        for sidecar in mine.sidecars("image"):
            assert (mine.store / sidecar.take.file).stat().st_size == sidecar.take.bytes
        subprocess.run(["mount", "-o", "remount,size=64m", str(mine.store)], check=True)
        kept = len(mine.sidecars("image"))
        again = await mine.run(*rows)
        assert (again.done, again.failed) == (12, [])
        assert again.takes_reused >= kept
    finally:
        subprocess.run(["umount", str(mine.store)], check=True)


async def test_what_people_decided_is_done_once(
    studio: Callable[..., Studio], draft_host: str, tmp_path: Path
) -> None:
    """Retake one, reject one; and the same file again changes nothing."""
    mine = studio(host=draft_host)
    rows = [PICTURE | {"seed": 3}, PICTURE | {"shot_id": "q", "prompt": "a door"}]
    await mine.run(*rows)
    first = {one.key: one for one in mine.sidecars("image")}
    takes = {shot.shot_id: shot.takes for shot in mine.manifest.shots}
    decisions = write_csv(
        tmp_path / "d.csv",
        [
            {
                "shot_id": "p",
                "step": "image",
                "take": takes["p"]["image"],
                "attempt": 0,
                "decision": "retake",
            },
            {"shot_id": "q", "step": "clip", "take": takes["q"]["clip"], "attempt": 0, "decision": "reject"},
        ],
    )
    for made in (2, 0):  # the picture and its clip
        summary = await mine.run(*rows, decisions=decisions)
        assert (summary.takes_made, summary.done) == (made, 1)
        assert [(shot.shot_id, shot.error) for shot in summary.failed] == [("q", "Rejected")]
    again = {one.key: one for one in mine.sidecars("image")}[str(takes["p"]["image"])]
    assert [one.n for one in again.attempts] == [0, 1]
    assert again.take.sha256 != first[again.key].take.sha256
    assert "untitled/q.mp4" not in mine.files()
    assert "untitled/p.mp4" in mine.files()
