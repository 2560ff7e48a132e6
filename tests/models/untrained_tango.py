"""A TANGO checkpoint with random weights, and a few real clips."""

from pathlib import Path

from soundmill import params, text
from soundmill.decoding import decode
from soundmill.models.components.contracts import save_codec
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.tango import TrainParams
from soundmill.models.tango.model import Tango, build_net
from tests.imports import ROOT
from tests.models.components.test_mel_autoencoder import SPEC, untrained
from tests.prepared import sound, write_sounds

FRAMES = 128  # of a log-mel: 1.28 s, a window of YAMNet's and some
SCRATCH = {"width": 16, "layers": 1, "heads": 2, "seed": 0}
CLASSES = {"dog bark": "001 - Dog bark", "rain": "002 - Rain", "rooster": "009 - Rooster"}


def write_untrained(home: Path) -> Path:
    """A checkpoint with random weights, as a training would leave it; returns its directory."""
    document = params.compose(
        ROOT / "conf",
        [
            "model=tango", "tango.train.network.widths=[8,16]", "tango.train.network.heads=[2,2]",
            "tango.train.network.text_levels=[1]", "tango.train.network.text_width=16",
            "tango.train.hardware.threads=1", "tango.train.sampling.griffin_lim_iterations=2",
        ],
    )  # fmt: skip
    trained = params.parse(TrainParams, document["tango"]["train"], "tango.train")
    model = untrained()
    save_codec(model, home / "autoencoder", {})
    encoder = text.make_scratch(home / "encoder", **SCRATCH)
    config = TextConfig(**encoder.identity(), max_tokens=64, scratch=SCRATCH)
    net = build_net(trained, model.latent_shape(FRAMES))
    facts = {"weights": {"last": {"step": 0}}}
    Tango(trained, net, model, FRAMES, text=config).save(home / "model", facts, [home / "autoencoder"])
    return home / "model"


def write_prepared(home: Path, shared: Path) -> Path:
    """Four real clips of each of three classes, two of them test clips, as the pipeline's data directory has them."""
    rows = []
    for label, folder in CLASSES.items():
        for number, path in enumerate(sorted((shared / "data" / "esc10" / folder).glob("*.ogg"))[:24:6]):
            wave = decode.read_mono(path, SPEC.sample_rate, 60.0)[: SPEC.sample_rate * 5 // 4]
            told = {"split": "test" if number % 2 else "train", "captions": [label], "labels": [label]}
            rows.append(sound(path.stem, wave, SPEC.sample_rate, source=path.name, corpus="esc", **told))
    write_sounds(rows, home / "clips/default", home / "catalog/default.parquet")
    return home
