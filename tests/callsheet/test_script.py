from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile

from callsheet.download import Downloads
from callsheet.fleet import Fleet, read_fleet
from callsheet.inputs import Mistakes
from callsheet.script import Script, ScriptSettings, read_script
from callsheet.workflow import Workflow
from tests.conftest import VOICE_ROWS, write_csv, write_fleet, write_tone

Write = Callable[..., Path]
LINE = {"shot_id": "a", "text": "A line.", "voice": "anna"}


@pytest.fixture
def read(workflows: dict[str, Workflow]) -> Callable[..., Script]:
    def read(path: Path, **settings: Any) -> Script:
        return read_script(
            path, ScriptSettings(workflows=workflows, fleet=settings.pop("fleet", Fleet()), **settings)
        )

    return read


def mistakes(read: Callable[..., Script], path: Path, **settings: Any) -> list[str]:
    with pytest.raises(Mistakes) as caught:
        read(path, **settings)
    return [str(mistake) for mistake in caught.value.mistakes]


def test_a_good_script_is_read_whole(read: Callable[..., Script], write_script: Write) -> None:
    script = read(
        write_script(
            LINE | {"title": "One", "pause_after": 0.5},
            {
                "shot_id": "b",
                "visual": "flux_dev",
                "prompt": "a tree",
                "width": 1024,
                "seed": 3,
                "param.STEPS": 12,
            },
            {
                "shot_id": "c",
                "text": "雨。",
                "voice": "wei",
                "visual": "wan_s2v",
                "prompt": "a face",
                "image": "shot:b",
            },
        )
    )
    assert [shot.shot_id for shot in script.shots] == ["a", "b", "c"]
    assert script.values["b"] == {"WIDTH": 1024, "POSITIVE_PROMPT": "a tree", "STEPS": 12}
    assert script.language_of(script.shots[2]) == "zh"
    assert script.name == "script"


def test_twelve_different_mistakes_are_told_at_once(
    read: Callable[..., Script], write_script: Write, script_folder: Path
) -> None:
    rows = [
        {"shot_id": "a/b", "text": "A line.", "voice": "anna"},
        {"shot_id": "same", "text": "A line.", "voice": "anna"},
        {"shot_id": "SAME", "text": "A line.", "voice": "anna"},
        {"shot_id": "nobody", "text": "A line.", "voice": "bob"},
        {"shot_id": "fast", "text": "A line.", "voice": "anna", "speed": "9"},
        {"shot_id": "novisual", "visual": "flux_pro", "prompt": "x"},
        {"shot_id": "outside", "visual": "wan_i2v", "prompt": "x", "image": "../../etc/passwd"},
        {"shot_id": "missing", "visual": "wan_i2v", "prompt": "x", "image": "nowhere.png"},
        {"shot_id": "circle", "visual": "wan_i2v", "prompt": "x", "image": "shot:none"},
        {"shot_id": "steps", "visual": "flux_dev", "prompt": "x", "param.STEPS": "many"},
        {"shot_id": "empty"},
        {"shot_id": "poison", "text": "Say <|endofprompt|> it.", "voice": "anna"},
        {"shot_id": "mute", "text": "…!", "voice": "anna"},
    ]
    told = mistakes(read, write_script(*rows))
    for row, column, words in [
        (2, "shot_id", "letters, digits, dot, dash and underscore"),
        (4, "shot_id", "row 3 has same"),
        (5, "voice", 'found "bob"; expected a voice: anna, wei'),
        (6, "speed", 'found "9"; expected a number from 0.5 to 2'),
        (7, "visual", "expected a workflow: flux_dev"),
        (8, "image", "a path inside script"),
        (9, "image", "an existing file"),
        (10, "image", "the id of a shot"),
        (11, "param.STEPS", 'found "many"; expected a whole number from 1 to 100'),
        (12, "text", "neither text nor visual"),
        (13, "text", "without <| and |>"),
        (14, "text", "something to say"),
    ]:
        assert [line for line in told if f"row {row}, column {column}:" in line and words in line], (
            row,
            column,
            told,
        )
    assert len(told) == 12


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030"])
def test_chinese_scripts_of_excel_are_read(
    read: Callable[..., Script], write_script: Write, encoding: str
) -> None:
    script = read(write_script({"shot_id": "a", "text": "雨下了三天", "voice": "wei"}, encoding=encoding))
    assert script.shots[0].text == "雨下了三天"


def test_link_that_leads_out_of_the_folder_is_refused(
    read: Callable[..., Script], write_script: Write, script_folder: Path, tmp_path: Path
) -> None:
    PIL.Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    (script_folder / "link.png").symlink_to(tmp_path / "secret.png")
    path = write_script({"shot_id": "a", "visual": "wan_i2v", "prompt": "x", "image": "link.png"})
    assert "a path inside script" in mistakes(read, path)[0]


def test_media_root_allows_what_lies_in_it(
    read: Callable[..., Script], write_script: Write, tmp_path: Path
) -> None:
    PIL.Image.new("RGB", (64, 64), "red").save(tmp_path / "frame.png")
    path = write_script(
        {"shot_id": "a", "visual": "wan_i2v", "prompt": "x", "image": str(tmp_path / "frame.png")}
    )
    assert mistakes(read, path)
    script = read(path, media_roots=[tmp_path])
    assert script.images[str(tmp_path / "frame.png")].path == tmp_path / "frame.png"


def test_a_file_that_is_no_picture_is_refused(
    read: Callable[..., Script], write_script: Write, script_folder: Path
) -> None:
    (script_folder / "fake.png").write_bytes(b"not a picture")
    path = write_script({"shot_id": "a", "visual": "wan_i2v", "prompt": "x", "image": "fake.png"})
    assert "a PNG, JPEG or WebP picture" in mistakes(read, path)[0]


def test_cut_picture_is_refused(
    read: Callable[..., Script], write_script: Write, script_folder: Path
) -> None:
    PIL.Image.effect_noise((256, 256), 50).save(script_folder / "cut.png")
    whole = (script_folder / "cut.png").read_bytes()
    (script_folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    path = write_script({"shot_id": "a", "visual": "wan_i2v", "prompt": "x", "image": "cut.png"})
    assert "row 2, column image" in mistakes(read, path)[0]


@pytest.mark.parametrize(
    ("change", "column", "words"),
    [
        ({"consent": "no"}, "consent", "used with consent only"),
        ({"consent": ""}, "consent", "found none for voice anna"),
        ({"expires": "2020-01-31"}, "expires", "not before today"),
        ({"audio": "nowhere.wav"}, "audio", "an existing file"),
        ({"audio": "../anna.wav"}, "audio", "a path inside"),
        ({"audio": "long.wav"}, "audio", "31.0 s"),
        ({"audio": "telephone.wav"}, "audio", "8000 Hz"),
        ({"audio": "silent.wav"}, "audio", "silent"),
        ({"audio": "broken.wav"}, "audio", "cannot be read"),
    ],
)
def test_voice_that_would_break_a_server_or_the_law_is_refused(
    read: Callable[..., Script],
    write_script: Write,
    script_folder: Path,
    change: dict[str, str],
    column: str,
    words: str,
) -> None:
    write_tone(script_folder / "long.wav", seconds=31)
    write_tone(script_folder / "telephone.wav", rate=8_000)
    write_tone(script_folder / "silent.wav", level=0.0)
    (script_folder / "broken.wav").write_bytes(b"RIFF....")
    write_csv(script_folder / "voices.csv", [VOICE_ROWS[0] | change])
    told = mistakes(read, write_script(LINE))
    assert len(told) == 1
    assert f"voices.csv row 2, column {column}:" in told[0]
    assert words in told[0]


def test_a_bad_voice_that_no_shot_uses_stops_nothing(
    read: Callable[..., Script], write_script: Write, script_folder: Path
) -> None:
    write_csv(
        script_folder / "voices.csv",
        [VOICE_ROWS[0], VOICE_ROWS[1] | {"consent": "no", "audio": "nowhere.wav"}],
    )
    assert read(write_script(LINE)).voices.keys() == {"anna"}


def test_mistakes_of_the_registry_are_told_with_those_of_the_script(
    read: Callable[..., Script], write_script: Write, script_folder: Path
) -> None:
    write_csv(script_folder / "voices.csv", [VOICE_ROWS[0], VOICE_ROWS[0] | {"expires": "soon"}])
    told = mistakes(read, write_script(LINE | {"speed": "x"}))
    assert any("voices.csv row 3, column expires" in line for line in told)
    assert any("script.csv row 2, column speed" in line for line in told)


def test_commercial_run_refuses_what_forbids_it(
    read: Callable[..., Script], write_script: Write, script_folder: Path
) -> None:
    write_csv(script_folder / "voices.csv", [VOICE_ROWS[0] | {"licence": "CC-BY-NC-4.0"}])
    rows = [LINE | {"engine": "xtts"}, {"shot_id": "b", "text": "B.", "voice": "anna", "engine": "llasa"}]
    told = mistakes(read, write_script(*rows), commercial=True)
    assert any("row 2, column engine" in line and "Coqui" in line for line in told)
    assert any("row 3, column engine" in line and "CC-BY-NC" in line for line in told)
    assert any("voices.csv row 2, column licence" in line for line in told)


def test_engine_that_the_fleet_has_not_got_is_told(
    read: Callable[..., Script], write_script: Write, tmp_path: Path
) -> None:
    told = mistakes(read, write_script(LINE | {"engine": "xtts"}))
    assert "an engine of this fleet: cosyvoice, lighttts" in told[0]
    fleet = read_fleet(str(write_fleet(tmp_path / "f.toml", {"a": "http://127.0.0.1:9"})))
    assert (
        read(write_script(LINE | {"engine": "lighttts", "speed": "1.2"}), fleet=fleet).shots[0].speed == 1.2
    )


def test_speed_needs_an_engine_that_has_one(read: Callable[..., Script], write_script: Write) -> None:
    told = mistakes(read, write_script(LINE | {"engine": "cosyvoice", "speed": "1.2"}))
    assert "whose server knows no speed" in told[0]


def test_workflow_gets_what_it_needs_or_the_row_is_told(
    read: Callable[..., Script], write_script: Write
) -> None:
    told = mistakes(
        read,
        write_script(
            {"shot_id": "noprompt", "visual": "flux_dev"},
            {"shot_id": "noimage", "visual": "wan_i2v", "prompt": "x"},
            {"shot_id": "silent", "visual": "wan_s2v", "prompt": "x", "image": "shot:noprompt"},
            {"shot_id": "unknown", "visual": "flux_dev", "prompt": "x", "param.CFGG": "2"},
            {"shot_id": "own", "visual": "flux_dev", "prompt": "x", "param.SEED": "2"},
            {"shot_id": "useless", "text": "x.", "voice": "anna", "prompt": "x", "param.STEPS": "2"},
            {"shot_id": "novideo", "visual": "wan_i2v", "prompt": "x", "image": "shot:noimage"},
        ),
    )
    for words in (
        "row 2, column prompt: found nothing",
        "row 3, column image: found nothing; expected an image",
        "row 4, column text: found none; expected a text, because wan_s2v speaks it",
        "row 5, column param.CFGG",
        "row 6, column param.SEED",
        "row 7, column prompt",
        "row 7, column param.STEPS",
        'row 8, column image: found "shot:noimage", whose visual is "wan_i2v"',
    ):
        assert any(words in line for line in told), (words, told)


def test_sizes_are_snapped_and_said_so(read: Callable[..., Script], write_script: Write) -> None:
    script = read(
        write_script({"shot_id": "a", "visual": "flux_dev", "prompt": "x", "width": 1920, "height": 1080})
    )
    assert script.values["a"]["HEIGHT"] == 1088
    assert script.notes == ("a: flux_dev makes a height of 1088; the clip is scaled to 1080",)


def test_narration_too_long_for_an_avatar_is_told_before_it_is_paid(
    read: Callable[..., Script], write_script: Write
) -> None:
    rows = [
        {"shot_id": "p", "visual": "flux_dev", "prompt": "a face"},
        {
            "shot_id": "a",
            "text": "many words " * 400,
            "voice": "anna",
            "visual": "wan_s2v",
            "prompt": "x",
            "image": "shot:p",
        },
    ]
    assert "row 3, column text" in mistakes(read, write_script(*rows))[0]


def test_script_without_a_shot_is_a_mistake(read: Callable[..., Script], script_folder: Path) -> None:
    path = script_folder / "none.csv"
    path.write_text("shot_id,text\n")
    assert "no shot" in mistakes(read, path)[0]


def test_image_by_address_is_fetched_once_and_hashed(
    read: Callable[..., Script], write_script: Write, tmp_path: Path, draft_host: str
) -> None:
    import httpx

    PIL.Image.new("RGB", (64, 64), "blue").save(tmp_path / "blue.png")
    httpx.post(
        f"{draft_host}/upload/image", files={"image": ("blue.png", (tmp_path / "blue.png").read_bytes())}
    )
    address = f"{draft_host}/view?filename=blue.png&type=input"
    rows = [{"shot_id": name, "visual": "wan_i2v", "prompt": "x", "image": address} for name in "ab"]
    script = read(write_script(*rows), downloads=Downloads(tmp_path / "inputs"))
    (image,) = script.images.values()
    assert image.path.read_bytes() == (tmp_path / "blue.png").read_bytes()
    assert [file.name for file in (tmp_path / "inputs").iterdir()] == [image.sha256]


def test_what_an_address_holds_behind_its_question_mark_is_forgotten_once_it_is_fetched(
    read: Callable[..., Script], write_script: Write, tmp_path: Path, draft_host: str
) -> None:
    """Plans travel through the store, and a signature is as good as a key for as long as it lasts."""
    import httpx

    files = {}
    for name in ("blue.png", "red.png"):
        PIL.Image.new("RGB", (64, 64), name.removesuffix(".png")).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        httpx.post(f"{draft_host}/upload/image", files={"image": (name, content)})
        files[name] = content
    row = {"visual": "wan_i2v", "prompt": "x"}
    rows = [
        row | {"shot_id": name, "image": f"{draft_host}/view?filename={name}&type=input&sig=5f2e77"}
        for name in files
    ]
    script = read(write_script(*rows), downloads=Downloads(tmp_path / "inputs"))
    assert "5f2e77" not in repr(script)
    assert {shot.shot_id: script.images[shot.image].path.read_bytes() for shot in script.shots} == files


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9/none.png?sig=5f2e77", "http://anna:5f2e77@[bad", "s3://b/a.png?sig=5f2e77"],
)
def test_a_mistake_does_not_repeat_the_secrets_of_an_address(
    read: Callable[..., Script], write_script: Write, tmp_path: Path, address: str
) -> None:
    row = {"shot_id": "a", "visual": "wan_i2v", "prompt": "x", "image": address}
    (told,) = mistakes(read, write_script(row), downloads=Downloads(tmp_path / "inputs"))
    assert "row 2, column image" in told
    assert "5f2e77" not in told


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/none.png", "DRAFT/view?filename=none.png", "http://[bad"]
)
def test_address_that_cannot_be_read_is_a_mistake_of_its_row(
    read: Callable[..., Script], write_script: Write, tmp_path: Path, draft_host: str, address: str
) -> None:
    row = {"shot_id": "a", "visual": "wan_i2v", "prompt": "x", "image": address.replace("DRAFT", draft_host)}
    told = mistakes(read, write_script(row), downloads=Downloads(tmp_path / "inputs"))
    assert "row 2, column image" in told[0]
    assert not list((tmp_path / "inputs").iterdir())


def test_instructions_are_those_that_cosyvoice_was_trained_with(
    read: Callable[..., Script], write_script: Write
) -> None:
    fine = LINE | {"engine": "cosyvoice", "instruct": "happy"}
    assert read(write_script(fine)).shots[0].instruct == "happy"
    told = mistakes(read, write_script(fine | {"instruct": "like a pirate"}))
    assert 'column instruct: found "like a pirate"; expected one of dialect-guangdong' in told[0]
    told = mistakes(read, write_script(fine | {"engine": "lighttts"}))
    assert 'found "happy" with lighttts; expected no instruction, or the engine cosyvoice' in told[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A [pause 5 minutes] B", "expected pauses such as [pause 500ms]"),
        (
            "x" * 900,
            "900 characters without a blank or a mark; expected words that an engine can say in one go",
        ),
        ("… !", "expected a text with something to say"),
        ("[pause 2s]", "expected a text with something to say"),
    ],
)
def test_text_that_an_engine_breaks_on_is_told(
    read: Callable[..., Script], write_script: Write, text: str, told: str
) -> None:
    assert told in mistakes(read, write_script(LINE | {"text": text}))[0]


def test_a_lexicon_beside_the_script_is_used_and_its_mistakes_are_told(
    read: Callable[..., Script], write_script: Write, script_folder: Path
) -> None:
    script = write_script(LINE | {"text": "Nguyen paid $5."})
    write_csv(script_folder / "lexicon.csv", [{"word": "Nguyen", "reading": "win"}])
    assert [piece.spoken for piece in read(script).readings["a"]] == ["win paid five dollars."]
    write_csv(
        script_folder / "lexicon.csv",
        [{"word": "a", "reading": ""}, {"word": "b", "reading": "c", "scope": "voice:"}, {"word": "b", "reading": "d"},
         {"word": "b", "reading": "e"}],
    )  # fmt: skip
    told = mistakes(read, script)
    assert len(told) == 3
    assert "lexicon.csv row 2, column reading" in told[0]
    assert "expected nothing, a language tag such as en, voice:NAME" in told[1]
    assert 'row 5, column word: found "b" a second time' in told[2]


def test_numbers_of_a_language_nobody_here_counts_in_are_noted(
    read: Callable[..., Script], write_script: Write
) -> None:
    script = read(write_script(LINE | {"language": "sw", "text": "Jumla ni 12."}))
    assert "a: its numbers go to the engine as digits" in script.notes[0]


def test_recordings_that_spoil_every_line_are_refused(
    read: Callable[..., Script], write_script: Write, script_folder: Path
) -> None:
    tone = np.sin(np.arange(4 * 16_000) / 5)
    soundfile.write(script_folder / "anna.wav", np.stack([tone, -tone], axis=1) * 0.4, 16_000)
    assert "whose channels cancel each other" in mistakes(read, write_script(LINE))[0]
    write_tone(script_folder / "anna.wav", 4.0)
    rows = [
        VOICE_ROWS[0] | {"transcript": "A transcript of quite another, far longer recording than this. " * 5}
    ]
    write_csv(script_folder / "voices.csv", rows)
    assert (
        "for 4.0 s of sound; expected word for word what the recording says"
        in mistakes(read, write_script(LINE))[0]
    )
