"""EnCodec from its stage: loaded, and `audio_dit` over its latents."""

from __future__ import annotations

import json

import pytest
import soundfile

from soundmill import params, stage
from soundmill.models import registry
from stages import autoencoder, latents
from tests.imports import ROOT
from tests.models.components.test_encodec import TINY, publish
from tests.stages import of_waves

RATE = 8000
ONE = "{accelerator: cpu, devices: 1, precision: '32', threads: 1}"


def test_audio_dit_makes_sounds_of_its_latents(tmp_path, capfd):
    of_waves.write(tmp_path, rate=RATE, channels=1)
    publish(tmp_path / "published")
    sizes = TINY.model_dump()
    document = params.compose(
        ROOT / "conf",
        [
            "model=audio_dit",
            "codec@audio_dit.autoencoder=encodec",
            "audio_dit.autoencoder.network={" + ", ".join(f"{key}: {value}" for key, value in sizes.items()) + "}",
            "audio_dit.autoencoder.bandwidth=8.0",
            "audio_dit.autoencoder.weights.name=./published",
            f"audio_dit.autoencoder.hardware={ONE}",
            "audio_dit.latents.num_samples=800",
            "audio_dit.train.condition=label",
            "audio_dit.train.steps=2",
            "audio_dit.train.batch_size=2",
            "audio_dit.train.log_every_steps=1",
            f"audio_dit.train.hardware={ONE}",
            "audio_dit.train.network={layers: 1, heads: 2, head_width: 8, key_heads: 1, condition_width: 8}",
            "audio_dit.train.sampling.num_steps=2",
            "audio_dit.generate.codec_count=1",
        ],
    )
    params.write_yaml(document, tmp_path / "params.yaml")
    (tmp_path / "mels").mkdir()  # it takes none
    clips = ["--catalog", f"{tmp_path}/catalog.parquet", "--autoencoder", f"{tmp_path}/inputs/autoencoder"]
    autoencoder.main(
        [
            "--family", "audio_dit", "--clips", f"{tmp_path}/clips", "--mels", f"{tmp_path}/mels", *clips,
            "--curves", f"{tmp_path}/ae.csv", "--grid", f"{tmp_path}/ae.png",
            "--metrics", f"{tmp_path}/ae.json", "--params", f"{tmp_path}/params.yaml",
        ]
    )  # fmt: skip
    assert "these weights have their own licence" in capfd.readouterr().out
    metrics = json.loads((tmp_path / "ae.json").read_text())
    assert (metrics["latent_rate"], metrics["latent_values_per_second"], metrics["bandwidth"]) == (1000, 8000, 8.0)
    assert (tmp_path / "ae.png").stat().st_size
    arguments = ["--family", "audio_dit", "--audio", f"{tmp_path}/clips", *clips, "--latents", f"{tmp_path}/inputs/latents/clips"]
    stage.main(latents.run, "latents", [*arguments, "--params", f"{tmp_path}/params.yaml"], code_by_name=latents.code_by_name)
    of_waves.train("audio_dit", tmp_path, tmp_path, document, parts="inputs", inputs="inputs")
    model = registry.family("audio_dit").load(tmp_path / "model")
    assert (model.sample_rate, model.channels, model.num_samples, model.latent_frames) == (RATE, 1, 800, 100)
    names = list(of_waves.generate("audio_dit", tmp_path, tmp_path, document))
    assert names == ["clip-6.wav", "clip-7.wav"]
    info = soundfile.info(tmp_path / "generated" / names[0])
    assert (info.samplerate, info.channels, info.frames) == (RATE, 1, 800)
    document["audio_dit"]["autoencoder"]["network"]["sample_rate"] = 4000
    (tmp_path / "params.yaml").unlink()
    params.write_yaml(document, tmp_path / "params.yaml")
    with pytest.raises(SystemExit, match=r"clips has 1 channels at 8000 Hz, but autoencoder\.network has 1 at 4000; make them"):
        autoencoder.main(
            [
                "--family", "audio_dit", "--clips", f"{tmp_path}/clips", "--mels", f"{tmp_path}/mels",
                "--catalog", f"{tmp_path}/catalog.parquet", "--autoencoder", f"{tmp_path}/other",
                "--curves", f"{tmp_path}/o.csv", "--grid", f"{tmp_path}/o.png",
                "--metrics", f"{tmp_path}/o.json", "--params", f"{tmp_path}/params.yaml",
            ]
        )  # fmt: skip
