"""What a machine with a GPU gets and does, shrunken, on this one's processor."""

import json
import shutil
import subprocess
import sys

from bench import measure
from soundmill import params
from tests.bench.test_waveform import SMALL

TINY = [
    *("ddpm_mel.train.batch_size=2", "ddpm_mel.train.network.widths=[32,32,32]", "ddpm_mel.train.sampling.num_steps=1"),
    *("audio_dit.train.batch_size=2", "audio_dit.train.network.layers=1", "audio_dit.train.network.heads=2"),
    *("audio_dit.train.network.key_heads=1", "audio_dit.train.sampling.num_steps=1"),
]


def run(root, *arguments) -> None:
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_pack_is_measured_whole(root, shared, tmp_path) -> None:
    recordings, pack, out = tmp_path / "esc10", tmp_path / "pack", tmp_path / "out"
    shutil.copytree(shared / "data/esc10", recordings, ignore=lambda _, names: sorted(names)[40:])
    run(root, "bench.gpu.pack", pack, *TINY, "--recordings", recordings)
    wheels = {path.name.partition("-")[0] for path in (pack / "wheels").iterdir()}
    assert {"pydantic", "pydantic_core", "soxr", "diffusers"} <= wheels

    small = params.compose(measure.ROOT / "conf", ["model=waveform_unet", *SMALL, "waveform_unet.train.hardware.precision='32'"])
    presets = json.loads((pack / "presets.json").read_text())
    presets["gpu"]["waveform_unet"] = presets["paper"]["waveform_unet"] = small
    presets["paper"]["diffwave"]["diffwave"]["train"]["network"]["layers"] = 1
    presets["paper"]["rave"]["rave"]["autoencoder"]["network"]["channels"] = 4
    (pack / "presets.json").write_text(json.dumps(presets))
    sizes = ["--minutes", "0.005", "--sound", "1", "--matrix", "64"]
    run(root, "bench.gpu", pack, out, "presets", "speed", *sizes, "--families", "waveform_unet")
    run(root, "bench.gpu", pack, out, "training", "seeds", *sizes)
    assert not list(out.glob("*failed*"))
    rows = json.loads((out / "presets.json").read_text())["rows"]
    assert [(row["scale"], row["variant"]) for row in rows][::4] == [("gpu", "configured"), ("paper", "configured")]
    assert all(row["batches_per_second"] > 0 and (row["variant"] == "compiled" or row["flops"] > 0) for row in rows)
    factors = json.loads((out / "speed.json").read_text())
    assert min(factors.values()) > 0
    assert {name.partition(",")[0] for name in factors} == {"RAVE v1", "DiffWave 64", "DiffWave 128"}
    assert {path.name for path in out.glob("*.tar")} == {
        f"{family}{part}.tar" for family in ("ddpm_mel", "audio_dit") for part in ("", "_last", "_best")
    }
    distances = json.loads((out / "seeds.json").read_text())
    assert distances["second"] == 0 < distances["other"]  # on a CPU a training is repeated to the bit
