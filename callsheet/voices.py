"""The registry of voices, ``voices.csv``: reference recordings with transcript, licence and consent.

    voices = read_voices(Path("data/voices.csv"))
    voices["anna"].prompt_audio      # checked: 3 to 30 s, 16 kHz and more, audible

A voice that no shot uses may be incomplete; one that is used must be fit to be sent to a server,
because servers do not refuse a bad recording, they break on it (facts, 1.1 and 1.2).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import soundfile
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from callsheet.inputs import InputFile, MediaRoots, Mistake, Mistakes, quoted
from callsheet.table import Table, mistakes_of, read_table
from callsheet.text import is_speakable, speech_seconds

#: CosyVoice asserts a prompt of at most 30 s; in LightTTS a longer one ends the encode loop for good.
LONGEST_PROMPT = 30.0
#: Under 0.1 s LightTTS's encoder fails; under this nothing can be cloned from it either.
SHORTEST_PROMPT = 1.0
#: CosyVoice asserts it; LightTTS answers 400.
LOWEST_SAMPLE_RATE = 16_000
#: Below this peak (of full scale) there is no voice in the recording.
SILENT_PEAK = 0.01

#: How much faster or slower than unhurried narration a person may speak (and 2 s of silence beside).
FASTER, SLOWER = 3.0, 3.0

#: What the registry is called.
VOICES = "voices.csv"
GIVEN = ("yes", "true", "1", "given", "synthetic")
NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial", re.IGNORECASE)


class Voice(BaseModel):
    """One row of ``voices.csv``."""

    model_config = ConfigDict(frozen=True, str_strip_whitespace=True, extra="forbid")

    voice: str = Field(
        pattern=r"^[A-Za-z0-9._-]+$", description="a name of letters, digits, dot, dash and underscore"
    )
    audio: str = Field(min_length=1, description="the path of the reference recording")
    transcript: str = Field(min_length=1, description="word for word what is said in the recording")
    language: str = Field(
        pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$", description="a language tag such as en, zh or de"
    )
    gender: str = Field(default="", description="free text")
    licence: str = Field(default="", description="the licence of the recording, such as CC0-1.0")
    consent: str = Field(
        default="", description="yes where the speaker agreed, synthetic where there is no speaker"
    )
    consent_proof: str = Field(default="", description="where the proof of consent is kept")
    expires: datetime.date | None = Field(
        default=None, description="the last day of the consent, as 2027-12-31"
    )
    notes: str = Field(default="", description="free text")

    _row: int = PrivateAttr(default=0)
    _file: str = PrivateAttr(default="voices.csv")
    _roots: MediaRoots = PrivateAttr()

    @cached_property
    def prompt_audio(self) -> InputFile:
        """The reference recording. Raises ValueError where its path is wrong."""
        return InputFile.read(self._roots.resolve(self.audio))

    def recorded_in(self, recording: InputFile) -> Voice:
        """The same voice with its reference recording in another place."""
        voice = self.model_copy()
        voice.__dict__["prompt_audio"] = recording
        return voice

    def mistakes(self, *, commercial: bool, today: datetime.date) -> Iterator[Mistake]:
        """What makes this voice unfit for use today; ``commercial`` asks for a licence that allows it."""
        if self.consent.lower() not in GIVEN:
            found = quoted(self.consent) if self.consent else "none"
            yield self._mistake(
                "consent",
                f"{found} for voice {self.voice}",
                "yes or synthetic: a voice is used with consent only",
            )
        if self.expires is not None and self.expires < today:
            yield self._mistake(
                "expires", f"{self.expires} for voice {self.voice}", f"a day not before today, {today}"
            )
        if commercial and NON_COMMERCIAL.search(self.licence):
            yield self._mistake(
                "licence",
                f"{quoted(self.licence)} for voice {self.voice}",
                "a licence that allows commercial use, or a run without --commercial",
            )
        yield from self._recording_mistakes()

    def _recording_mistakes(self) -> Iterator[Mistake]:
        try:
            path = self._roots.resolve(self.audio)
        except ValueError as error:
            yield self._mistake("audio", quoted(self.audio), str(error))
            return
        try:
            with soundfile.SoundFile(str(path)) as sound:
                seconds, rate = sound.frames / sound.samplerate, sound.samplerate
                samples = sound.read(frames=int(LONGEST_PROMPT * rate), dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            yield self._mistake(
                "audio",
                f"{quoted(self.audio)}, which cannot be read ({error})",
                "a WAV, FLAC, Ogg or MP3 recording",
            )
            return
        if not SHORTEST_PROMPT <= seconds <= LONGEST_PROMPT:
            yield self._mistake(
                "audio",
                f"{quoted(self.audio)} of {seconds:.1f} s",
                f"a recording of {SHORTEST_PROMPT:.0f} to {LONGEST_PROMPT:.0f} s (3 to 15 are best)",
            )
        if rate < LOWEST_SAMPLE_RATE:
            yield self._mistake(
                "audio",
                f"{quoted(self.audio)} at {rate} Hz",
                f"a recording of at least {LOWEST_SAMPLE_RATE} Hz",
            )
        if not samples.size or float(np.abs(samples).max()) < SILENT_PEAK:
            yield self._mistake("audio", f"{quoted(self.audio)}, which is silent", "a recording of the voice")
        elif float(np.abs(samples.mean(axis=1)).max()) < SILENT_PEAK:
            # Servers average the channels: a voice recorded with one of them turned round is gone then.
            found = f"{quoted(self.audio)}, whose channels cancel each other"
            yield self._mistake("audio", found, "a mono recording, or channels in phase")
        elif SHORTEST_PROMPT <= seconds <= LONGEST_PROMPT:
            yield from self._transcript_mistakes(seconds)

    def _transcript_mistakes(self, seconds: float) -> Iterator[Mistake]:
        """A transcript that cannot be that of the recording: what it says too much or too little is spoken in every line."""
        if "<|" in self.transcript or "|>" in self.transcript or not is_speakable(self.transcript):
            yield self._mistake("transcript", quoted(self.transcript, 40), "words, without <| and |>")
            return
        expected = speech_seconds(self.transcript)
        if not expected / FASTER < seconds < expected * SLOWER + 2.0:
            yield self._mistake(
                "transcript",
                f"{quoted(self.transcript, 40)}, which takes about {expected:.0f} s to say, for {seconds:.1f} s of sound",
                "word for word what the recording says",
            )

    def _mistake(self, column: str, found: str, expected: str) -> Mistake:
        return Mistake(self._file, found, expected, self._row, column)


def read_voices(path: Path, media_roots: Sequence[Path] = (), folder: Path | None = None) -> dict[str, Voice]:
    """Reads ``voices.csv``; recordings are looked for in ``folder``, which is its own where None, and in ``media_roots``.

    Raises:
        Mistakes: with all that is wrong in the table itself (recordings are checked when a shot uses them).
    """
    table = read_table(
        path, columns=tuple(Voice.model_fields), required=("voice", "audio", "transcript", "language")
    )
    mistakes = list(table.mistakes)
    roots = MediaRoots(path.parent if folder is None else folder, media_roots)
    voices: dict[str, Voice] = {}
    for row, cells in table.rows:
        try:
            voice = Voice.model_validate(cells)
        except ValidationError as error:
            mistakes += mistakes_of(error, Voice, table.name, row, cells)
            continue
        voice._row, voice._file, voice._roots = row, table.name, roots
        if voice.voice in voices:
            mistakes.append(_duplicate(table, row, voices[voice.voice]))
        voices.setdefault(voice.voice, voice)
    if mistakes:
        raise Mistakes(mistakes)
    return voices


def _duplicate(table: Table, row: int, first: Voice) -> Mistake:
    return Mistake(
        table.name, quoted(first.voice), f"a name of its own (row {first._row} has this one)", row, "voice"
    )
