"""Speaks one text with espeak-ng, in a process of its own.

    echo '{"text": "Hello.", "voice": "en-us", "rate": 165, "pitch": 50}' | python -m gpu_service.speak > out.raw

espeakng-loader brings the library and its data, not an API, so it is called through ctypes. The
library keeps state between texts (the same text sounds different the second time) and is not
thread-safe; a fresh process for each text makes it repeatable, and a crash costs one text.

Writes 16-bit little-endian mono PCM at 22,050 Hz.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import espeakng_loader

#: From espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_CHARS_UTF8 = 1
_POS_CHARACTER = 1

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(text: str, voice: str, rate: int, pitch: int) -> bytes:
    """PCM of ``text``. ``rate`` in words per minute (80 to 450), ``pitch`` 0 to 99. Raises ValueError for an unknown voice."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    if library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0) != 22_050:
        raise RuntimeError("espeak-ng did not start")
    pcm = bytearray()

    @_Callback  # type: ignore[untyped-decorator]
    def collect(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            pcm.extend(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(collect)
    library.espeak_ng_SetRandSeed(1)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"espeak-ng has no voice {voice}")
    for parameter, value in ((_RATE, rate), (_VOLUME, 60), (_PITCH, pitch), (_RANGE, 55)):
        library.espeak_SetParameter(parameter, value, 0)
    raw = text.encode()
    library.espeak_Synth(raw, len(raw) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
    return bytes(pcm)


if __name__ == "__main__":
    sys.stdout.buffer.write(speak(**json.load(sys.stdin)))
