"""The family `audio_dit`: lengths of sounds and their windows, several conditions, inputs that do not belong together, adapters;
trainings that start from an imported model: its codec and text encoder make their inputs, and all or adapters alone train."""

import json
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from soundmill import manifest, params
from soundmill.errors import UserError
from soundmill.models import adapted, generation, registry, transforming
from soundmill.models.audio_dit.model import sample, window_starts
from soundmill.models.components.dit.network import Conditions
from soundmill.models.family import Request
from soundmill.models.importing import import_published
from soundmill.models.training import write_whole
from soundmill.training import checkpoint
from tests.models import test_audio_dit_single_file as published
from tests.models.test_published import CHANNELS, FRAMES, RATE, conf
from tests.prepared import edit
from tests.stages import of_waves, tango_inputs
from tests.stages.components import CODECS
from tests.stages.families import ROWS
from tests.stages.of_waves import ONE

TRAINED = "audio_dit"  # of the fixtures
ROW, SHORT = ROWS[TRAINED], tango_inputs.SHORT  # samples of the sound in test-0's clip of 4,000
LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["to_q", "to_k", "to_v", "to_out.0"], "dora": False}


def train(home: Path, data: Path, *changes: str, catalog: str = "catalog.parquet") -> dict:
    return of_waves.train("audio_dit", home, data, ROW.composed(*changes), catalog)


def test_latents_are_measured(trained):
    config = json.loads((trained / "model/config.json").read_text())
    assert (config["frames"], config["seconds"], config["labels"]) == (32, 0.25, [])
    assert config["text"]["name"] == "byt5-scratch"
    model = registry.family("audio_dit").load(trained / "model")
    # The clips' latents are 0, 1, 2 and 3, with a posterior's variance of exp(−4), times the codec's 0.5.
    assert not model.layout.mean.any()
    torch.testing.assert_close(model.layout.deviation, torch.full((32,), 0.5 * (3.5 + 0.0183156) ** 0.5))


def test_sounds_for_test_clips_end_where_these_do(tmp_path, trainings, data):
    output = of_waves.generate("audio_dit", trainings.copy("audio_dit", tmp_path), data, ROW.composed())
    first, second = (np.frombuffer(content, "<i2") for content in output.values())
    assert not first[SHORT:].any()  # as the clip is padded
    assert first[SHORT - 200 : SHORT].any()
    assert second[SHORT:].any()
    assert soundfile.info(next((tmp_path / "codec").glob("*.wav"))).frames == 4000


@pytest.mark.parametrize("seconds", [0.1, 0.25, 0.32, 0.7, 1.0])
def test_sounds_have_the_length_asked_for(tmp_path, trained, seconds):
    """The longest training clip's is 0.25 s, that of the latents 0.32 s; longer ones are made of windows."""
    settings = [f"seconds={seconds}", "num_steps=2"]
    (path,) = generation.generate_sounds(trained / "model", ["a bell"], 1, 5, tmp_path / "a", tmp_path, settings)
    assert soundfile.info(path).duration == pytest.approx(seconds, abs=1e-4)


def test_a_longer_sound_goes_on_from_the_shorter_one(tmp_path, trained):
    """Window by window: the first is the sound of the trained length, and no later one changes what is there."""
    model = registry.family("audio_dit").load(trained / "model")
    with generation.running(model, tmp_path) as run:
        longest = model.generate([Request(caption="a bell", seed=3, seconds=0.8)], run)
        beside = model.generate([Request(caption="rain falls", seed=4), Request(caption="a bell", seed=3, seconds=0.8)], run)
        lengths = [4000, 6400, 12_800]
        x0 = [sample(model, [Request(caption="a bell", seed=3)], [length], run)[0] for length in lengths]
    assert longest.shape == (1, 1, 12_800)
    assert beside.shape == (2, 1, 12_800)
    assert beside[0, 0, 3800:4000].any()
    assert not beside[0, 0, 4000:].any()
    # Latents are 320 samples and windows 16 of them, of which 12 lie within 4,000 samples.
    assert [window_starts(length, model, 0.25) for length in lengths] == [[0], [0, 8], [0, 9, 18, 27, 28]]
    assert [latents.shape[1] for latents in x0] == [16, 24, 44]
    assert torch.equal(x0[1][:, :12], x0[0][:, :12])
    assert torch.equal(x0[2][:, :12], x0[0][:, :12])


class Trained(torch.nn.Module):
    """What a net learns whose clips last up to 4,000 samples: latents of 1, and after the clip's end, which is told, of 0."""

    def __init__(self, objective: str):
        super().__init__()
        self.objective, self.ends = objective, []

    def forward(self, xt: torch.Tensor, t: torch.Tensor, *told: torch.Tensor) -> torch.Tensor:
        seconds = Conditions(*told).seconds
        assert not seconds[:, 0].any()
        self.ends += seconds[:, 1].tolist()
        latents = (16_000 * seconds[:, 1:].double()).clamp(max=4000) / 320
        x0 = (torch.arange(1, xt.shape[2] + 1) <= latents + 1e-3).float()[:, None]
        if self.objective == "rectified_flow":
            return (xt - x0) / t[:, None, None]
        alpha, sigma = (function(t * torch.pi / 2)[:, None, None] for function in (torch.cos, torch.sin))
        return (alpha * xt - x0) / sigma


@pytest.mark.parametrize(
    ("objective", "solver"),
    [*(("rectified_flow", solver) for solver in ("euler", "midpoint", "pingpong")), ("v", "euler"), ("v", "dpm++_sde")],
)
def test_no_sound_has_a_gap_or_a_silent_end(tmp_path, trained, objective, solver):
    """The net is told no length that no training clip had, and each window ends within what it is told."""
    model = registry.family("audio_dit").load(trained / "model")
    model.net = Trained(objective)
    base = model.params.flow.base_frames if objective == "rectified_flow" else None
    flow = model.params.flow.model_copy(update={"objective": objective, "base_frames": base})
    model.params = model.params.model_copy(update={"flow": flow})
    lengths = [4000, 3000, 4100, 6400, 12_800, 16_000]
    assert model.num_samples == lengths[0]  # of sounds that name no length
    with generation.running(model, tmp_path, [f"solver={solver}", "num_steps=12"]) as run:
        x0 = sample(model, [Request(seed=number) for number, _ in enumerate(lengths)], lengths, run)
    for latents, length in zip(x0, lengths, strict=True):
        torch.testing.assert_close(latents[:, : length // 320], torch.ones(32, length // 320), atol=1e-2, rtol=0)
    assert max(model.net.ends) == 0.25
    assert sorted({round(16_000 * end) for end in model.net.ends}) == [3000, 4000]


def test_by_label_or_by_nothing(tmp_path, data):
    train(tmp_path / "label", data, ".condition=label", ".steps=1")
    model = registry.family("audio_dit").load(tmp_path / "label/model")
    assert (model.condition, list(model.labels), model.text) == ("labels", ["bell", "rain"], None)
    paths = generation.generate_sounds(tmp_path / "label/model", ["rain"], 2, 5, tmp_path / "a", tmp_path)
    assert len(paths) == 2
    train(tmp_path / "none", data, ".condition=none", ".steps=1")
    assert len(generation.generate_sounds(tmp_path / "none/model", [], 1, 5, tmp_path / "b", tmp_path)) == 1
    train(tmp_path / "both", data, ".condition=caption_and_label", ".dropout.condition=0.5", ".steps=1")
    both = registry.family("audio_dit").load(tmp_path / "both/model")
    assert (both.condition, list(both.labels), both.text is None) == ("caption", ["bell", "rain"], False)
    asked = [("a bell", ()), ("a bell", ("rain",)), ("", ("rain",))]
    for weight in both.net.parameters():  # those that start at zero would hide the conditions
        torch.nn.init.normal_(weight, std=0.3)
    with generation.running(both, tmp_path, ["guidance_scale=1"]) as run:
        waves = both.generate([Request(labels, caption, seed=0) for caption, labels in asked], run)
    assert not any(torch.equal(one, other) for one, other in combinations(waves, 2))
    (path,) = generation.generate_sounds(tmp_path / "both/model", ["a bell"], 1, 5, tmp_path / "c", tmp_path, labels=["rain"])
    assert path.name == "a-bell-rain-5-001.wav"
    request = transforming.Prompting(["a bell"], 5, ["rain"]).request(both)
    assert (request.caption, request.labels) == ("a bell", ("rain",))
    shown = json.loads((tmp_path / "both/model/config.json").read_text())["prompts"]
    assert all(one["caption"] and one["labels"] for one in shown)
    assert train(tmp_path / "more", data, ".condition=label", ".steps=1", f".start_from={tmp_path}/label/model")["steps"] == 1


def test_latents_of_another_codec_are_refused(tmp_path, data):
    shutil.copytree(data, tmp_path / "data")
    edit(tmp_path / "data/inputs/autoencoder/config.json", digest="another")
    with pytest.raises(SystemExit, match="latents of another autoencoder than in"):
        train(tmp_path / "home", tmp_path / "data")


def test_a_checkpoint_whose_latents_do_not_fit_is_refused(tmp_path, trained):
    shutil.copytree(trained / "model", tmp_path / "model")
    edit(tmp_path / "model/config.json", mean=[0.0])
    with pytest.raises(UserError, match="mean and deviation must have 32 values, one a channel"):
        registry.family("audio_dit").load(tmp_path / "model")


@pytest.mark.slow
def test_adapters_of_the_transformer_are_heard_and_merge(tmp_path, trainings, trained, data):
    own, merged = trainings.trained("audio_dit_lora") / "model", tmp_path / "merged"
    write_whole(own, merged)
    sounds = []
    for directory in (trained / "model", own, merged):
        model = registry.family("audio_dit").load(directory)
        with generation.running(model, tmp_path) as run:
            sounds.append(model.generate([Request(caption="rain", seed=3)], run))
    torch.testing.assert_close(sounds[2], sounds[1], atol=1e-4, rtol=0)
    assert (sounds[1] - sounds[0]).abs().max() > 1e-3

    shutil.copytree(trained / "model", tmp_path / "base")
    edit(tmp_path / "base/autoencoder/config.json", digest="0" * 64, scaling_factor=0.25)
    start = f".start_from={tmp_path}/base"
    train(tmp_path / "all", data, start, ".steps=1")
    assert registry.family("audio_dit").load(tmp_path / "all/model").layout.scaling_factor == 0.5  # of the codec it is with
    with pytest.raises(SystemExit, match=r"lora: the autoencoder is not that of .*weights\.steps to 0"):
        of_waves.train("audio_dit", tmp_path / "other", data, ROWS["audio_dit_lora"].composed(start))


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
def imported_data(tmp_path_factory, base) -> Path:
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


def test_adapters_train_on_it_and_are_loaded(base, imported_data, tmp_path, capfd):
    metrics = of_waves.train("audio_dit", tmp_path, imported_data, composed(base, LORA))
    assert (metrics["clips"], metrics["captions"], metrics["steps"]) == (5, 2, 2)
    assert "changed" not in capfd.readouterr().out  # neither the codec nor the text encoder
    assert {path.name for path in (tmp_path / "model").glob("*.safetensors")} >= {adapted.WEIGHTS}
    assert not (tmp_path / "model/transformer.safetensors").exists()
    weights = checkpoint.read_weights(tmp_path / "model" / adapted.WEIGHTS)
    assert sum(value.numel() for value in weights.values()) == metrics["trained_parameters"] < metrics["parameters"] / 10
    assert all(value.any() for name, value in weights.items() if "lora_B" in name)
    assert adapted.base_of(tmp_path / "model") == base.resolve()
    assert (sound(tmp_path / "model", tmp_path) - sound(base, tmp_path)).abs().max() > 1e-3


@pytest.mark.slow
def test_what_it_forgets_is_measured_with_everyday_prompts(base, imported_data, tmp_path, monkeypatch):
    """Its checkpoint names none of its own."""
    document = composed(base, LORA)
    document["audio_dit"]["generate"] |= {"count": 1, "codec_count": 1}
    document["audio_dit"]["generate"]["sampling"] = {"num_steps": 2}
    of_waves.train("audio_dit", tmp_path, imported_data, document)
    monkeypatch.setattr(generation, "OWN_SOUNDS", 2)
    clips = of_waves.generate("audio_dit", tmp_path, imported_data, document)
    own = tmp_path / "codec" / manifest.OWN
    made = {name: of_waves.sounds(own / name) for name in ("base", "again", "tuned")}
    assert {len(sounds) for sounds in made.values()} == {2}
    assert len({sounds["000.wav"] for sounds in made.values()}) == 3
    assert {len(sound) for sounds in made.values() for sound in sounds.values()} == {len(sound) for sound in clips.values()}
    assert json.loads((own / manifest.OWN_PROMPTS).read_text()) == {"prompts": list(generation.EVERYDAY)}


def test_all_of_it_trains(base, imported_data, tmp_path):
    of_waves.train("audio_dit", tmp_path, imported_data, composed(base, None))
    before, after = (checkpoint.read_weights(one / "transformer.safetensors") for one in (base, tmp_path / "model"))
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    of_start = "projection_model.start_number_conditioner.time_positional_embedding.0.weights"  # 0 is told of every clip
    assert same == {of_start, "transformer.time_proj.weight"}  # the latter is fixed
    assert sound(tmp_path / "model", tmp_path).isfinite().all()
