"""Small models to hear: folders of tones, each model's at its own level, rate and channels."""

from pathlib import Path

import numpy as np

from soundmill.audio.flac import write_wav
from soundmill.audio.tags import GENERATED, MadeBy

SECONDS = 6.0
MAKER = MadeBy("soft checkpoint 0123abcd", GENERATED)
HERTZ = {"beep/1": 500.0, "beep/2": 700.0, "hiss/1": 1100.0, "hiss/2": 1300.0}


def tone(hertz: float, rate: int, level: float = 0.2, seconds: float = SECONDS) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_models(root: Path) -> Path:
    """real; one 20 dB softer, with the tags of its maker; one in stereo at another rate, without `hiss/2`."""
    for name, hertz in HERTZ.items():
        write_wav(root / "real" / f"{name}.wav", tone(hertz, 16_000), 16_000)
        write_wav(root / "soft" / f"{name}.wav", tone(hertz, 16_000, 0.02), 16_000, made_by=MAKER)
        if name != "hiss/2":
            write_wav(root / "wide" / f"{name}.wav", np.stack([tone(hertz, 44_100), tone(hertz, 44_100, 0.1)]), 44_100)
    return root


def write_report(directory: Path, kl: dict[str, float]) -> Path:
    """What `soundmill evaluate --report` leaves that a listening page reads."""
    directory.mkdir(parents=True)
    scores = (
        '{"kl_yamnet": 1.5, "fad_yamnet": 9.0, "baselines": {"kl_yamnet": {}, "fad_yamnet": {}}, "unranked": {"fad_yamnet": "x"}}'
    )
    (directory / "scores.json").write_text(scores, encoding="utf-8")
    rows = "".join(f"{name},{value}\n" for name, value in kl.items())
    (directory / "sounds.csv").write_text(f"id,kl_yamnet\n{rows}", encoding="utf-8")
    return directory
