from pathlib import Path

import pytest

from tests.decoding.files import FILMS, VALID, ffmpeg


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one file of every kind above, and films with and without sound."""
    directory = tmp_path_factory.mktemp("made")
    tone = ["-f", "lavfi", "-i", "aevalsrc=0.5*sin(440*2*PI*t)|0.5*sin(440*2*PI*t):s=44100:d=1"]
    for name, options in VALID.items():
        ffmpeg(*tone, *options, directory / name)
    picture = ["-f", "lavfi", "-i", "testsrc=d=2:s=64x64:r=25"]
    for name in FILMS:
        ffmpeg(*tone, *picture, directory / name)
        ffmpeg(*picture, directory / f"mute-{name}")
    return directory
