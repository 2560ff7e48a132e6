"""A vocoder of real recordings: it learns."""

from pathlib import Path

import pytest

from soundmill.decoding import decode
from tests.models.components.test_mel_autoencoder import SPEC
from tests.stages import of_waves
from tests.stages.components import VOCODERS

SECONDS = 0.8


@pytest.fixture(scope="module")
def data(tmp_path_factory, shared) -> Path:
    """One recording of each of eight classes, its loudest part: five to train on, one held out."""
    directory, samples, waves = tmp_path_factory.mktemp("data"), int(SECONDS * SPEC.sample_rate), []
    for folder in sorted(path for path in (shared / "data/esc10").iterdir() if path.is_dir())[: len(of_waves.SPLITS)]:
        whole = decode.read_mono(min(folder.iterdir()), SPEC.sample_rate, 60.0)
        start = min(max(0, int(abs(whole).argmax()) - samples // 2), len(whole) - samples)
        waves.append(whole[None, start : start + samples])
    of_waves.write_waves(directory, SPEC.sample_rate, waves)
    of_waves.write_mels(directory, SPEC)
    return directory


@pytest.mark.slow(minutes=1)
def test_it_learns(tmp_path, data):
    row = VOCODERS["hifigan"]
    rate = ".weights.optimiser.learning_rate=0.01"
    untrained, trained = (
        row.make(tmp_path / f"{steps}", data, row.composed(f".weights.steps={steps}", ".weights.checkpoint_seconds=60", rate))
        for steps in (1, 80)
    )
    assert trained["valid_l1_db"] < 0.85 * untrained["valid_l1_db"]
    assert trained["valid_griffin_lim_l1_db"] == untrained["valid_griffin_lim_l1_db"] > 0
