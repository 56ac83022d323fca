"""How a line is to be said: the instructions that CosyVoice was trained with, under short names.

CosyVoice follows these and is apt to read others aloud (CosyVoice#1903, #1472), so a script names one of
them. They are `instruct_list` of CosyVoice's `cosyvoice/utils/common.py`, 26 in all.
"""

from __future__ import annotations

from typing import Literal

#: The ways to ask for speech: by a recording and its transcript; by a recording in another language than the
#: text's; by a recording and an instruction.
SpeechMode = Literal["zero_shot", "cross_lingual", "instruct2"]

_DIALECTS = {
    "guangdong": "广东话", "dongbei": "东北话", "gansu": "甘肃话", "guizhou": "贵州话", "henan": "河南话",
    "hubei": "湖北话", "hunan": "湖南话", "jiangxi": "江西话", "minnan": "闽南话", "ningxia": "宁夏话",
    "shanxi": "山西话", "shaanxi": "陕西话", "shandong": "山东话", "shanghai": "上海话", "sichuan": "四川话",
    "tianjin": "天津话", "yunnan": "云南话",
}  # fmt: skip

INSTRUCTIONS: dict[str, str] = {
    **{f"dialect-{name}": f"请用{dialect}表达。" for name, dialect in _DIALECTS.items()},
    "loud": "Please say a sentence as loudly as possible.",
    "soft": "Please say a sentence in a very soft voice.",
    "slow": "请用尽可能慢地语速说一句话。",
    "fast": "请用尽可能快地语速说一句话。",
    "happy": "请非常开心地说一句话。",
    "sad": "请非常伤心地说一句话。",
    "angry": "请非常生气地说一句话。",
    "peppa": "我想体验一下小猪佩奇风格，可以吗？",
    "robot": "你可以尝试用机器人的方式解答吗？",
}
