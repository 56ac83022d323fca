"""Checks of pictures and clips: whether what was seen (`callsheet.media.filters`) can be what was asked for.

    checks = [*content_checks(seen), *movement_checks(seen)]
    all(check.ok for check in checks)

Pure functions; every check has a value, a limit and a verdict. A retake costs money and a fault that was missed is
seen by a person, so limits lie between what faults measure and what odd but good pictures do: night, fog,
falling snow, film grain, title cards, fades, cuts, a slow pan. Figures beside the limits are of clips of 832x480 as
ffmpeg, VideoHelperSuite and ComfyUI's SaveVideo encode them (x264, crf 19 to 28; tests/callsheet/media has them).
None of them was made by a video model; what one makes of these faults has not been measured.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from callsheet.media.audio import longest_run
from callsheet.media.filters import Floats, Heard, Seen
from callsheet.takes import Check

#: A clip may open and close in black, or hold a plain colour for a while; not for most of its time.
MOST_BLACK = 0.5
MOST_FLAT = 0.5
#: A frame is flat when its brightest and its darkest spot of 4 x 4 pixels are this near, of 255. One colour measures
#: 0 to 2, the picture of a night that came out thirty times too dark 7, dense fog 34.
FLAT_LUMA = 8.0
#: Near-black: in half of the frames nothing is brighter than this, of 255. Night without a lamp measures 64, small
#: stars 65, near-black 4 to 7. Mean luma cannot tell: it is 3 for near-black and 0.6 for a short title on black.
BRIGHTEST_LUMA = 24.0
#: Noise, which NaN or too few steps leave: neighbours are hardly more alike than by chance, in cells of 8 x 8 pixels
#: as in pixels. Static measures 0.0 and 0.0 to 0.5, large snow 0.15 and 0.73, grain at night 0.87 and 0.2.
NOISE_FAR, NOISE_NEAR = 0.2, 0.6
#: Noise of latents is smooth within a cell (0.21 to 0.24), but coloured: 31 to 63, where snow measures 6.
NOISE_LATENT, NOISE_COLOUR = 0.3, 25.0
#: Noise fills the range: 35 and more, where stars on black, as unlike their neighbours, measure 4.
NOISE_CONTRAST = 25.0
#: NaN often sets in late; a step or two of a storm of confetti may pass.
MOST_NOISE = 0.2
#: A flash: mean luma, or the dark or the bright end, leaves both its neighbours by this much of 255 and comes back.
#: Fire that flickers measures 24, lightning that fades 17, grey over four fifths of a frame (Wan, kijai/
#: ComfyUI-WanVideoWrapper#957) 65, a black frame over 150. A cut does not come back.
FLASH_LUMA = 28.0
#: A picture that moves less than this in a quarter of a second stands still. At 832x480 that is a pan of a fifth of a
#: pixel a second; a zoom by 0.3 % a second measures 0.03, a mouth alone 0.06. A still measures under 0.003
#: once x264 is done refining it, up to 0.03 in its first three quarters of a second.
STILL_MOTION = 0.008
#: A clip may hold still, even for most of its time. A still of two seconds measures 0.75 because of that start.
MOST_STILL = 0.7
#: The steps that move most say nothing of the clip: cuts, key frames (a still jumps by 0.1), the encoder's start.
SPARED_STEPS = 0.25
#: Sound may end this many samples before or after the picture: one packet of AAC.
AAC_PACKET = 1024
#: Narrations are at -20 dBFS (`callsheet.media.speech`) and may fill a tenth of the clip; silence is under -90.
SILENT_DBFS = -60.0


def content_checks(seen: Seen) -> Iterator[Check]:
    """Whether there is a picture at all: of a still, or of all frames of a clip."""
    yield Check.within("black_share", float(seen.black.mean()), 0, MOST_BLACK)
    yield Check.within("brightest_luma", float(np.median(seen.highest)), BRIGHTEST_LUMA)
    flat = seen.highest - seen.lowest < FLAT_LUMA
    yield Check.within("flat_share", float(flat.mean()), 0, MOST_FLAT)
    yield Check.within("noise_share", float(noise(seen).mean()), 0, MOST_NOISE)


def noise(seen: Seen) -> npt.NDArray[np.bool_]:
    """Of each step, whether it is noise, of pixels or of latents; (steps,)."""
    of_pixels = (seen.alike_far < NOISE_FAR) & (seen.alike_near < NOISE_NEAR)
    of_latents = (seen.alike_far < NOISE_LATENT) & (seen.colour > NOISE_COLOUR)
    return np.asarray((of_pixels | of_latents) & (seen.contrast > NOISE_CONTRAST))


def movement_checks(seen: Seen) -> Iterator[Check]:
    """Whether a clip moves as a clip does. Of one shorter than two steps nothing can be said but flashes."""
    yield Check.within("flashes", float(flashes(seen)), 0, 0)
    if len(seen.moved) < 2:
        return
    steps = np.sort(seen.moved)
    counted = steps[: len(steps) - int(SPARED_STEPS * len(steps))]
    yield Check.within("motion", float(counted.mean()), STILL_MOTION)
    still = longest_run(seen.moved < STILL_MOTION) / len(seen.moved)
    yield Check.within("still_share", still, 0, MOST_STILL)


def flashes(seen: Seen) -> int:
    """How many single frames differ sharply from both neighbours. The first and the last have but one."""
    spikes = np.maximum.reduce([_spikes(luma) for luma in (seen.luma, seen.dark, seen.bright)])
    return int((spikes > FLASH_LUMA).sum())


def _spikes(luma: Floats) -> Floats:
    """By how much each frame but the outer two is above both its neighbours, or below both."""
    before, after = luma[1:-1] - luma[:-2], luma[1:-1] - luma[2:]
    return np.asarray(np.where(before * after > 0, np.minimum(np.abs(before), np.abs(after)), 0.0))


def sound_checks(heard: Heard | None, spoken: float, picture: float, fps: float) -> Iterator[Check]:
    """Whether the sound of an avatar is there, in length, and to be heard.

    Args:
        spoken: seconds of narration that the host was given. VideoHelperSuite fills the sound up to the picture;
            ComfyUI's SaveVideo only cuts what is longer, so it may end with the narration.
        picture: seconds that the picture lasts.
    """
    yield Check.equals("audio", "none" if heard is None else "present", "present")
    if heard is None:
        return
    room = max(1 / fps, AAC_PACKET / heard.rate)
    low, high = min(spoken, picture) - room, picture + room
    yield Check.within("audio_seconds", heard.seconds, round(low, 3), round(high, 3))
    yield Check.within("audio_rms_dbfs", heard.rms_dbfs, SILENT_DBFS)
