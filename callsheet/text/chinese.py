"""Chinese: wetext reads numbers, dates and units; what it is known to read wrongly is read here before it.

    >>> spell("电话12345678，拨打010-12345678。")
    '电话幺二三四五六七八，拨打零幺零幺二三四五六七八。'

Each rule answers a reading of wetext 0.1.8 that was heard to be wrong: telephone and other numbers that are
read digit by digit, codes of letters and digits, prices with a trailing zero, ranges of per cent.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from callsheet.text.fragments import SETTLED, Fragment, replace_in

_DIGITS = str.maketrans("0123456789", "零一二三四五六七八九")
_ONES = "零一二三四五六七八九"
_PHONE_DIGITS = str.maketrans("0123456789", "零幺二三四五六七八九")
#: Before a number that is an identifier, not an amount.
_IDENTIFIERS = (
    "编号|号码|账号|帐号|卡号|单号|订单号|学号|工号|邮编|密码|验证码|尾号|车牌|房间|群号|QQ|微信|ID"
)
_PHONES = "电话|手机|手机号|热线|座机|致电|拨打|客服|传真"


def spell(text: str) -> str:
    """The text with everything in words that is not a word."""
    fragments = [Fragment(_half_width(text.replace(SETTLED, "")))]
    for pattern, said in _RULES:
        fragments = replace_in(fragments, pattern, said)
    return "".join(f.text if f.fixed else _wetext(f.text) for f in fragments)


def _half_width(text: str) -> str:
    """Full-width digits, letters and signs of arithmetic as plain ones; punctuation stays Chinese."""
    keep = "，。！？；：（）【】「」『』“”‘’、…—《》"
    return "".join(
        unicodedata.normalize("NFKC", c) if "\uff01" <= c <= "\uff5e" and c not in keep else c for c in text
    ).replace("￥", "¥")


def _wetext(text: str) -> str:
    # wetext raises on, or drops, blanks at the edges.
    core = text.strip()
    if not core:
        return text
    start = text.index(core)
    return text[:start] + str(_normalizer().normalize(core)) + text[start + len(core) :]


@lru_cache(maxsize=1)
def _normalizer() -> Any:
    from wetext import Normalizer  # noqa: PLC0415  half a second and 30 MB, for Chinese scripts alone

    return Normalizer(lang="zh", operator="tn")


def _one_by_one(match: re.Match[str]) -> str:
    return _only_digits(match[0]).translate(_DIGITS)


def _phone(match: re.Match[str]) -> str:
    return ("加八六" if match[0].startswith("+86") else "") + _only_digits(
        match[0].removeprefix("+86")
    ).translate(_PHONE_DIGITS)


def _only_digits(text: str) -> str:
    return "".join(c for c in text if c.isdigit())


def _code(match: re.Match[str]) -> str:
    """Letters as they are, numbers of up to two places as amounts, longer ones digit by digit."""
    parts = re.findall(r"[A-Za-z]+|\d+|\.", match[0])
    said = []
    for part in parts:
        if part == ".":
            said.append("点")
        elif not part.isdigit():
            said.append(part)
        elif len(part) <= 2 and not part.startswith("0"):
            said.append(str(_normalizer().normalize(part)))
        else:
            said.append(part.translate(_DIGITS))
    return "".join(said)


def _price(match: re.Match[str]) -> str:
    """¥3.50 is 三元五角; ¥1,200 has no comma."""
    sign, number = match["sign"] or "", match["number"].replace(",", "")
    whole, _, decimals = number.partition(".")
    unit = {
        "¥": "元",
        "$": "美元",
        "€": "欧元",
        "£": "英镑",
        "US$": "美元",
        "HK$": "港元",
        "NT$": "新台币",
    }.get(sign, "元")
    words = "零" if whole == "0" else str(_normalizer().normalize(whole + unit)).removesuffix(unit)
    decimals = decimals.rstrip("0")
    if match["scale"]:  # ¥1.5万
        return str(_normalizer().normalize(number + match["scale"])) + unit
    if not decimals:
        return words + unit
    if unit == "元" and len(decimals) == 1:
        return (words + "元" if whole != "0" else "") + decimals.translate(_DIGITS) + "角"
    return words + "点" + decimals.translate(_DIGITS) + unit


def _percent_range(match: re.Match[str]) -> str:
    low, high = (str(_normalizer().normalize(n + "%")) for n in (match[1], match[2]))
    return f"{low}到{high}"


def _before_christ(match: re.Match[str]) -> str:
    return "公元前" + match[1].translate(_DIGITS) + "年"


def _times(match: re.Match[str]) -> str:
    return "乘".join(str(_normalizer().normalize(n)) for n in (match[1], match[2]))


def _range(match: re.Match[str]) -> str:
    return "到".join(str(_normalizer().normalize(n)) for n in (match[1], match[2]))


def _small(number: str) -> str:
    """A whole number below 10,000 as an amount: wetext reads 110 as a telephone number and 2 as 两."""
    value, words = int(number), ""
    for unit, sign in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, value = divmod(value, unit)
        if digit:
            words += _ONES[digit] + sign
        elif words and value and not words.endswith("零"):
            words += "零"
    return words.removeprefix("一") if words.startswith("一十") else words or "零"


def _fraction(match: re.Match[str]) -> str:
    return f"{_small(match[2])}分之{_small(match[1])}"


def _day(match: re.Match[str]) -> str:
    return f"{_small(match[1])}月{_small(match[2])}{match[3]}"


def _address(match: re.Match[str]) -> str:
    name = re.sub(r"^(https?://)?(www\.)?", "", match[0].rstrip("/"))
    return (
        name.translate(_DIGITS)
        .replace(".", "点")
        .replace("/", "斜杠")
        .replace("@", " at ")
        .replace("-", "杠")
    )


_Rule = tuple[str, Callable[[re.Match[str]], str]]
_RULES: tuple[_Rule, ...] = (
    (r"\[[a-z_]+\]|<[a-z]+>|</[a-z]+>", lambda m: m[0]),  # the engine's own marks: [breath], <strong>
    (r"[A-Za-z0-9_.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z]+)+|(?:https?://|www\.)[A-Za-z0-9_./-]+"
     r"|(?<![A-Za-z0-9])[A-Za-z0-9-]+\.(?:com|cn|org|net)(?![A-Za-z0-9])(?:/[A-Za-z0-9_./-]*)?",
     _address),
    (r"(?:\+86[ -]?)?(?<!\d)1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)", _phone),
    (r"(?<!\d)0\d{2,3}-\d{7,8}(?!\d)|(?<!\d)[48]00-\d{3,4}-\d{3,4}(?!\d)", _phone),
    (rf"(?:{_PHONES})(?:是|为|：|:)? ?\d{{3,12}}(?![\d年月日个元名位人])",
     lambda m: re.sub(r"\d", lambda d: d[0].translate(_PHONE_DIGITS), m[0])),
    (r"(?<![\d.,])\d{3,8}(?=客服|热线|电话)", _phone),
    (rf"(?:{_IDENTIFIERS})号?(?:是|为|：|:)? ?\d{{3,20}}(?!\d)",
     lambda m: re.sub(r"\d", lambda d: d[0].translate(_DIGITS), m[0])),
    (r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])",  # an address of a network
     lambda m: "点".join(part.translate(_DIGITS) for part in m[0].split("."))),
    (r"(?<![A-Za-z\d])[vV]?\d+(?:\.\d+){2,}(?=版|\b)(?![.\d年月日])", _code),
    (r"(?<=打)(?:1[12]\d|12306|100\d\d|95\d{3}|\d{7,12})(?!\d)", _phone),
    (r"7-11(?=便利店|店|超市)", lambda m: "七十一"),
    (r"(?<!\d)(1[0-2]|0?[1-9])月(3[01]|[12]\d|0?[1-9])([日号])", _day),
    (r"(?<=第)\d{1,4}(?!\d|[-~～—.])", lambda m: _small(m[0])),
    (r"(?<![\d/.])(\d{1,3})/(\d{1,4})(?![\d/])", _fraction),
    # A long bare number that nothing is counted by is an identifier; round ones are amounts.
    (r"(?<![\d.,¥$€£])\d{6,}[1-9](?![\d.,%°]|[A-Za-z]|[\u4e00-\u9fff])", _one_by_one),
    (r"(?<![\d.])(\d+(?:\.\d+)?)%?[-~～—至]{1,2}(\d+(?:\.\d+)?)%", _percent_range),
    (r"(?P<sign>HK\$|NT\$|US\$|[¥$€£])(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?P<scale>[万亿]?)元?", _price),
    (r"(?P<sign>)(?P<number>\d+\.\d*0)(?P<scale>)元", _price),
    (r"(?<![\d.,第月周期])2(?=[次天家台种倍周条张本辆只件场遍句人]|小时|分钟)", lambda m: "两"),
    (r"公元前(\d{1,4})年", _before_christ),
    (r"(\d+)[×xX*](\d+)(?!\d)", _times),
    (r"(?<=第)(\d+)[-~～—]{1,2}(\d+)(?=[章节回集页课名届])", _range),
    (r"(?<![\d.])(\d+)[～~](\d+)(?!\d)", _range),
    (r"(?<=[楼栋座幢])\d{3,4}(?=[室房号])", _one_by_one),
    (r"(?<![A-Za-z\d])(?:[A-Za-z]+-?\d+(?:\.\d+)?(?:-\d+)*[A-Za-z]*|\d{4}[QH]\d)(?![A-Za-z\d%])", _code),
    (rf"(?<={SETTLED})[-~～—](?={SETTLED})", lambda m: "到"),  # between two days, two prices
)  # fmt: skip
