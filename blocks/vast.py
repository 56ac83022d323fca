"""The block of a vast.ai account.

from blocks.vast import VastAccount, open_account

client = await open_account("block:vast-account/studio")
client = await open_account("")                    # VAST_API_KEY and VAST_URL of the environment
"""

from __future__ import annotations

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl, SecretStr

from blocks.base import CallsheetBlock
from callsheet.errors import BadInput
from callsheet.vastai import SERVER, VastClient

BLOCK = "block:"


class VastAccount(CallsheetBlock):
    """
    A vast.ai account that hosts are rented with. Use a key that may read and write instances and read the account,
    of an account of its own whose balance is a sum that you can lose, with automatic billing off.

    Example:
        List what a saved account rents:
        ```python
        from blocks.vast import VastAccount

        vast_account = VastAccount.load("BLOCK_NAME")
        print([box.label for box in vast_account.client().instances()])
        ```
    """

    _block_type_name = "vast.ai Account"
    _block_type_slug = "vast-account"
    _documentation_url = HttpUrl("https://docs.vast.ai/api-reference/permissions")

    api_key: SecretStr = Field(description="Key of the account.")
    server_url: str = Field(default=SERVER, description="Address of the API, where it is not vast.ai's.")

    def client(self) -> VastClient:
        """The core's client; its calls block, so call them in a thread."""
        return VastClient(self.api_key, self.server_url)


async def open_account(setting: str = "") -> VastClient:
    """The account that a setting names: ``block:vast-account/NAME``, or nothing for that of the environment.

    Raises:
        BadInput: there is no such block, or no key.
    """
    if not setting:
        return VastClient.from_environment()
    try:
        block: Block = await Block.aload(setting.removeprefix(BLOCK))
    except ValueError as error:
        raise BadInput(f'vast.ai account "{setting}": {error}') from None
    if not isinstance(block, VastAccount):
        raise BadInput(f'vast.ai account "{setting}": found a {type(block).__name__}; expected a VastAccount')
    return block.client()
