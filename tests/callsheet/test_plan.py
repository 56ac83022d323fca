import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callsheet.errors import HostLacks
from callsheet.fleet import Fleet, read_fleet
from callsheet.parameters import ProduceParameters
from callsheet.plan import PictureInputs, Plan, SpeechInputs, clip_seconds, frames_for
from tests.conftest import VOICE_ROWS, write_csv, write_fleet

Write = Callable[..., Path]
SPOKEN = {
    "shot_id": "a",
    "title": "T",
    "text": "The keeper lit the lamp at six and wrote a line.",
    "voice": "anna",
}
PICTURE = {"shot_id": "p", "title": "T", "visual": "flux_dev", "prompt": "a lamp"}


@pytest.fixture
def plan(write_script: Write) -> Callable[..., Plan]:
    def make(*rows: dict[str, Any], fleet: Fleet | None = None) -> Plan:
        return ProduceParameters(script=write_script(*rows)).plan(fleet or Fleet())

    return make


def names(plan: Plan) -> list[str]:
    return [step.name for step in plan.steps.values()]


def test_shot_needs_speech_picture_clip_and_its_title_a_programme(plan: Callable[..., Plan]) -> None:
    made = plan(SPOKEN | {"visual": "flux_dev", "prompt": "x"})
    assert names(made) == ["a speech", "a image", "a clip", "T programme"]
    shot = made.shots["a"]
    assert made.steps[shot.clip].needs == (shot.speech, shot.pictures[0])


def test_keys_do_not_depend_on_names_places_or_other_rows(plan: Callable[..., Plan]) -> None:
    first = plan(SPOKEN)
    second = plan(PICTURE, SPOKEN | {"shot_id": "other", "title": ""})
    assert first.shots["a"].speech == second.shots["other"].speech


def test_revision_separates_draft_takes_from_final_ones(plan: Callable[..., Plan], tmp_path: Path) -> None:
    fleet = read_fleet(str(write_fleet(tmp_path / "f.toml", {"h": "http://127.0.0.1:9"}, revision="final")))
    draft, final = plan(PICTURE), plan(PICTURE, fleet=fleet)
    assert draft.shots["p"].pictures != final.shots["p"].pictures


@pytest.mark.parametrize(
    "change", [{"text": "Other words."}, {"voice": "wei"}, {"language": "de"}, {"engine": "lighttts"}]
)
def test_a_change_of_the_row_is_another_take(plan: Callable[..., Plan], change: dict[str, str]) -> None:
    assert plan(SPOKEN).shots["a"].speech != plan(SPOKEN | change).shots["a"].speech


def test_another_recording_under_the_same_name_is_another_take(
    plan: Callable[..., Plan], script_folder: Path
) -> None:
    before = plan(SPOKEN).shots["a"].speech
    write_csv(script_folder / "voices.csv", [VOICE_ROWS[0] | {"audio": "wei.wav"}])
    assert plan(SPOKEN).shots["a"].speech != before


def test_what_is_asked_for_twice_is_planned_once(plan: Callable[..., Plan]) -> None:
    made = plan(PICTURE, PICTURE | {"shot_id": "q"})
    assert names(made) == ["p image", "p clip", "T programme"]
    assert [shot.shot.shot_id for shot in made.shots_with(made.shots["p"].clip)] == ["p", "q"]


def test_picture_of_another_shot_is_made_first_wherever_it_stands(plan: Callable[..., Plan]) -> None:
    made = plan({"shot_id": "v", "visual": "wan_i2v", "prompt": "x", "image": "shot:p"}, PICTURE)
    video = made.steps[made.shots["v"].pictures[0]]
    assert video.needs == (made.shots["p"].pictures[0],)


def test_long_narration_is_covered_by_clips_that_follow_each_other(plan: Callable[..., Plan]) -> None:
    made = plan(SPOKEN | {"text": "A sentence of some length. " * 12, "visual": "wan_t2v", "prompt": "x"})
    shot = made.shots["a"]
    steps = [made.steps[key] for key in shot.pictures]
    assert len(steps) > 2
    assert [step.signature for step in steps[:2]] == ["wan2.1-t2v-1.3b", "wan2.2-i2v-a14b-gguf"]
    for before, after in itertools.pairwise(steps):
        assert after.needs == (before.key,)
        assert after.after == (shot.speech,)
    # 81 frames of 16 per second each; the first frame of each but the first repeats the one before.
    assert len(steps) == 1 + -(-round((shot.spoken_seconds - 81 / 16) * 16) // 80)


def test_number_of_clips_follows_the_narration_once_it_is_spoken(plan: Callable[..., Plan]) -> None:
    made = plan(SPOKEN | {"visual": "wan_t2v", "prompt": "x"})
    shot = made.shots["a"]
    first = shot.pictures[0]
    new, dropped = made.fit_to_narration("a", 14.9)
    assert len(shot.pictures) == 3
    assert made.steps[shot.clip].needs == (shot.speech, *shot.pictures)
    new, dropped = made.fit_to_narration("a", 5.0)
    assert (shot.pictures, new, len(dropped)) == ([first], [], 2)
    assert all(key not in made.steps for key in dropped)
    assert made.steps[shot.clip].needs == (shot.speech, first)


def test_clip_that_two_shots_share_is_not_dropped_for_one_of_them(plan: Callable[..., Plan]) -> None:
    rows = [
        SPOKEN | {"visual": "wan_t2v", "prompt": "x", "text": "A sentence of some length. " * 8},
        SPOKEN
        | {
            "shot_id": "b",
            "visual": "wan_t2v",
            "prompt": "x",
            "text": "Another sentence of some length. " * 8,
        },
    ]
    made = plan(*rows)
    assert made.shots["a"].pictures == made.shots["b"].pictures
    _, dropped = made.fit_to_narration("a", 2.0)
    assert dropped == []
    assert all(key in made.steps for key in made.shots["b"].pictures)


def test_silent_clip_has_as_many_frames_as_its_length_asks_for(plan: Callable[..., Plan]) -> None:
    made = plan({"shot_id": "v", "visual": "wan_t2v", "prompt": "x", "seconds": 2})
    inputs = made.steps[made.shots["v"].pictures[0]].inputs
    assert isinstance(inputs, PictureInputs)
    assert inputs.values["FRAMES"] == 33
    assert (
        len(plan({"shot_id": "v", "visual": "wan_t2v", "prompt": "x", "seconds": 12}).shots["v"].pictures)
        == 3
    )


def test_shots_of_a_title_share_one_canvas(plan: Callable[..., Plan]) -> None:
    made = plan(
        PICTURE | {"width": 1920, "height": 1080},
        PICTURE | {"shot_id": "q", "width": 1920, "height": 1080, "prompt": "y"},
        {"shot_id": "v", "title": "T", "visual": "wan_t2v", "prompt": "x"},
        SPOKEN,
        {"shot_id": "alone", "visual": "wan_t2v", "prompt": "x"},
        SPOKEN | {"shot_id": "voice", "title": ""},
    )
    canvas = made.shots["p"].canvas
    assert canvas is not None
    assert (canvas.width, canvas.height, canvas.fps) == (1920, 1080, 16.0)
    assert made.shots["v"].canvas == canvas
    assert made.shots["a"].canvas == canvas
    alone = made.shots["alone"].canvas
    assert alone is not None
    assert (alone.width, alone.height) == (832, 480)
    assert made.shots["voice"].canvas is None


@pytest.mark.parametrize(
    ("row", "narration", "picture", "wanted"),
    [
        ({"text": "x", "voice": "anna", "pause_after": 0.5}, 3.0, 0.0, 3.5),
        ({"text": "x", "voice": "anna", "seconds": 8}, 3.0, 0.0, 8.0),
        ({"visual": "flux_dev", "prompt": "x"}, None, 0.0, 4.0),
        ({"visual": "wan_t2v", "prompt": "x"}, None, 5.0625, 5.0625),
        ({"visual": "wan_t2v", "prompt": "x", "seconds": 3}, None, 5.0625, 3.0),
    ],
)
def test_length_of_a_clip(
    plan: Callable[..., Plan], row: dict[str, Any], narration: float | None, picture: float, wanted: float
) -> None:
    shot = plan({"shot_id": "a"} | row).shots["a"].shot
    assert clip_seconds(shot, narration, picture) == wanted


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"), [(1.0, 16, 16), (1.001, 16, 17), (5.0625, 16, 81), (0.0, 25, 1)]
)
def test_frames_cover_the_seconds_and_no_more(seconds: float, fps: float, frames: int) -> None:
    assert frames_for(seconds, fps) == frames


def test_estimate_counts_what_is_left_and_what_it_costs(plan: Callable[..., Plan], tmp_path: Path) -> None:
    fleet = read_fleet(str(write_fleet(tmp_path / "f.toml", {"h": "http://127.0.0.1:9"}, price=3.6)))
    made = plan(SPOKEN | {"engine": "lighttts"}, PICTURE, fleet=fleet)
    rows = {row.engine: row for row in made.estimates()}
    assert rows["comfyui"].seconds == pytest.approx(15.0)
    assert rows["comfyui"].cost == pytest.approx(15.0 * 3.6 / 3600)
    done = {made.shots["p"].pictures[0]}
    assert {row.engine: (row.steps, row.done) for row in made.estimates(done)}["comfyui"] == (1, 1)
    assert {row.engine: row.cost for row in made.estimates(done)}["comfyui"] == 0


def speech_inputs(made: Plan, shot_id: str = "a") -> SpeechInputs:
    inputs = made.steps[str(made.shots[shot_id].speech)].inputs
    assert isinstance(inputs, SpeechInputs)
    return inputs


@pytest.mark.parametrize(
    ("columns", "mode"),
    [
        ({"engine": "cosyvoice"}, "zero_shot"),
        ({"engine": "cosyvoice", "language": "en-GB"}, "zero_shot"),
        ({"engine": "cosyvoice", "language": "de"}, "cross_lingual"),
        ({"engine": "cosyvoice", "language": "de", "instruct": "happy"}, "instruct2"),
        ({"engine": "lighttts", "language": "de"}, "zero_shot"),
    ],
)
def test_a_line_is_asked_for_in_the_mode_that_fits_it(
    plan: Callable[..., Plan], columns: dict[str, str], mode: str
) -> None:
    assert speech_inputs(plan(SPOKEN | columns)).mode == mode


def test_pauses_change_the_clip_and_the_avatar_and_not_the_speech(plan: Callable[..., Plan]) -> None:
    picture = {"shot_id": "p", "visual": "flux_dev", "prompt": "x"}

    def keys(text: str) -> list[str]:
        made = plan(SPOKEN | {"text": text, "visual": "wan_s2v", "prompt": "x", "image": "shot:p"}, picture)
        shot = made.shots["a"]
        return [str(shot.speech), shot.pictures[0], shot.clip]

    one, two = keys("He left. [pause 1s] It rained."), keys("He left. [pause 2s] It rained.")
    assert one[0] == two[0]
    assert one[1] != two[1]
    assert one[2] != two[2]
    made = plan(SPOKEN | {"text": "He left. [pause 2s] It rained."})
    assert made.shots["a"].spoken_seconds > 2.0
    assert made.shots["a"].text == "He left. It rained."


def test_how_it_is_said_is_part_of_the_key_and_how_it_is_written_is_not(plan: Callable[..., Plan]) -> None:
    def key(**columns: str) -> str:
        return str(plan(SPOKEN | columns).shots["a"].speech)

    assert key(text="He paid $5.") == key(text="He paid five dollars.")
    assert key(engine="cosyvoice", instruct="happy") != key(engine="cosyvoice", instruct="sad")


def test_the_style_of_a_server_is_part_of_the_key_and_of_who_may_speak(
    plan: Callable[..., Plan], tmp_path: Path
) -> None:
    def fleet(style: str) -> Fleet:
        path = tmp_path / "fleet.toml"
        path.write_text(
            'provider = "static"\n[[host]]\nname = "h"\n[[host.engine]]\nkind = "lighttts"\nrevision = "r"\n'
            f'url = "http://127.0.0.1:1"\nstyle = "{style}"\n'
        )
        return read_fleet(str(path))

    plain, news = fleet("default"), fleet("news")
    one, other = plan(SPOKEN, fleet=plain), plan(SPOKEN, fleet=news)
    assert one.shots["a"].speech != other.shots["a"].speech
    step = other.steps[str(other.shots["a"].speech)]
    assert [step.runs_on(lane) for lane in (*plain.lanes(), *news.lanes())] == [False, True]


def test_model_that_fits_on_no_host_is_named_before_anything_starts(
    plan: Callable[..., Plan], tmp_path: Path
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(
        'provider = "static"\n[[host]]\nname = "a10"\nvram_gb = 20\n'
        '[[host.engine]]\nkind = "comfyui"\nurl = "http://127.0.0.1:9"\nrevision = "r"\n'
        '[[host.engine]]\nkind = "lighttts"\nurl = "http://127.0.0.1:8"\nrevision = "r"\nvram_gb = 12\nresident = true\n',
        "utf-8",
    )
    fleet = read_fleet(str(path))
    assert plan(SPOKEN | {"engine": "lighttts"}, fleet=fleet).steps, "a resident engine has its memory"
    found = r"flux_dev needs 12 GB of GPU memory: a10 has 8 of 20 GB to share. Asked for by p, q"
    with pytest.raises(HostLacks, match=found):
        plan(PICTURE, PICTURE | {"shot_id": "q", "prompt": "a boat"}, fleet=fleet)
