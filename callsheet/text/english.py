"""English: what is not a word, in words, as a narrator reads it.

    >>> spell("In the 1770s Dr. Hale paid $3.50 on 12/03/2024.")
    'In the seventeen seventies Doctor Hale paid three dollars and fifty cents on December third, twenty twenty-four.'

A table of rules, the most particular first; each settles what it replaces. wetext's English is not used:
it reads "1770s" as seconds, "1,234" without its "one", "24/7" as a fraction, and a telephone number as a range.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from callsheet.text.fragments import SETTLED, Fragment, joined, outline, replace_in
from callsheet.text.numerals import cardinal as _cardinal
from callsheet.text.numerals import digits, ordinal, year

_EN = "en"
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
_MONTH = "|".join(f"{m}|{m[:3]}\\.?" for m in _MONTHS) + r"|Sept\.?"
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_SCALES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion", "t": "trillion"}
_CURRENCIES = {
    "HK$": ("Hong Kong dollar", "Hong Kong dollars", "cent", "cents"),
    "A$": ("Australian dollar", "Australian dollars", "cent", "cents"),
    "C$": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "S$": ("Singapore dollar", "Singapore dollars", "cent", "cents"),
    "$": ("dollar", "dollars", "cent", "cents"), "US$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"), "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "", ""), "₹": ("rupee", "rupees", "paisa", "paise"),
    "USD": ("US dollar", "US dollars", "cent", "cents"), "EUR": ("euro", "euros", "cent", "cents"),
    "GBP": ("pound", "pounds", "penny", "pence"), "CNY": ("yuan", "yuan", "", ""), "RMB": ("yuan", "yuan", "", ""),
}  # fmt: skip
_UNITS = {
    "kg": "kilogram", "g": "gram", "mg": "milligram", "t": "ton", "lb": "pound", "lbs": "pound", "oz": "ounce",
    "km": "kilometre", "m": "metre", "cm": "centimetre", "mm": "millimetre", "mi": "mile", "ft": "foot",
    "in": "inch", "yd": "yard", "km/h": "kilometre per hour", "kph": "kilometre per hour", "mph": "mile per hour",
    "m/s²": "metre per second squared", "m/s": "metre per second", "l": "litre", "L": "litre", "ml": "millilitre", "mL": "millilitre",
    "s": "second", "ms": "millisecond", "min": "minute", "h": "hour", "hr": "hour", "hrs": "hour",
    "Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "W": "watt", "kW": "kilowatt",
    "kWh": "kilowatt hour", "MW": "megawatt", "V": "volt", "KB": "kilobyte", "MB": "megabyte", "GB": "gigabyte",
    "TB": "terabyte", "Mbps": "megabit per second", "Gbps": "gigabit per second", "dB": "decibel",
    "°C": "degree Celsius", "°F": "degree Fahrenheit", "°": "degree", "m²": "square metre", "m2": "square metre",
    "km²": "square kilometre", "sq ft": "square foot", "m³": "cubic metre", "px": "pixel", "fps": "frame per second",
}  # fmt: skip
#: A word as well ("5 in the morning"): a unit only where no blank separates it.
_TIGHT_UNITS = {"in"}
_AMERICAN = {"metre": "meter", "litre": "liter"}
_ROMAN = {
    r: n + 1
    for n, r in enumerate(
        ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII", "XIII", "XIV", "XV", "XVI", "XVII",
         "XVIII", "XIX", "XX", "XXI", "XXII", "XXIII", "XXIV", "XXV")
    )
}  # fmt: skip
_NUMBERED = (
    "Chapter|Part|Act|Scene|Volume|Book|Section|Phase|Type|Class|Level|Appendix|Article|Episode|Season"
)
_REGNAL = (
    "Henry|Louis|Charles|George|Edward|Richard|James|William|Elizabeth|Mary|John|Paul|Benedict|Philip|Francis|"
    "Frederick|Alexander|Nicholas|Catherine|Napoleon|Ramses|Pius|Leo|Gregory|Innocent|Clement|Urban|Peter|Ferdinand"
)
_TITLES = {"Dr": "Doctor", "Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Prof": "Professor", "Gen": "General",
           "Col": "Colonel", "Capt": "Captain", "Lt": "Lieutenant", "Sgt": "Sergeant", "Rev": "Reverend",
           "Gov": "Governor", "Sen": "Senator", "Hon": "Honorable"}  # fmt: skip
_ABBREVIATIONS = {
    "e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus", "vs": "versus",
    "approx.": "approximately", "Jr.": "Junior", "Sr.": "Senior", "Inc.": "Incorporated", "Ltd.": "Limited",
    "Co.": "Company", "Corp.": "Corporation", "dept.": "department", "Dept.": "Department", "est.": "established",
    "Mt.": "Mount", "Ft.": "Fort", "Fig.": "Figure", "fig.": "figure", "Vol.": "Volume", "vol.": "volume",
    "Ave.": "Avenue", "Blvd.": "Boulevard", "Rd.": "Road", "a.k.a.": "also known as", "w/o": "without", "w/": "with",
    "U.S.": "U S", "U.K.": "U K", "U.N.": "U N", "Ph.D.": "P H D", "WWI": "World War One", "WWII": "World War Two",
}  # fmt: skip
_FRACTIONS = {"½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅛": (1, 8)}
_SYMBOLS = {"&": "and", "+": "plus", "=": "equals", "%": "percent", "§": "section", "×": "times", "÷": "divided by",
            "≈": "about", "≤": "at most", "≥": "at least", "→": "to", "©": "copyright", "°": "degrees"}  # fmt: skip


def spell(text: str, *, british: bool = False) -> str:
    """The text in words. ``british`` reads 12/03 as the twelfth of March, and says the day before the month."""
    fragments = [Fragment(text.replace("’", "'").replace(SETTLED, ""))]
    whole = outline(fragments)
    plain = not (_DIGIT.search(whole) if whole.isascii() else any(map(str.isnumeric, whole)))
    for pattern, said, needs_number in _rules(british=british):
        if not (plain and needs_number) and pattern.search(whole):
            fragments = replace_in(fragments, pattern, said)
            whole = outline(fragments)
    return re.sub(r"  +", " ", joined(fragments))


_DIGIT = re.compile(r"[0-9]")
_Said = Callable[[re.Match[str]], str]


@lru_cache(maxsize=2)
def _rules(*, british: bool) -> tuple[tuple[re.Pattern[str], _Said, bool], ...]:
    """What each rule looks for, how that is said, and whether there is a number in whatever it finds."""
    marks = [
        (r"\[[a-z_]+\]|</?[a-z]+>", lambda m: m[0]),  # the engine's own marks: [breath], <strong>
        (r"~(?=[\w$€£¥])", lambda m: "about "),
        *_ADDRESSES,
        (r"(?<=[A-Za-z\d])_+(?=[A-Za-z\d])", lambda m: " "),
    ]
    numbers = [*_dates(british), *_TIMES, *_TELEPHONES, *_MONEY]
    groups = (
        (marks, False),
        (numbers, True),
        (_NAMES, False),
        (_QUANTITIES + _NUMBERS, True),
        (_SIGNS, False),
    )
    return tuple((re.compile(pattern), said, needs) for rules, needs in groups for pattern, said in rules)


def _number(text: str) -> str:
    return _cardinal(text.replace(",", ""), _EN)


# Addresses ---------------------------------------------------------------------------------------

_ADDRESS_SIGNS = {".": "dot", "/": "slash", "-": "dash", "_": "underscore", "@": "at", ":": "colon", "?": "question mark",
                  "=": "equals", "&": "and", "#": "hash", "+": "plus", "%": "percent", "~": "tilde"}  # fmt: skip


def _address(match: re.Match[str]) -> str:
    text = re.sub(r"^(?:https?://)?(?:www\.)?", "", match[0])
    end = re.search(r"[.,;:!?/]*$", text)
    stop = "" if not end else end[0].strip("/")
    parts = re.findall(r"[A-Za-z]+|\d+|\W|_", text[: len(text) - len(end[0])] if end else text)
    words = [digits(p, _EN) if p.isdigit() else _ADDRESS_SIGNS.get(p, p) for p in parts]
    return " ".join(words) + stop


_TOP = "com|org|net|io|ai|edu|gov|co|dev|app|uk|de|cn|fr|eu|info|tv|me"
_ADDRESSES: list[tuple[str, _Said]] = [
    (r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", _address),
    (r"(?:https?://|www\.)[^\s\"'<>)\]]+", _address),
    (rf"\b(?:[a-z0-9-]+\.)+(?:{_TOP})\b(?:/[^\s\"'<>)\]]*)?", _address),
]


# Dates and times -----------------------------------------------------------------------------------


def _month(text: str) -> str:
    return next(month for month in _MONTHS if month.startswith(text.rstrip(".")[:3]))


def _date(day: int, month: str, number: str | None, *, british: bool) -> str:
    said = year(int(number), _EN) if number else ""
    if british:
        return f"the {ordinal(day, _EN)} of {month}" + (f" {said}" if said else "")
    return f"{month} {ordinal(day, _EN)}" + (f", {said}" if said else "")


def _dates(british: bool) -> list[tuple[str, _Said]]:
    def iso(m: re.Match[str]) -> str:
        return _date(int(m[3]), _MONTHS[int(m[2]) - 1], m[1], british=british)

    def slashed(m: re.Match[str]) -> str:
        first, second = int(m[1]), int(m[2])
        month, day = (second, first) if (british or first > 12) and second <= 12 else (first, second)
        if month > 12:
            return f"{_number(m[1])} {_number(m[2])} {_number(m[3])}"
        return _date(day, _MONTHS[month - 1], m[3], british=british)

    return [
        (r"\b([12]\d{3})[-/](0?[1-9]|1[0-2])[-/](0?[1-9]|[12]\d|3[01])\b", iso),
        (r"\b(\d{1,2})[/.](\d{1,2})[/.]([12]\d{3})\b", slashed),
        (rf"\b({_MONTH}) (\d{{1,2}})(?:st|nd|rd|th)?(?:,? ([12]\d{{3}}))?\b(?![,.]?\d)",
         lambda m: _date(int(m[2]), _month(m[1]), m[3], british=british)),
        (rf"(?:\bthe )?\b(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTH})(?:,? ([12]\d{{3}}))?\b",
         lambda m: _date(int(m[1]), _month(m[2]), m[3], british=True)),
        (rf"\b({_MONTH}),? ([12]\d{{3}})\b", lambda m: f"{_month(m[1])} {year(int(m[2]), _EN)}"),
        (r"(?:'|\b)(\d{1,3})?(\d0)'?s\b", _decade),
        (r"\b([12]\d{3}) ?[-–—] ?([12]\d{3})\b", lambda m: f"{year(int(m[1]), _EN)} to {year(int(m[2]), _EN)}"),
        (r"\b([12]\d{3})[-–](\d\d)\b(?![-/\d])",
         lambda m: f"{year(int(m[1]), _EN)} to {_number(m[2].lstrip('0') or '0')}"),
        (r"\b(\d{1,4}) (BCE?|CE|AD)\b", lambda m: f"{year(int(m[1]), _EN)} {' '.join(m[2])}"),
        (r"\bAD (\d{1,4})\b", lambda m: f"A D {year(int(m[1]), _EN)}"),
    ]  # fmt: skip


_TENS = {"20": "twenties", "30": "thirties", "40": "forties", "50": "fifties", "60": "sixties", "70": "seventies",
         "80": "eighties", "90": "nineties", "10": "tens"}  # fmt: skip


def _decade(m: re.Match[str]) -> str:
    century, tens = m[1] or "", m[2]
    if not century:
        return _TENS.get(tens, f"{_number(tens)}s")
    if tens == "00":
        return "two thousands" if century == "20" else f"{_number(century)} hundreds"
    return f"{_number(century)} {_TENS[tens]}"


def _time(m: re.Match[str]) -> str:
    hour, minute, half = int(m["h"]), m["m"], m["half"]
    words = [_number(str(hour))]
    if minute and minute != "00":
        words.append(f"oh {_number(minute[1])}" if minute[0] == "0" else _number(minute))
    elif not half:
        words.append("o'clock" if 0 < hour <= 12 else "hundred hours")
    if half:
        words.append("A M" if half[0] in "aA" else "P M")
    # The stop of "p.m." ends the sentence too, where nothing or a capital follows.
    ends = half and half.endswith(".") and re.match(r"\s*$|\s+[A-Z]", m.string[m.end() :])
    return " ".join(words) + ("." if ends else "")


def _clock(m: re.Match[str]) -> str:
    names = ("hour", "minute", "second")
    parts = [
        f"{_number(str(int(n)))} {name}{'' if int(n) == 1 else 's'}"
        for n, name in zip(m.groups(), names, strict=True)
    ]
    return ", ".join(parts[:2]) + f" and {parts[2]}"


_HALF = r"(?P<half>[aApP]\.m\.|[aApP]\.?[mM]\b)"
_TIMES: list[tuple[str, _Said]] = [
    (r"\b(\d{1,2}):([0-5]\d):([0-5]\d)\b", _clock),
    (rf"\b(?P<h>[01]?\d|2[0-4]):(?P<m>[0-5]\d)(?: ?{_HALF}|\b)(?!:)", _time),
    (rf"\b(?P<h>1[0-2]|[1-9])(?P<m>) ?{_HALF}", _time),
    (r"\b(\d{1,2}):(\d{1,2})\b", lambda m: f"{_number(m[1])} to {_number(m[2])}"),
]


# Telephones and codes ----------------------------------------------------------------------------


def _telephone(m: re.Match[str]) -> str:
    groups = re.findall(r"\d+", m[0])
    return ("plus " if m[0].startswith("+") else "") + ", ".join(digits(g, _EN) for g in groups)


_TELEPHONES: list[tuple[str, _Said]] = [
    (r"\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}\b", _telephone),
    (r"(?<!\w)(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}\b", _telephone),
    (r"(?<![\d.-])\d{3}-\d{4}\b(?!-)", _telephone),
    (r"\b\d{3}-\d{2}-\d{4}\b", _telephone),
    (r"(?<![\d.-])\d+(?:-\d+){2,}(?![\d.-])", _telephone),
    (r"(?<=\b[Cc]all )[19]\d\d\b|(?<=\b[Dd]ial )[19]\d\d\b", lambda m: digits(m[0], _EN)),
    (r"(?<![\d.])(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})(?![\d.])",
     lambda m: " dot ".join(digits(g, _EN) for g in m.groups())),
    (r"\b(?:[Vv]ersion )?[vV](\d+(?:\.\d+)*)\b", lambda m: f"version {_dotted(m[1])}"),
    (r"(?<![\d.])\d+(?:\.\d+){2,}(?![\d.])", lambda m: _dotted(m[0])),
]  # fmt: skip


def _dotted(text: str) -> str:
    return " point ".join(_number(part) for part in text.split("."))


# Money -------------------------------------------------------------------------------------------


def _money(m: re.Match[str]) -> str:
    one, many, hundredth, hundredths = _CURRENCIES[m["sign"] or m["code"]]
    amount, scale = m["amount"].replace(",", ""), m["scale"]
    if scale:
        return f"{_number(amount)} {_SCALES.get(scale.lower(), scale.lower())} {many}"
    whole, _, cents = amount.partition(".")
    if len(cents) not in (0, 2) or not hundredth:
        return f"{_number(amount)} {one if amount == '1' else many}"
    parts = []
    if int(whole or 0) or not int(cents or 0):
        parts.append(f"{_number(whole or '0')} {one if int(whole or 0) == 1 else many}")
    if int(cents or 0):
        parts.append(f"{_number(str(int(cents)))} {hundredth if int(cents) == 1 else hundredths}")
    return " and ".join(parts)


_SCALE = r"(?: ?(?P<scale>thousand|million|billion|trillion|[kKmMbB]n?|T)(?![A-Za-z]))?"
_SIGN = r"US\$|HK\$|[ACS]\$|[$€£¥₹]"
_CODE = "USD|EUR|GBP|CNY|RMB"
_MONEY_NOUNS = "bill|note|coin|ticket|fee|gift|fine|prize|budget|tip|deal|question|loan|plan|card|book"
_MONEY: list[tuple[str, _Said]] = [
    (
        rf"(?P<sign>{_SIGN})(?P<low>{_NUMBER}) ?[-–—] ?(?:{_SIGN})?(?P<amount>{_NUMBER}){_SCALE}(?P<code>)",
        lambda m: f"{_number(m['low'])} to {_money(m)}",
    ),
    (
        rf"(?P<sign>{_SIGN})(?P<amount>\d+(?:,\d{{3}})*)(?: (?P<scale>thousand|million|billion))?(?P<code>)-?(?= ?(?:{_MONEY_NOUNS})\b)",
        lambda m: (
            f"{_number(m['amount'])}{'-' + m['scale'] if m['scale'] else ''}-{_CURRENCIES[m['sign']][0]}"
        ),
    ),
    (rf"(?P<sign>{_SIGN}) ?(?P<amount>{_NUMBER}){_SCALE}(?P<code>)", _money),
    (rf"(?P<sign>)\b(?P<code>{_CODE}) ?(?P<amount>{_NUMBER}){_SCALE}", _money),
    (rf"(?P<amount>{_NUMBER}){_SCALE} ?(?P<code>{_CODE})\b(?P<sign>)", _money),
    (rf"(?P<amount>{_NUMBER}){_SCALE} ?(?P<sign>[€£])(?P<code>)", _money),
]


# Names and abbreviations -------------------------------------------------------------------------


def _expanded(m: re.Match[str]) -> str:
    words = _ABBREVIATIONS[m[0]]
    # Its stop ends the sentence too where the text ends.
    rest = m.string[m.end() :]
    ends = m[0].endswith(".") and (not rest.strip("\"') ]") or _STARTERS.match(rest))
    return words + ("." if ends else "")


#: Words that begin a sentence rather than go on with a name after "Co." or "U.S.".
_STARTERS = re.compile(
    r" (?:The|He|She|It|They|We|I|You|But|And|In|On|At|This|That|My|His|Her|Our|Their|A|An|There|When|If|So|No|Yes|Then)\b"
)
_SHORTENED = "|".join(re.escape(a) for a in sorted(_ABBREVIATIONS, key=len, reverse=True))
_NAMES: list[tuple[str, _Said]] = [
    (rf"\b({'|'.join(_TITLES)})\.(?= ?[A-Z]| and | or )", lambda m: _TITLES[m[1]]),
    (rf"\b({'|'.join(t for t in _TITLES if t in ('Dr', 'Mr', 'Mrs', 'Ms'))})(?= [A-Z])", lambda m: _TITLES[m[1]]),
    (r"\b(?!(?:At|In|On|The|Near|From|By|To|And|Of|Saint)\b)([A-Z][a-z]+) St\.(?! [A-Z][a-z]+'s)",
     lambda m: f"{m[1]} Street"),
    (r"\bSt\.(?= [A-Z])", lambda m: "Saint"),
    (r"\bNos?\. ?(?=\d)|№ ?", lambda m: "numbers " if m[0].startswith("Nos") else "number "),
    (r"#(?=\d)", lambda m: "number "),
    (r"\bpp?\. ?(?=\d)", lambda m: "pages " if m[0].startswith("pp") else "page "),
    (rf"\b({_NUMBERED}) ([IVX]+)\b",
     lambda m: f"{m[1]} {_number(str(_ROMAN[m[2]]))}" if m[2] in _ROMAN else m[0]),
    # "James I think left": a lone I is a number only where no verb of ours can follow.
    (rf"\b({_REGNAL}) ([IVX]{{2,}}|[VX]|I(?= (?:of|was|and|died|reigned|ruled|became)\b|[,.;:)]|'s))(?!\w)",
     lambda m: f"{m[1]} the {ordinal(_ROMAN[m[2]], _EN)}" if m[2] in _ROMAN else m[0]),
    (r"\bWorld War (II?)\b", lambda m: f"World War {'One' if m[1] == 'I' else 'Two'}"),
    (rf"(?<![\w.])(?:{_SHORTENED})(?!\w)", _expanded),
]  # fmt: skip


# Quantities --------------------------------------------------------------------------------------


def _plural(unit: str) -> str:
    head, blank, rest = unit.partition(" ")
    if head in ("square", "cubic", "kilowatt") and rest:
        return f"{head} {_plural(rest)}"
    if head in ("foot", "inch", "hertz", "kilohertz", "megahertz", "gigahertz"):
        head = {"foot": "feet", "inch": "inches"}.get(head, head)
    else:
        head += "s"
    return head + blank + rest


def _quantity(m: re.Match[str]) -> str:
    number, unit = m["n"].replace(",", ""), _UNITS[m["unit"] or m["tight"]]
    for british, american in _AMERICAN.items():
        unit = unit.replace(british, american)
    words = _number(number) if not m["to"] else f"{_number(m['to'])} to {_number(number)}"
    if m["minus"] and not m["to"]:
        words = f"minus {words}"
    return f"{words} {unit if number == '1' and not m['to'] else _plural(unit)}"


def _feet_and_inches(m: re.Match[str]) -> str:
    feet = "foot" if m[1] == "1" else "feet"
    return f"{_number(m[1])} {feet} {_number(m[2])}" + (" inches" if m[3] else "")


def _fraction(numerator: int, denominator: int) -> str:
    if numerator == 1 and denominator in (2, 4):
        return "one half" if denominator == 2 else "one quarter"
    name = {2: "half", 4: "quarter"}.get(denominator) or ordinal(denominator, _EN)
    plural = "halves" if name == "half" else f"{name}s"
    return f"{_number(str(numerator))} {name if numerator == 1 else plural}"


def _mixed(whole: str | None, numerator: int, denominator: int) -> str:
    said = _fraction(numerator, denominator)
    if not whole:
        return said
    if numerator == 1:
        said = "a " + said.removeprefix("one ")
    return f"{_number(whole)} and {said}"


_UNIT = "|".join(sorted((re.escape(u) for u in _UNITS if u not in _TIGHT_UNITS), key=len, reverse=True))
_TIGHT = "|".join(sorted((re.escape(u) for u in _TIGHT_UNITS), key=len, reverse=True))
_QUANTITIES: list[tuple[str, _Said]] = [
    (rf"({_NUMBER})[eE]([-+]?)(\d+)\b",
     lambda m: f"{_number(m[1])} times ten to the {'minus ' if m[2] == '-' else ''}{_number(m[3])}"),
    (r"\b(\d)['′](\d{1,2})([\"″])?", _feet_and_inches),
    (r"\b24/7\b", lambda m: "twenty-four seven"),
    (r"\b9/11\b", lambda m: "nine eleven"),
    (rf"(?P<minus>(?<![\w.])[-−])?(?:(?P<to>{_NUMBER}) ?[-–] ?)?(?<![\w.])(?P<n>{_NUMBER})"
     rf"(?: ?(?P<unit>{_UNIT})|(?P<tight>{_TIGHT}))(?![\w/²³])", _quantity),
    (rf"({_NUMBER}) ?%? ?[-–] ?({_NUMBER}) ?%", lambda m: f"{_number(m[1])} to {_number(m[2])} percent"),
    (rf"(?P<minus>(?<!\w)[-−])?({_NUMBER}) ?%",
     lambda m: ("minus " if m["minus"] else "") + f"{_number(m[2])} percent"),
    (rf"(?:(\d+) ?)?([{''.join(_FRACTIONS)}])", lambda m: _mixed(m[1], *_FRACTIONS[m[2]])),
    (r"(?<![\d/.])(?:(\d+) )?([1-9])/([2-9]|1[0-9]|20|100)(?![\d/])", lambda m: _mixed(m[1], int(m[2]), int(m[3]))),
    (rf"\b({_NUMBER}) ?([kK])\b(?! ?[A-Z])", lambda m: f"{_number(m[1])} {'K' if m[1] in ('2', '4', '8') else 'thousand'}"),
    (r"\b(\d{1,2})(\d\d)p\b", lambda m: f"{_number(m[1])} {_number(str(int(m[2]))) if int(m[2]) else 'hundred'} P"),
    (rf"({_NUMBER}) ?[x×] ?(?=\d+ ?=)", lambda m: f"{_number(m[1])} times "),
    (rf"({_NUMBER}) ?[x×] ?(?=\d)", lambda m: f"{_number(m[1])} by "),
    (rf"({_NUMBER})[x×](?!\w)", lambda m: f"{_number(m[1])} times"),
]  # fmt: skip


# Plain numbers -----------------------------------------------------------------------------------


def _code(m: re.Match[str]) -> str:
    """A code of letters and digits: B2B, A4, MP3, COVID-19, AB123."""
    said = []
    for part in re.findall(r"[A-Za-z]+|\d+", m[0]):
        if part.isdigit():
            said.append(digits(part, _EN) if len(part) > 2 or part.startswith("0") else _number(part))
        else:
            said.append(part)
    return " ".join(said)


def _year_or_number(m: re.Match[str]) -> str:
    number = int(m[0])
    return year(number, _EN) if 1900 <= number <= 2099 else _number(m[0])


_NUMBERS: list[tuple[str, _Said]] = [
    (r"\b(\d{1,3}(?:,\d{3})+|\d+)(?:st|nd|rd|th)\b", lambda m: ordinal(int(m[1].replace(",", "")), _EN)),
    (r"\b(?=[A-Za-z-]*\d)(?=\d*-?[A-Za-z])(?:[A-Za-z]+-?\d+|\d+[A-Za-z]+)(?:-?[A-Za-z\d])*+\b", _code),
    (r"(?:(?<=\b[Ii]n )|(?<=\b[Ss]ince )|(?<=\b[Bb]y )|(?<=\b[Uu]ntil )|(?<=\b[Ff]rom )|(?<=\b[Bb]efore )|(?<=\b[Aa]fter )"
     r"|(?<=\b[Yy]ear )|(?<=\bcirca ))1[1-9]\d\d(?![\d,.]\d|\d)", lambda m: year(int(m[0]), _EN)),
    (r"(?<![\d.,-])(?:19|20)\d\d(?![\d]|[.,-]\d)", _year_or_number),
    (r"(?<![\w.,])0\d+(?![\d.])", lambda m: digits(m[0], _EN)),
    (rf"({_NUMBER})\^(\d+)", lambda m: f"{_number(m[1])} to the power of {_number(m[2])}"),
    (rf"({_NUMBER})([²³])", lambda m: f"{_number(m[1])} {'squared' if m[2] == '²' else 'cubed'}"),
    (rf"({_NUMBER}) ?\* ?(?=\d)", lambda m: f"{_number(m[1])} times "),
    # In a sum a hyphen between blanks is a minus, elsewhere it stands for "to".
    (rf"({_NUMBER}) - (?={_NUMBER})",
     lambda m: f"{_number(m[1])} {'minus' if re.search('[+=×÷]', m.string) else 'to'} "),
    (rf"({_NUMBER}) ?[-–] ?({_NUMBER})", lambda m: f"{_number(m[1])} to {_number(m[2])}"),
    (rf"(?<!\w)[-−]({_NUMBER})", lambda m: f"minus {_number(m[1])}"),
    (rf"{_NUMBER}", lambda m: _number(m[0])),
]  # fmt: skip

_SIGNS: list[tuple[str, _Said]] = [
    (rf"(?<={SETTLED}) ?[-–—] ?(?={SETTLED})", lambda m: " to "),  # between two dates, two prices
    (rf" ?([{''.join(map(re.escape, _SYMBOLS))}]) ?", lambda m: f" {_SYMBOLS[m[1]]} "),
    (r" ?@ ?", lambda m: " at "),
]
