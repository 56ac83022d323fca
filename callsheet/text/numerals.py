"""Numbers in words, by num2words, for every language it knows: what all normalisers share.

>>> cardinal("1234", "en")
'one thousand two hundred and thirty-four'
>>> spell_numbers("Er zahlte 1.234,56 € für 3,5 kg.", "de")
'Er zahlte eintausendzweihundertvierunddreißig Euro sechsundfünfzig für drei Komma fünf Kilogramm.'
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from num2words import num2words

#: Longer numbers are read digit by digit: nobody hears a cardinal of sixteen places.
LONGEST_CARDINAL = 15


def cardinal(number: str, language: str) -> str:
    """A number in words. ``number`` has a point for decimals and no separators, and may begin with a minus."""
    negative, number = number.startswith("-"), number.lstrip("-")
    whole, _, decimals = number.partition(".")
    if len(whole) > LONGEST_CARDINAL:
        return digits(number, language)
    words = str(num2words(int(whole or "0"), lang=language)).replace(",", "")
    if decimals:
        # num2words takes floats, which lose digits ("0.10", "1234567.05"); a decimal place is read by itself.
        words = _join(language, words, POINTS.get(language, "point"), digits(decimals, language))
    return _join(language, MINUS.get(language, "minus"), words) if negative else words


def digits(number: str, language: str) -> str:
    """Digit by digit."""
    return _join(language, *(str(num2words(int(d), lang=language)) for d in number if d.isdigit()))


def ordinal(number: int, language: str) -> str:
    return str(num2words(number, lang=language, to="ordinal")).replace(",", "")


def year(number: int, language: str) -> str:
    """A year as it is said: nineteen ninety-nine."""
    if language in ("ja", "ko"):  # num2words gives the era in Japanese, and the unit in both
        return cardinal(str(number), language)
    return str(num2words(number, lang=language, to="year")).replace(",", "")


def _join(language: str, *words: str) -> str:
    return ("" if language == "ja" else " ").join(words)


POINTS = {"en": "point", "de": "Komma", "fr": "virgule", "es": "coma", "ja": "点", "ko": "점", "it": "virgola",
          "pt": "vírgula", "nl": "komma", "pl": "przecinek", "ru": "запятая"}  # fmt: skip
MINUS = {"en": "minus", "de": "minus", "fr": "moins", "es": "menos", "ja": "マイナス", "ko": "마이너스", "it": "meno",
         "pt": "menos", "nl": "min", "pl": "minus", "ru": "минус"}  # fmt: skip


@dataclass(frozen=True)
class Speech:
    """How a language writes and says numbers.

    Attributes:
        thousands, decimal: the separators of its numbers.
        percent: the word, said after the number.
        currencies: sign to its word in singular and plural.
        units: abbreviation to word, singular and plural.
        months: names of months, where a day before one is an ordinal ("3. Mai").
        day: how the day of the month is said.
        years: whether a bare number from 1100 to 2099 is a year said in its own way.
    """

    thousands: str
    decimal: str
    percent: str
    currencies: dict[str, tuple[str, str]]
    units: dict[str, tuple[str, str]]
    months: tuple[str, ...] = ()
    day: Callable[[int], str] | None = None
    years: bool = False


def _german_day(day: int) -> str:
    return ordinal(day, "de") + "n"


def _french_day(day: int) -> str:
    return "premier" if day == 1 else cardinal(str(day), "fr")


def _metric(kilo: str, gram: str, metre: str, litre: str, plural: str = "") -> dict[str, tuple[str, str]]:
    """The usual units of a language that builds them regularly."""
    words = {
        "kg": kilo + gram, "g": gram, "km": kilo + metre, "m": metre, "cm": "centi" + metre,
        "mm": "milli" + metre, "l": litre, "ml": "milli" + litre,
    }  # fmt: skip
    return {unit: (word, word + plural) for unit, word in words.items()}


SPEECH: dict[str, Speech] = {
    "de": Speech(
        ".", ",", "Prozent",
        {"€": ("Euro", "Euro"), "$": ("Dollar", "Dollar"), "£": ("Pfund", "Pfund")},
        {**_metric("Kilo", "gramm", "meter", "liter"), "kg": ("Kilogramm", "Kilogramm"), "g": ("Gramm", "Gramm"),
         "km": ("Kilometer", "Kilometer"), "m": ("Meter", "Meter"), "cm": ("Zentimeter", "Zentimeter"),
         "mm": ("Millimeter", "Millimeter"), "l": ("Liter", "Liter"), "ml": ("Milliliter", "Milliliter"),
         "km/h": ("Kilometer pro Stunde", "Kilometer pro Stunde"), "°C": ("Grad Celsius", "Grad Celsius")},
        ("Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September", "Oktober",
         "November", "Dezember"),
        _german_day, years=True,
    ),
    "fr": Speech(
        " ", ",", "pour cent",
        {"€": ("euro", "euros"), "$": ("dollar", "dollars"), "£": ("livre", "livres")},
        {**_metric("kilo", "gramme", "mètre", "litre", "s"), "cm": ("centimètre", "centimètres"),
         "km/h": ("kilomètre par heure", "kilomètres par heure"), "°C": ("degré Celsius", "degrés Celsius")},
        ("janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre", "octobre",
         "novembre", "décembre"),
        _french_day,
    ),
    "es": Speech(
        ".", ",", "por ciento",
        {"€": ("euro", "euros"), "$": ("dólar", "dólares"), "£": ("libra", "libras")},
        {**_metric("kiló", "gramo", "metro", "litro", "s"), "kg": ("kilogramo", "kilogramos"),
         "km": ("kilómetro", "kilómetros"), "cm": ("centímetro", "centímetros"),
         "mm": ("milímetro", "milímetros"), "ml": ("mililitro", "mililitros"),
         "km/h": ("kilómetro por hora", "kilómetros por hora"), "°C": ("grado Celsius", "grados Celsius")},
    ),
    "ja": Speech(",", ".", "パーセント", {"¥": ("円", "円"), "$": ("ドル", "ドル"), "€": ("ユーロ", "ユーロ")},
        {"kg": ("キログラム",) * 2, "km": ("キロメートル",) * 2, "cm": ("センチメートル",) * 2, "m": ("メートル",) * 2,
         "km/h": ("キロメートル毎時",) * 2, "°C": ("度",) * 2, "℃": ("度",) * 2}),
    "ko": Speech(",", ".", "퍼센트", {"₩": ("원", "원"), "$": ("달러", "달러"), "€": ("유로", "유로")},
        {"kg": ("킬로그램",) * 2, "km": ("킬로미터",) * 2, "cm": ("센티미터",) * 2, "m": ("미터",) * 2,
         "km/h": ("시속 킬로미터",) * 2, "°C": ("도",) * 2, "℃": ("도",) * 2}),
}  # fmt: skip
#: The other languages of CosyVoice 3 and LightTTS, and what they say for per cent; all write 1.234,56.
_OTHERS = {"it": "per cento", "ru": "процентов", "pt": "por cento", "nl": "procent", "pl": "procent"}
SPEECH |= {language: Speech(".", ",", percent, {}, {}) for language, percent in _OTHERS.items()}


def knows_numbers_of(language: str) -> bool:
    """Whether numbers of this language can be put in words; of others they go to the engine as written."""
    return language in SPEECH


def spell_numbers(text: str, language: str) -> str:
    """Puts a text's numbers, percentages, prices and units in words; other text is left as it is."""
    speech = SPEECH[language]
    number = _number_pattern(speech)
    for pattern, said in OWN_RULES.get(language, ()):
        text = re.sub(pattern, said, text)
    text = _with_days(text, speech)
    text = _with_prices(text, language, speech, number)
    text = _with_units(text, language, speech, number)
    if speech.years:
        text = re.sub(
            r"(?<![\d.,])(1[1-9]|20)\d\d(?![\d%]|[.,]\d)", lambda m: year(int(m[0]), language), text
        )
    # What touches a letter ("2e", "10h") is no number by itself: better left as it is than glued to it.
    apart = number if language in ("ja", "ko") else rf"(?<![^\W\d_])(?:{number})(?![^\W\d_])"
    return re.sub(apart, lambda m: _number(m[0], language, speech), text)


def _german_ordinal(match: re.Match[str]) -> str:
    ending = (
        "n"
        if re.search(r"(?i)\b(?:im|am|vom|zum|beim|dem|den|des|einem)\s$", match.string[: match.start()])
        else ""
    )
    return ordinal(int(match[1]), "de") + ending


def _german_time(match: re.Match[str]) -> str:
    hour = "ein" if match[1].lstrip("0") == "1" else cardinal(str(int(match[1])), "de")
    minute = int(match[2] or 0)
    return f"{hour} Uhr" + (f" {cardinal(str(minute), 'de')}" if minute else "")


def _german_date(match: re.Match[str]) -> str:
    month = SPEECH["de"].months[int(match[2]) - 1]
    return f"{_german_ordinal(match)} {month} {year(int(match[3]), 'de')}"


def _french_time(match: re.Match[str]) -> str:
    hour = int(match[1])
    words = ("une" if hour == 1 else cardinal(str(hour), "fr")) + (" heure" if hour < 2 else " heures")
    return words + (f" {cardinal(str(int(match[2])), 'fr')}" if match[2] and int(match[2]) else "")


def _spanish_time(match: re.Match[str]) -> str:
    hour, minute = ("una" if int(match[1]) == 1 else cardinal(str(int(match[1])), "es")), int(match[2])
    return hour + (
        " en punto" if not minute else " y media" if minute == 30 else f" y {cardinal(str(minute), 'es')}"
    )


def _japanese_yen(match: re.Match[str]) -> str:
    return f"{cardinal(match[1].replace(',', ''), 'ja')}{match[2]}円"


#: What a language writes with digits in a way of its own, before its plain numbers are read.
OWN_RULES: dict[str, tuple[tuple[str, Callable[[re.Match[str]], str]], ...]] = {
    "de": (
        (r"\b(3[01]|[12]?\d|0[1-9])\.(1[0-2]|0?[1-9])\.(\d{4})\b", _german_date),
        (r"\b([01]?\d|2[0-4])(?:[:.]([0-5]\d))? Uhr\b", _german_time),
        (r"\b(\d{1,3})\.(?= (?!Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember)[A-ZÄÖÜ][a-zäöüß])",
         _german_ordinal),
    ),
    "fr": (
        (r"\b([01]?\d|2[0-4]) ?h(?: ?([0-5]\d))?\b", _french_time),
        (r"\b1(er|re)\b", lambda m: "premier" if m[1] == "er" else "première"),
        (r"\b(\d{1,4})(?:e|ème)\b", lambda m: ordinal(int(m[1]), "fr")),
    ),
    "es": (
        (r"\b([01]?\d|2[0-4]):([0-5]\d)\b", _spanish_time),
        (r"\b(\d{1,2})\.?º", lambda m: ordinal(int(m[1]), "es")),
        (r"\b(\d{1,2})\.?ª", lambda m: ordinal(int(m[1]), "es")[:-1] + "a"),
        (r"\b21(?= (?:años|días|meses|minutos|segundos|euros|dólares|libros|hombres)\b)", lambda m: "veintiún"),
    ),
    "ja": ((r"[¥￥](\d{1,3}(?:,\d{3})+|\d+)([万億])", _japanese_yen),),
}  # fmt: skip


def _number_pattern(speech: Speech) -> str:
    thousands, decimal = re.escape(speech.thousands), re.escape(speech.decimal)
    blank = "[ \u00a0\u202f]" if speech.thousands == " " else thousands
    grouped = rf"(?<![0-9A-Za-z{decimal}-])-?\d{{1,3}}(?:{blank}\d{{3}})+(?:{decimal}\d+)?(?!\d)"
    return rf"{grouped}|(?<!\d)(?:(?<![0-9A-Za-z])-)?\d+(?:{decimal}\d+)?"


def _plain(number: str, speech: Speech) -> str:
    """The number with a point for decimals and no separators."""
    blank = "[ \u00a0\u202f]" if speech.thousands == " " else re.escape(speech.thousands)
    return re.sub(blank, "", number).replace(speech.decimal, ".")


def _number(number: str, language: str, speech: Speech) -> str:
    plain = _plain(number, speech)
    if re.match(r"-?0\d", plain):
        return digits(plain, language)
    return cardinal(plain, language)


def _with_days(text: str, speech: Speech) -> str:
    say = speech.day
    if say is None:
        return text
    months = "|".join(speech.months)
    dot = r"\." if speech.months[0] == "Januar" else ""
    return re.sub(
        rf"\b(\d{{1,2}}){dot}(?= (?:{months})\b)",
        lambda m: say(int(m[1])),
        text,
    )


def _with_prices(text: str, language: str, speech: Speech, number: str) -> str:
    signs = "".join(map(re.escape, speech.currencies))
    if not signs:
        return text

    def said(match: re.Match[str]) -> str:
        amount = Decimal(_plain(match["a"] or match["b"], speech))
        words_for = speech.currencies[match["x"] or match["y"]]
        whole, hundredths = int(amount), round((amount % 1) * 100)
        words = _counted(str(whole), whole, words_for, language)
        return words if not hundredths else _join(language, words, cardinal(str(hundredths), language))

    return re.sub(rf"(?P<x>[{signs}]) ?(?P<a>{number})|(?P<b>{number})[ \u00a0]?(?P<y>[{signs}])", said, text)


def _with_units(text: str, language: str, speech: Speech, number: str) -> str:
    text = re.sub(
        rf"({number})[ \u00a0]?%",
        lambda m: _join(language, _number(m[1], language, speech), speech.percent), text,
    )  # fmt: skip
    if not speech.units:
        return text
    units = "|".join(sorted(map(re.escape, speech.units), key=len, reverse=True))

    def said(match: re.Match[str]) -> str:
        plain = _plain(match[1], speech)
        return _counted(plain, Decimal(plain), speech.units[match[2]], language)

    return re.sub(rf"({number})[ \u00a0]?({units})(?![0-9A-Za-z/])", said, text)


def _counted(plain: str, amount: Decimal | int, words: tuple[str, str], language: str) -> str:
    """A number and what it counts, in singular or plural."""
    if amount == 1 and language in ("de", "fr", "es"):
        one = {
            "de": "ein",
            "fr": "une" if words[0] == "livre" else "un",
            "es": "una" if words[0] == "libra" else "un",
        }
        return f"{one[language]} {words[0]}"
    return _join(language, cardinal(plain, language), words[0] if amount == 1 else words[1])
