"""CosyVoice over HTTP: its own protocol, without the faults of its own server.

    python server.py --model-dir /models/CosyVoice2-0.5B --port 50000

Takes the place of ``runtime/python/fastapi/server.py`` of CosyVoice ace7c47, which answers 200 with a cut
body to every prompt: it decodes the upload into a tensor, and the model then loads that tensor as a file
(QwenAudio/CosyVoice#1794, #1805, #1833). Here the model is given the path of a file. Also different:

- what can be refused is refused before the answer begins, and so is a first segment that fails;
- one synthesis at a time; the others wait. The model is not made for more (QwenAudio/CosyVoice#1002);
- samples beyond full scale are clipped; theirs wrap around and click;
- ``/health`` tells what is loaded and costs nothing.

The answer is raw 16-bit little-endian mono PCM, one chunk for each segment of the text. It runs in CosyVoice's
image (Python 3.10, FastAPI 0.115) and imports CosyVoice only to load the model, so tests need neither.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Protocol

import numpy as np
import soundfile
import uvicorn
from fastapi import FastAPI, Form, HTTPException, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

log = logging.getLogger("cosyvoice.server")

#: CosyVoice asserts at most 30 s and at least 16 kHz (``frontend.py``, ``file_utils.py``). Its fbank fails under 25 ms;
#: nothing under 0.1 s has a voice in it.
LONGEST_PROMPT, SHORTEST_PROMPT = 30.0, 0.1
LOWEST_RATE = 16_000
#: CosyVoice 3 asserts this mark in a thread whose failure it does not notice: the answer is then a crumb of noise (#1908).
END_OF_PROMPT = "<|endofprompt|>"
#: What the model keeps of a session (``model.py``), and pops only after its last segment.
SESSION_STATE = "tts_speech_token_dict llm_end_dict mel_overlap_dict flow_cache_dict hift_cache_dict".split()

Segments = Generator[dict[str, Any], None, None]


class Model(Protocol):
    """What is used of CosyVoice's ``AutoModel``. Each segment has ``tts_speech``, a float tensor ``(1, samples)``."""

    sample_rate: int

    def inference_zero_shot(
        self, tts_text: str, prompt_text: str, prompt_wav: str, *, stream: bool
    ) -> Segments: ...

    def inference_cross_lingual(self, tts_text: str, prompt_wav: str, *, stream: bool) -> Segments: ...

    def inference_instruct2(
        self, tts_text: str, instruct_text: str, prompt_wav: str, *, stream: bool
    ) -> Segments: ...


def load_model(model_dir: Path) -> Model:
    """Loads the model onto the GPU; minutes, and the only place that needs CosyVoice."""
    # CosyVoice takes a folder that is not there for the name of a model to download.
    if not any(model_dir.glob("cosyvoice*.yaml")):
        raise SystemExit(
            f"{model_dir} has no cosyvoice2.yaml or cosyvoice3.yaml; expected the folder of a model"
        )
    from cosyvoice.cli.cosyvoice import AutoModel  # noqa: PLC0415

    model: Model = AutoModel(model_dir=str(model_dir))
    if not described(model)["text_frontend"]:
        log.warning("no text frontend: figures and signs in a text will be read as CosyVoice guesses")
    return model


def described(model: Any) -> dict[str, Any]:
    return {
        "model": type(model).__name__,
        "sample_rate": model.sample_rate,
        "device": str(getattr(getattr(model, "model", None), "device", "unknown")),
        # "wetext", "ttsfrd" or "": two hosts with different ones read the same line differently.
        "text_frontend": getattr(getattr(model, "frontend", None), "text_frontend", ""),
    }


def pcm(segment: dict[str, Any]) -> bytes:
    samples = np.asarray(segment["tts_speech"], dtype=np.float32) * 2**15
    return np.clip(samples, -(2**15), 2**15 - 1).astype("<i2").tobytes()


def copied(upload: BinaryIO) -> Path:
    # The name does not matter to libsndfile, which looks at the content.
    with tempfile.NamedTemporaryFile(prefix="prompt-", suffix=".wav", delete=False) as file:
        shutil.copyfileobj(upload, file)
    return Path(file.name)


def check_prompt(path: Path) -> None:
    try:
        info = soundfile.info(str(path))
    except soundfile.SoundFileError as error:
        raise HTTPException(400, f"prompt_wav is no recording that libsndfile reads: {error}") from None
    if info.samplerate < LOWEST_RATE:
        raise HTTPException(400, f"prompt_wav has {info.samplerate} Hz; expected at least {LOWEST_RATE}")
    if not SHORTEST_PROMPT <= info.duration <= LONGEST_PROMPT:
        expected = f"{SHORTEST_PROMPT} to {LONGEST_PROMPT:g} s"
        raise HTTPException(400, f"prompt_wav has {info.duration:.2f} s; expected {expected}")


class Speech(StreamingResponse):
    """A stream that gives back what it holds however it ends, even where its client left before it began."""

    def __init__(self, chunks: AsyncIterator[bytes], sample_rate: int, held: AsyncExitStack) -> None:
        super().__init__(
            chunks, media_type="application/octet-stream", headers={"X-Sample-Rate": str(sample_rate)}
        )
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


class Speaker:
    """The model and the line before it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._turn = asyncio.Lock()

    async def speak(
        self,
        request: Request,
        upload: UploadFile,
        generate: Callable[[str], Segments],
        *,
        text: str,
        prompt_text: str,
    ) -> Response:
        """Speaks ``text`` with what ``generate`` makes of the prompt's path."""
        self._check_texts(text, prompt_text)
        async with AsyncExitStack() as held:
            prompt = await run_in_threadpool(copied, upload.file)
            held.callback(prompt.unlink, missing_ok=True)
            check_prompt(prompt)
            await held.enter_async_context(self._turn)
            if await request.is_disconnected():
                return Response(status_code=499)
            held.callback(self._forget_session)
            segments = generate(str(prompt))
            held.callback(segments.close)
            try:
                first = await run_in_threadpool(next, segments, None)
            except Exception as error:
                log.exception("the first segment failed")
                raise HTTPException(500, f"{type(error).__name__}: {error}") from error
            if first is None:
                raise HTTPException(400, "nothing in tts_text can be spoken")
            return Speech(_chunks(first, segments), self._model.sample_rate, held.pop_all())
        raise AssertionError("not reached")  # type checkers take the stack for one that swallows errors

    def _check_texts(self, text: str, prompt_text: str) -> None:
        if not text.strip():
            raise HTTPException(400, "tts_text is empty")
        if type(self._model).__name__ == "CosyVoice3" and END_OF_PROMPT not in prompt_text + text:
            raise HTTPException(400, f"CosyVoice 3 needs {END_OF_PROMPT} in the prompt's text or instruction")

    def _forget_session(self) -> None:
        """A stream that broke off would keep its tensors for good (#491, #667). There is no other session to hurt."""
        for name in SESSION_STATE:
            getattr(getattr(self._model, "model", None), name, {}).clear()


async def _chunks(first: dict[str, Any], segments: Segments) -> AsyncIterator[bytes]:
    segment: dict[str, Any] | None = first
    while segment is not None:
        yield pcm(segment)
        segment = await run_in_threadpool(next, segments, None)


def create_app(model: Model) -> FastAPI:
    app = FastAPI(title="CosyVoice")
    speaker = Speaker(model)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **described(model)}

    @app.post("/inference_zero_shot")
    async def inference_zero_shot(
        request: Request,
        tts_text: Annotated[str, Form()],
        prompt_text: Annotated[str, Form()],
        prompt_wav: UploadFile,
    ) -> Response:
        def generate(path: str) -> Segments:
            return model.inference_zero_shot(tts_text, prompt_text, path, stream=False)

        return await speaker.speak(request, prompt_wav, generate, text=tts_text, prompt_text=prompt_text)

    @app.post("/inference_cross_lingual")
    async def inference_cross_lingual(
        request: Request, tts_text: Annotated[str, Form()], prompt_wav: UploadFile
    ) -> Response:
        def generate(path: str) -> Segments:
            return model.inference_cross_lingual(tts_text, path, stream=False)

        return await speaker.speak(request, prompt_wav, generate, text=tts_text, prompt_text="")

    @app.post("/inference_instruct2")
    async def inference_instruct2(
        request: Request,
        tts_text: Annotated[str, Form()],
        instruct_text: Annotated[str, Form()],
        prompt_wav: UploadFile,
    ) -> Response:
        if not hasattr(model, "inference_instruct2"):
            raise HTTPException(400, f"{type(model).__name__} takes no instructions; CosyVoice 2 and 3 do")

        def generate(path: str) -> Segments:
            return model.inference_instruct2(tts_text, instruct_text, path, stream=False)

        return await speaker.speak(request, prompt_wav, generate, text=tts_text, prompt_text=instruct_text)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="CosyVoice over HTTP")
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=50_000)
    arguments = parser.parse_args()
    uvicorn.run(create_app(load_model(arguments.model_dir)), host=arguments.host, port=arguments.port)


if __name__ == "__main__":
    main()
