import pytest

from callsheet.text import is_speakable, normalise, plausible_seconds, speech_seconds


@pytest.mark.parametrize(
    ("text", "language", "wanted"),
    [
        ("  two   words\n here ", "en", "two words here"),
        ("雨下了\n三天 ", "zh", "雨下了三天"),
        ("wo\u0301rld\u200b\u0007", "en", "wórld"),
        ("\ufeffStart", "en", "Start"),
    ],
)
def test_normalise(text: str, language: str, wanted: str) -> None:
    assert normalise(text, language) == wanted
    assert normalise(wanted, language) == wanted


def test_estimates_are_of_the_right_size() -> None:
    """Against espeak-ng at a narrator's pace: 70 Latin characters 4 to 6 s, 27 Chinese ones 5 to 7 s."""
    english = "For forty years the keeper of the northern light wrote one line a day."
    assert 4 < speech_seconds(english, "en") < 6
    assert 5 < speech_seconds("月亮升起来的时候，老茶馆里只剩下三个人。掌柜擦着杯子。", "zh") < 7
    assert speech_seconds(english, "en", 2.0) == pytest.approx(speech_seconds(english, "en") / 2)
    assert speech_seconds("1999", "en") > speech_seconds("four", "en")


def test_plausible_lengths_catch_the_cut_and_the_runaway() -> None:
    low, high = plausible_seconds("The keeper lit the lamp at six.", "en")
    assert low > 0.16, "0.16 s is what CosyVoice 3 gives for a wrong prompt"
    assert high < 60, "60 s is what a runaway gives"
    assert low < 2.2 < high


@pytest.mark.parametrize(
    ("text", "speakable"), [("Hi", True), ("雨", True), ("3", True), ("…!?", False), ("", False)]
)
def test_speakable(text: str, speakable: bool) -> None:
    assert is_speakable(text) is speakable
