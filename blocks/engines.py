"""Blocks of the model servers: where each is, which model it holds, and its token.

from blocks.engines import LightTTSServer

server = LightTTSServer(url="http://127.0.0.1:8080", revision="cosyvoice2-0.5b", slots=4)
server.save("a10-1")
async with LightTTSServer.load("a10-1").client() as client:
    await client.ready()
"""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field, HttpUrl, SecretStr

from blocks.base import CallsheetBlock
from callsheet.engines.comfyui import ComfyUI
from callsheet.engines.speech import CosyVoice, LightTTS
from callsheet.errors import BadInput
from callsheet.fleet import CosyVoiceModel, Engine, TokenPlace


class CosyVoiceServer(CallsheetBlock):
    """
    A CosyVoice server: `runtime/python/fastapi/server.py` of its repository.

    Example:
        Speak with a saved server:
        ```python
        from blocks.engines import CosyVoiceServer

        server = CosyVoiceServer.load("BLOCK_NAME")
        async with server.client() as client:
            await client.ready()
        ```
    """

    _block_type_name = "CosyVoice Server"
    _block_type_slug = "cosyvoice-server"
    _documentation_url = HttpUrl("https://github.com/FunAudioLLM/CosyVoice")

    url: str = Field(default="http://127.0.0.1:50000", description="Address of the server.")
    revision: str = Field(
        default="cosyvoice2-0.5b", description="Name of the model's version, part of every take key."
    )
    model: CosyVoiceModel = Field(
        default="cosyvoice2", description="Which CosyVoice model it holds: it decides rate and prompt form."
    )
    slots: int = Field(default=1, ge=1, description="Requests in flight at once.")
    token: SecretStr | None = Field(
        default=None, description="Token that a proxy in front of the server asks for."
    )

    def client(self, name: str = "cosyvoice") -> CosyVoice:
        """The core's client; ``name`` is what error messages call it."""
        return CosyVoice(self.url, name=name, model=self.model, token=self.token)


class LightTTSServer(CallsheetBlock):
    """
    A LightTTS server, which serves CosyVoice 2 and 3 models to several requests at once.

    Example:
        Speak with a saved server:
        ```python
        from blocks.engines import LightTTSServer

        server = LightTTSServer.load("BLOCK_NAME")
        async with server.client() as client:
            await client.ready()
        ```
    """

    _block_type_name = "LightTTS Server"
    _block_type_slug = "lighttts-server"
    _documentation_url = HttpUrl("https://github.com/ModelTC/LightTTS")

    url: str = Field(default="http://127.0.0.1:8080", description="Address of the server.")
    revision: str = Field(
        default="cosyvoice2-0.5b", description="Name of the model's version, part of every take key."
    )
    model: CosyVoiceModel = Field(
        default="cosyvoice2", description="Which CosyVoice model it holds: it decides the prompt's form."
    )
    style: str = Field(
        default="default", description="Which of the server's styles (fine-tuned voices) speaks."
    )
    slots: int = Field(default=4, ge=1, description="Requests in flight at once; 4 to 8 for each GPU.")
    token: SecretStr | None = Field(
        default=None, description="Token that a proxy in front of the server asks for."
    )

    def client(self, name: str = "lighttts") -> LightTTS:
        """The core's client; ``name`` is what error messages call it."""
        return LightTTS(self.url, name=name, model=self.model, style=self.style, token=self.token)


class ComfyUIServer(CallsheetBlock):
    """
    A ComfyUI server, here or behind a tunnel.

    Example:
        Look whether a saved server is there:
        ```python
        from blocks.engines import ComfyUIServer

        server = ComfyUIServer.load("BLOCK_NAME")
        async with server.client() as client:
            await client.ready()
        ```
    """

    _block_type_name = "ComfyUI Server"
    _block_type_slug = "comfyui-server"
    _documentation_url = HttpUrl("https://docs.comfy.org/development/comfyui-server/comms_routes")

    url: str = Field(default="http://127.0.0.1:8188", description="Address of the server or of its tunnel.")
    revision: str = Field(
        default="comfyui", description="Name of the version of its models, part of every take key."
    )
    window: int = Field(default=1, ge=1, description="Prompts queued at once, the running one included.")
    token: SecretStr | None = Field(default=None, description="Token that the tunnel asks for.")
    token_place: TokenPlace = Field(default="header", description="Where the tunnel looks for the token.")
    token_name: str = Field(default="token", description="Name of the query field or cookie with the token.")

    def client(self, name: str = "comfyui") -> ComfyUI:
        """The core's client; ``name`` is what error messages call it."""
        return ComfyUI(
            self.url, name=name, token=self.token, token_place=self.token_place, token_name=self.token_name
        )


Server = CosyVoiceServer | LightTTSServer | ComfyUIServer


def server_of(engine: Engine, token: SecretStr | None = None) -> Server:
    """The block of an engine of the fleet, its token read from the environment variable that the fleet names.

    Args:
        token: of a host that has one of its own, instead.

    Raises:
        BadInput: the variable is not set.
    """
    if token is None and engine.token_env:
        if not os.environ.get(engine.token_env):
            raise BadInput(
                f"engine {engine.name}: found no environment variable {engine.token_env}; expected its token there"
            )
        token = SecretStr(os.environ[engine.token_env])
    if engine.kind == "comfyui":
        return ComfyUIServer(
            url=engine.url, revision=engine.revision, window=engine.window, token=token,
            token_place=engine.token_place, token_name=engine.token_name,
        )  # fmt: skip
    known: dict[str, Any] = {
        "url": engine.url, "revision": engine.revision, "model": engine.model, "slots": engine.slots, "token": token,
    }  # fmt: skip
    return (
        CosyVoiceServer(**known)
        if engine.kind == "cosyvoice"
        else LightTTSServer(**known, style=engine.style)
    )
