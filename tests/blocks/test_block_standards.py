"""Every block passes Prefect's own suite."""

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite

from blocks.engines import ComfyUIServer, CosyVoiceServer, LightTTSServer
from blocks.fleet import GpuFleet
from blocks.store import LocalFolder, R2Bucket
from blocks.vast import VastAccount


@pytest.mark.parametrize(
    "block", [CosyVoiceServer, LightTTSServer, ComfyUIServer, GpuFleet, LocalFolder, R2Bucket, VastAccount]
)
class TestEveryBlock(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, block: type[Block]) -> type[Block]:
        return block
