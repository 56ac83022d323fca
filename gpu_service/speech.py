"""The speech routes of the draft host: CosyVoice's and LightTTS's, which share one path.

A request that names a style or says ``stream`` is LightTTS's and is refused as LightTTS refuses;
any other is CosyVoice's, whose server answers 500 to what it cannot read (facts, 1.1 and 1.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Form, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse

from gpu_service.voice import BadPrompt, read_prompt, speak_like

router = APIRouter()

STYLE = "draft"
#: CosyVoice asserts prompts of at most 30 s.
LONGEST_PROMPT = 30.0
#: Bytes of one chunk of the answer; the real servers send one per text segment.
CHUNK = 48_000


@router.post("/inference_zero_shot")
async def inference_zero_shot(
    tts_text: Annotated[str, Form()],
    prompt_text: Annotated[str, Form()],
    prompt_wav: UploadFile,
    stream: Annotated[str | None, Form()] = None,
    tts_model_name: Annotated[str | None, Form()] = None,
    speed: Annotated[float, Form()] = 1.0,
) -> Response:
    """Raw 16-bit little-endian mono PCM of 24 kHz, chunked, with neither header nor length."""
    is_lighttts = stream is not None or tts_model_name is not None
    if is_lighttts and (refusal := _lighttts_refusal(stream or "false", tts_model_name or "default", speed)):
        return refusal
    return await _speak(tts_text, prompt_text, prompt_wav, speed, is_lighttts=is_lighttts)


@router.post("/inference_cross_lingual")
async def inference_cross_lingual(tts_text: Annotated[str, Form()], prompt_wav: UploadFile) -> Response:
    """CosyVoice's mode for a recording in another language: it has no transcript."""
    return await _speak(tts_text, "", prompt_wav)


@router.post("/inference_instruct2")
async def inference_instruct2(
    tts_text: Annotated[str, Form()], instruct_text: Annotated[str, Form()], prompt_wav: UploadFile
) -> Response:
    """CosyVoice's mode with an instruction. The draft voice follows those about speed alone."""
    speed = next((factor for word, factor in (("快", 1.3), ("慢", 0.75)) if word in instruct_text), 1.0)
    return await _speak(tts_text, "", prompt_wav, speed)


async def _speak(
    tts_text: str, prompt_text: str, prompt_wav: UploadFile, speed: float = 1.0, *, is_lighttts: bool = False
) -> Response:
    try:
        prompt = read_prompt(await prompt_wav.read())
    except BadPrompt as error:
        if is_lighttts:
            return JSONResponse({"message": str(error)}, status_code=400)
        return Response("Internal Server Error", status_code=500)
    if prompt.seconds > LONGEST_PROMPT:
        if is_lighttts:
            return JSONResponse(
                {"message": "do not support extract speech token for audio longer than 30s"}, 417
            )
        return Response(status_code=200)  # the assert is raised inside the stream: 200 and no body
    pcm = await speak_like(prompt, _spoken(tts_text), transcript=_spoken(prompt_text), speed=speed)
    return StreamingResponse(_chunks(pcm))


@router.get("/query_tts_model")
@router.post("/query_tts_model")
async def query_tts_model() -> dict[str, list[str]]:
    return {"tts_models": [STYLE]}


@router.get("/healthz")
@router.get("/health")
async def health() -> dict[str, str]:
    """LightTTS speaks a sentence for this; the draft does not need to."""
    return {"status": "healthy"}


def _lighttts_refusal(stream: str, style: str, speed: float) -> Response | None:
    if style not in ("default", STYLE):
        return JSONResponse({"message": repr(style)}, status_code=417)
    if stream.lower() == "true" and speed != 1.0:
        return JSONResponse({"message": "streaming does not support speed"}, status_code=400)
    return None


def _spoken(text: str) -> str:
    """The text without CosyVoice 3's system prompt."""
    return text.rpartition("<|endofprompt|>")[2]


def _chunks(pcm: bytes) -> Iterator[bytes]:
    for start in range(0, len(pcm), CHUNK):
        yield pcm[start : start + CHUNK]
