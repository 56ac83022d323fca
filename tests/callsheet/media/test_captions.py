import itertools

import pysubs2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callsheet.media.captions import GAP, LONGEST, SHORTEST, make_cues, width, write_captions

ENGLISH = (
    "For forty years the keeper of the northern light wrote one line a day: the wind, the sea, and the ships that "
    "passed. On the last evening, Dr. Hale asked him why. He said nothing; he lit the lamp."
)
CHINESE = "月亮升起来的时候，老茶馆里只剩下三个人。掌柜擦着杯子，听窗外的雨声，一句话也没有说。2024年以后，再没有人见过他。"


def joined(cues: object, blank: str) -> str:
    return blank.join(blank.join(cue.lines) for cue in cues)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "language", "limit", "blank"), [(ENGLISH, "en", 42, " "), (CHINESE, "zh", 16, "")]
)
def test_captions_keep_the_text_and_the_limits(text: str, language: str, limit: int, blank: str) -> None:
    cues = make_cues(text, language, 0.3, 16.0)
    assert joined(cues, blank) == text
    assert all(len(cue.lines) <= 2 and width(line, limit) <= limit for cue in cues for line in cue.lines)
    assert all(SHORTEST <= cue.end - cue.start <= LONGEST for cue in cues)
    assert (cues[0].start, cues[-1].end) == (0.3, pytest.approx(16.0))
    for before, after in itertools.pairwise(cues):
        assert after.start - before.end == pytest.approx(GAP)


def test_captions_break_at_sentences_and_not_after_a_title() -> None:
    cues = make_cues(ENGLISH, "en", 0.0, 16.0)
    assert [cue.lines[-1][-1] for cue in cues[:2]] == [":", "."]
    assert not any(line.endswith("Dr.") for cue in cues for line in cue.lines)


@settings(deadline=None, max_examples=60)
@given(
    text=st.text(st.sampled_from("aB é,.!?雨夜。，“” 9\n"), min_size=1, max_size=160),
    language=st.sampled_from(["en", "zh"]),
)
def test_no_character_is_lost_whatever_the_text(text: str, language: str) -> None:
    cues = make_cues(text, language, 0.0, 10.0)
    assert "".join(joined(cues, "").split()) == "".join(text.split())
    limit = 16 if language == "zh" else 42
    assert all(width(line, limit) <= limit for cue in cues for line in cue.lines)
    assert all(before.end <= after.start for before, after in itertools.pairwise(cues))


def test_a_word_longer_than_a_line_is_cut() -> None:
    cues = make_cues("https://example.org/" + "x" * 100, "en", 0.0, 6.0)
    assert all(len(line) <= 42 for cue in cues for line in cue.lines)


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_files_are_read_back_with_braces_tags_and_backslashes(kind: str) -> None:
    text = r"Use {braces}, a < b & c, C:\new and \N."
    written = write_captions(make_cues(text, "en", 1.0, 4.5))[kind]  # type: ignore[index]
    assert ("00:00:01,000 --> 00:00:04,500" if kind == "srt" else "00:00:01.000 --> 00:00:04.500") in written
    body = written.split("04,500\n" if kind == "srt" else "04.500\n")[1].replace("\u200b", "").strip()
    expected = text.replace("&", "&amp;").replace("<", "&lt;") if kind == "vtt" else text
    assert body == expected
    assert len(pysubs2.SSAFile.from_string(written, format_=kind)) == 1


def test_silence_has_no_captions() -> None:
    assert make_cues("", "en", 0.0, 1.0) == []
