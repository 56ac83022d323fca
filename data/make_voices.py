"""Makes the demo's reference recordings with espeak-ng: nobody's voice, so nobody's consent is needed.

    .venv/bin/python data/make_voices.py

The recordings are committed; this is how they came about.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

HERE = Path(__file__).resolve().parent

#: voice: espeak-ng's voice, words per minute, pitch.
SETTINGS = {
    "anna": ("en-us+f3", 128, 35),
    "tom": ("en-us+m3", 112, 45),
    "mei": ("cmn+f3", 185, 40),
    "wei": ("cmn+m3", 165, 60),
}


def main() -> None:
    with (HERE / "voices.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            voice, rate, pitch = SETTINGS[row["voice"]]
            request = {"text": row["transcript"], "voice": voice, "rate": rate, "pitch": pitch}
            pcm = subprocess.run(
                [sys.executable, "-m", "gpu_service.speak"],
                input=json.dumps(request).encode(),
                capture_output=True,
                check=True,
            ).stdout
            samples = np.frombuffer(pcm, "<i2") / 32768
            soundfile.write(
                HERE / row["audio"], samples * (0.6 / np.abs(samples).max()), 22_050, subtype="PCM_16"
            )
            print(row["audio"], f"{len(samples) / 22_050:.1f} s")


if __name__ == "__main__":
    main()
