"""`soundmill import` and `soundmill vocode`, as a person uses them: on published weights, arrays, recordings and spectrograms."""

import re

import numpy as np
import pytest
import soundfile

from soundmill import manifest, shards
from soundmill.audio.log_mels import SPEC_KEY
from soundmill.audio.mel import MelSpec, log_mel
from soundmill.models.components import registry
from soundmill.models.components.diffwave import published
from tests import recorded
from tests.commands import running
from tests.imports import ROOT
from tests.mels import spec_with
from tests.models.components import test_diffwave as files


def run(*arguments: object) -> str:
    return running.works(*map(str, arguments), cwd=ROOT).stdout


def refused(*arguments: object) -> str:
    return " ".join(running.refused(*map(str, arguments), cwd=ROOT).split())


@pytest.fixture
def voice(tmp_path):
    """Published weights, imported."""
    weights = files.write(tmp_path / "weights-5.pt")
    said = run("import", weights, "--output", tmp_path / "voices" / "voice")
    parameters = sum(tensor.numel() for tensor in recorded.state("diffwave").values())
    assert said.strip() == f"{tmp_path / 'voices' / 'voice'}: {parameters:,} parameters"
    return tmp_path / "voices" / "voice"


def test_what_was_imported_is_the_vocoder_and_takes_nothing_s_place(voice, tmp_path):
    loaded, read = registry.load_vocoder(voice, None), published.read(tmp_path / "weights-5.pt")
    assert all(tensor.equal(read.net.state_dict()[name]) for name, tensor in loaded.net.state_dict().items())
    assert (loaded.spec, loaded.noise, loaded.sampling, loaded.network) == (read.spec, read.noise, read.sampling, read.network)
    assert [path.name for path in voice.parent.iterdir()] == ["voice"]
    assert "already exists; name a new directory" in refused("import", tmp_path / "weights-5.pt", "--output", voice)
    (tmp_path / "broken.pt").write_bytes(b"PK")
    assert "cannot be read as weights" in refused("import", tmp_path / "broken.pt", "--output", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_sounds_of_a_folder_of_log_mels_and_recordings(voice, tmp_path):
    spec = registry.load_vocoder(voice, None).spec
    given = tmp_path / "given"
    given.mkdir()
    wave = 0.1 * np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    np.save(given / "array.npy", log_mel(wave, spec))
    soundfile.write(given / "stereo.flac", np.stack([wave, wave], 1), 44_100)
    (given / "notes.txt").write_text("no sound")
    said = run("vocode", given, "--checkpoint", voice, "--fast", "--output", tmp_path / "made").splitlines()
    assert said[:2] == [str(tmp_path / "made" / name) for name in ("array.wav", "stereo.wav")]
    pattern = r"real-time factor (\S+): (\S+) s of sound in (\S+) s, (\S+) times real time"
    factor, sound, _, faster = map(float, re.fullmatch(pattern, said[2]).groups())
    assert sound == 0.2  # 12 frames of 256 samples, and 1,500 samples
    assert factor * faster == pytest.approx(1, rel=0.01)
    output = [soundfile.read(tmp_path / "made" / name) for name in ("array.wav", "stereo.wav")]
    assert [(len(samples), rate) for samples, rate in output] == [(12 * 256, 22_050), (1500, 22_050)]
    run("vocode", given / "array.npy", "--checkpoint", voice, "--steps", "6", "--output", tmp_path / "six")
    assert (tmp_path / "six" / "array.wav").read_bytes() != (tmp_path / "made" / "array.wav").read_bytes()
    run("vocode", given / "array.npy", "--checkpoint", voice, "--output", tmp_path / "again")  # by its own schedule: the fast one
    assert (tmp_path / "again" / "array.wav").read_bytes() == (tmp_path / "made" / "array.wav").read_bytes()


def spectrograms(directory, spec: MelSpec, clip_id: str = "a_0") -> None:
    values = log_mel(0.1 * np.random.default_rng(0).standard_normal(spec.hop_length * 3).astype(np.float32), spec).astype("<f2")
    schema = manifest.SPECTROGRAMS.with_metadata({SPEC_KEY: spec.model_dump_json().encode()})
    row = {"clip_id": clip_id, "log_mel": values.tobytes(), "num_mels": len(values), "num_frames": values.shape[1], "digest": ""}
    shards.write_rows([row], directory / shards.shard_name(0), schema)


def test_sounds_of_the_pipeline_s_spectrograms(voice, tmp_path):
    spec = registry.load_vocoder(voice, None).spec
    spectrograms(tmp_path / "mels", spec)
    run("vocode", tmp_path / "mels", "--checkpoint", voice, "--output", tmp_path / "made")
    assert soundfile.info(tmp_path / "made" / "a_0.wav").frames == 4 * 256
    soundfile.write(tmp_path / "a_0.wav", np.zeros(9), 16_000)
    assert "not made by a model" in refused("vocode", tmp_path / "mels", "--checkpoint", voice, "--output", tmp_path)
    spectrograms(tmp_path / "others", spec_with())
    said = refused("vocode", tmp_path / "others", "--checkpoint", voice, "--output", tmp_path / "none")
    assert "sample_rate 22050, not 16000" in said
    assert "hop_length 256, not 160" in said
    spectrograms(tmp_path / "hostile", spec, "../../a_0")
    assert "a_0" in refused("vocode", tmp_path / "hostile", "--checkpoint", voice, "--output", tmp_path / "none")
    assert list(tmp_path.rglob("none/*")) == []


def test_what_cannot_be_vocoded_is_named(voice, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    assert "no log-mel (.npy) and no recording in this folder" in refused("vocode", given, "--checkpoint", voice)
    assert "--fast and --steps" in refused("vocode", given, "--checkpoint", voice, "--fast", "--steps", 6)
    (given / "a.wav").write_text("no sound")
    assert "a.wav:" in refused("vocode", given, "--checkpoint", voice, "--output", tmp_path / "made")
    assert "choose another --output" in refused("vocode", given / "a.wav", "--checkpoint", voice, "--output", given)
    np.save(given / "a.npy", np.zeros((80, 3)))
    assert "several results would be named a.wav" in refused("vocode", given, "--checkpoint", voice)
    assert "config.json" in refused("vocode", given / "a.npy", "--checkpoint", tmp_path / "gone")
