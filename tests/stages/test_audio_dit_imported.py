"""Trainings that start from an imported model: its codec and text encoder make their inputs, and all or adapters alone train."""

import json
from pathlib import Path

import pytest
import torch

from soundmill import manifest, params
from soundmill.models import adapted, generation, registry
from soundmill.models.family import Request
from soundmill.models.importing import import_published
from soundmill.training import checkpoint
from tests.models import test_audio_dit_single_file as published
from tests.models.test_audio_dit_published import CHANNELS, FRAMES, RATE, conf
from tests.stages import of_waves
from tests.stages.components import CODECS
from tests.stages.of_waves import ONE

LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["to_q", "to_k", "to_v", "to_out.0"], "dora": False}


def composed(base: Path, lora: dict | None) -> dict:
    """As docs/parameters.md says, with the small model's sizes."""
    network = f"{{layers: 2, heads: {published.HEADS}, head_width: 64, key_heads: 1, condition_width: {published.WIDTH}}}"
    document = params.compose(
        conf(),
        [
            *("model=audio_dit", "scale=paper", f"audio_dit.train.start_from={base}", "execution.workers=1"),
            *(f"audio_dit.autoencoder.weights.name={base}/autoencoder", f"text.audio_dit.encoder={base}/text_encoder"),
            f"audio_dit.autoencoder.network={{channels: 4, ratios: [2, 4], multiples: [1, 2], latent_channels: {CHANNELS}}}",
            *(f"audio_dit.autoencoder.network.sample_rate={RATE}", f"audio_dit.autoencoder.hardware={ONE}"),
            *(f"audio_dit.latents.num_samples={8 * FRAMES}", "text.audio_dit.max_tokens=6"),
            *(f"audio_dit.train.network={network}", "audio_dit.train.network.text_width=10"),
            *("audio_dit.train.network.max_seconds=1.0", f"audio_dit.train.hardware={ONE}"),
            *("audio_dit.train.steps=2", "audio_dit.train.batch_size=2", "audio_dit.train.accumulate=1"),
            *("audio_dit.train.optimiser.learning_rate=0.01", "audio_dit.train.optimiser.warmup_steps=0"),
            *("audio_dit.train.ema.decay=0.0", "audio_dit.train.grid.columns=2", "audio_dit.train.sampling.num_steps=2"),
        ],
    )
    document["audio_dit"]["train"]["lora"] = lora
    return document


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("imported")
    import_published(published.write(published.tiny(), home / "tiny", published.config()), home / "open", conf)
    return home / "open"


@pytest.fixture(scope="module")
def data(tmp_path_factory, base) -> Path:
    """Latents of clips and states of captions, by the stages."""
    home = tmp_path_factory.mktemp("data")
    (home / "mels").mkdir()  # it takes none
    of_waves.write(home, rate=RATE, channels=2, seconds=8 * FRAMES / RATE, short=0.01)
    CODECS["oobleck"].make(home, home, composed(base, None))
    of_waves.make_latents("audio_dit", home, composed(base, None))
    of_waves.make_texts("audio_dit", home, composed(base, None))
    return home


def sound(directory: Path, home: Path) -> torch.Tensor:
    model = registry.family("audio_dit").load(directory)
    with generation.running(model, home, ["num_steps=2"]) as run:
        return model.generate([Request(caption="a bell rings", seed=3)], run)


def test_the_codec_s_stage_saves_the_imported_one(base, data):
    ours, theirs = (json.loads((one / "autoencoder/config.json").read_text())["digest"] for one in (data / "inputs", base))
    assert ours == theirs


def test_adapters_train_on_it_and_are_loaded(base, data, tmp_path, capfd):
    metrics = of_waves.train("audio_dit", tmp_path, data, composed(base, LORA))
    assert (metrics["clips"], metrics["captions"], metrics["steps"]) == (5, 2, 2)
    assert "changed" not in capfd.readouterr().out  # neither the codec nor the text encoder
    assert {path.name for path in (tmp_path / "model").glob("*.safetensors")} >= {adapted.WEIGHTS}
    assert not (tmp_path / "model/transformer.safetensors").exists()
    weights = checkpoint.read_weights(tmp_path / "model" / adapted.WEIGHTS)
    assert sum(value.numel() for value in weights.values()) == metrics["trained_parameters"] < metrics["parameters"] / 10
    assert all(value.any() for name, value in weights.items() if "lora_B" in name)
    assert adapted.base_of(tmp_path / "model") == base.resolve()
    assert (sound(tmp_path / "model", tmp_path) - sound(base, tmp_path)).abs().max() > 1e-3


def test_what_it_forgets_is_measured_with_everyday_prompts(base, data, tmp_path, monkeypatch):
    """Its checkpoint names none of its own."""
    document = composed(base, LORA)
    document["audio_dit"]["generate"] |= {"count": 1, "codec_count": 1}
    document["audio_dit"]["generate"]["sampling"] = {"num_steps": 2}
    of_waves.train("audio_dit", tmp_path, data, document)
    monkeypatch.setattr(generation, "OWN_SOUNDS", 2)
    clips = of_waves.generate("audio_dit", tmp_path, data, document)
    own = tmp_path / "codec" / manifest.OWN
    made = {name: of_waves.sounds(own / name) for name in ("base", "again", "tuned")}
    assert {len(sounds) for sounds in made.values()} == {2}
    assert len({sounds["000.wav"] for sounds in made.values()}) == 3
    assert {len(sound) for sounds in made.values() for sound in sounds.values()} == {len(sound) for sound in clips.values()}
    assert json.loads((own / manifest.OWN_PROMPTS).read_text()) == {"prompts": list(generation.EVERYDAY)}


def test_all_of_it_trains(base, data, tmp_path):
    of_waves.train("audio_dit", tmp_path, data, composed(base, None))
    before, after = (checkpoint.read_weights(one / "transformer.safetensors") for one in (base, tmp_path / "model"))
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    of_start = "projection_model.start_number_conditioner.time_positional_embedding.0.weights"  # 0 is told of every clip
    assert same == {of_start, "transformer.time_proj.weight"}  # the latter is fixed
    assert sound(tmp_path / "model", tmp_path).isfinite().all()
