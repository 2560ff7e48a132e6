"""The family `rave`: its codec's two phases, and what is transferred for its report."""

import re

import numpy as np
import soundfile
import torch

from soundmill import manifest, shards
from soundmill.evaluation import family, family_report
from soundmill.models.components import registry
from tests.commands.running import soundmill
from tests.stages import of_waves
from tests.stages.components import CODECS, Components
from tests.stages.families import ROWS, Trainings


def test_the_encoder_stands_still_in_phase_2(tmp_path, components: Components, capfd):
    """Batch norms too, and the noise speaks; and all is told before."""
    row, data = CODECS["rave_v1"], components.data("rave_v1")
    assert row.make(tmp_path / "short", data, row.composed(".weights.steps=3"))["phase"] == 1
    assert "phase 1 only" in capfd.readouterr().out
    assert row.make(tmp_path / "whole", data, row.composed())["phase"] == 2
    told = capfd.readouterr().out
    assert re.search(r"0\.0 minutes of sound: \d+ crops of 0\.06 s an epoch, .*; in 6 steps of 2 each second is used", told)
    assert "phase 2 (encoder frozen, against discriminators) begins at step 3 of 6" in told
    assert told.index("begins at step 3 of 6") < told.index("phase 2 begins at step 3 of 6: the encoder is frozen")
    before, after = (registry.load_codec(tmp_path / name / "inputs/autoencoder").net.state_dict() for name in ("short", "whole"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith("decoder.") for name in moved)
    assert {name for name in moved if "noise" in name}


def test_what_is_left_out_for_its_label_is_transferred_for_the_report(tmp_path, trainings: Trainings):
    """Beside its input, and nothing that the catalog lacks for other reasons; and the page plays both, with all other sounds."""
    data, home = trainings.data("rave"), trainings.copy("rave", tmp_path)
    some = tmp_path / "some"
    some.mkdir()
    (some / "clips").symlink_to(data / "clips", target_is_directory=True)
    missing = ("clip-0", "clip-1")
    rows = [row for row in shards.read_rows(data / "catalog.parquet", manifest.CATALOG) if row["clip_id"] not in missing]
    shards.write_rows(rows, some / "catalog.parquet", manifest.CATALOG.with_metadata({manifest.LEFT_OUT: '["clip-0"]'}))
    of_waves.generate(
        "rave", home, some, ROWS["rave"].composed("rave.generate.transfer_count=2", "rave.train.sampling.latent=['0=+2']")
    )
    output = {path.name for path in (tmp_path / "codec/transferred").iterdir()}
    assert output == {"clip-0.wav", "clip-0-input.wav"}
    given, transferred = (soundfile.read(tmp_path / f"codec/transferred/{name}")[0] for name in ("clip-0-input.wav", "clip-0.wav"))
    assert given.shape == transferred.shape == (3200,)
    assert np.abs(given - transferred).max() > 0.01
    source = family.read(some / "catalog.parquet", some / "clips", tmp_path / "generated", tmp_path / "codec")
    section = family_report._transferred(source)
    assert [[sound.role for sound in card.sounds] for card in section.cards] == [["transferred", "real"]]


def test_every_latent_codec_can_be_transferred_through(tmp_path, trainings: Trainings):
    soundfile.write(tmp_path / "some.wav", 0.1 * np.random.default_rng(0).standard_normal(3000), of_waves.RATE)
    done = soundmill("transfer", "some.wav", "--checkpoint", f"{trainings.trained('tango_rave')}/model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
