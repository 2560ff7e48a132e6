"""Commands about models, and those that pass recordings through a tiny stereo one."""

import json
import re
import shlex

import numpy as np
import pytest
import soundfile

from soundmill.audio import flac
from soundmill.commands.recordings import parse_spans
from soundmill.decoding.decode import open_sound
from soundmill.errors import UserError
from soundmill.models import registry
from tests.commands.running import refused, soundmill, works
from tests.stages.of_waves import LABELS

RATE = 44_100
GENERATE = ("generate", "--family", "ddpm_mel", "-n", "1", "--set", "num_steps=1")


@pytest.fixture(scope="module")
def home(tmp_path_factory, trainings):
    """A checkpoint by label, and a stereo recording of 0.3 s, longer than the 0.09 s that the model makes."""
    home = tmp_path_factory.mktemp("home")
    trainings.copy("waveform_unet", home)
    rng = np.random.default_rng(0)
    flac.write_wav(home / "long.wav", 0.2 * rng.standard_normal((2, 13_230)), RATE)
    soundfile.write(home / "mono.ogg", 0.2 * rng.standard_normal(2000), 16_000)
    return home


def run(home, *command: str):
    return soundmill(*command, "--checkpoint", "model", "--set", "num_steps=2", cwd=home)


def test_restyles(home):
    done = run(home, "restyle", "long.wav", "mono.ogg", "--amount", "0.3", "--label", "rain", "--output", "restyled")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["restyled/long.wav", "restyled/mono.wav"]
    for name, frames in (("long", 13_230), ("mono", round(2000 / 16_000 * RATE))):
        info = soundfile.info(home / f"restyled/{name}.wav")
        assert (info.samplerate, info.channels, info.frames) == (RATE, 2, pytest.approx(frames, abs=2))
    given, output = (soundfile.read(home / f"restyled/long{kind}.wav")[0] for kind in ("-input", ""))
    assert np.abs(given - output).mean() > 1e-3
    comment = json.loads(soundfile.SoundFile(home / "restyled/long.wav").comment)
    assert (comment["family"], comment["restyled"], comment["prompts"]) == ("waveform_unet", "long", "rain")
    assert comment["sampling"]["amount"] == 0.3
    assert (home / "restyled/spectrograms.png").read_bytes().startswith(b"\x89PNG")
    # An amount of 0 is the recording; another seed is another sound, the same seed the same.
    run(home, "restyle", "long.wav", "--amount", "0", "--output", "same")
    assert (soundfile.read(home / "same/long.wav")[0] == soundfile.read(home / "long.wav")[0]).all()
    for folder, seed in (("one", "1"), ("again", "1"), ("other", "2")):
        run(home, "restyle", "long.wav", "--seed", seed, "--output", folder)
    one, again, other = (soundfile.read(home / folder / "long.wav")[0] for folder in ("one", "again", "other"))
    assert (one == again).all()
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("keep", ["0:0.05,0.2:end", "spans.txt"])
def test_inpaints_and_keeps_the_file_s_samples_bit_for_bit(home, keep):
    (home / "spans.txt").write_text("\ufeff0\t0,05\tbeginning\n\\\t100\t200\n0,2\t0,3\n")  # as Audacity writes them
    done = run(home, "inpaint", "long.wav", "--keep", keep, "--output", "inpainted")
    assert done.returncode == 0, done.stderr
    (given, _), (output, _) = (soundfile.read(home / place, dtype="int16") for place in ("long.wav", "inpainted/long.wav"))
    kept = np.r_[0 : round(0.05 * RATE), round(0.2 * RATE) : 13_230]
    assert (given[kept] == output[kept]).all()
    anew = np.delete(np.abs(given.astype(int) - output).max(1), kept)
    assert (anew > 0).mean() > 0.9


def test_goes_from_one_to_another(home):
    assert run(home, "interpolate", "3", "4", "--steps", "3", "--output", "seeds").returncode == 0
    ends = [soundfile.read(home / f"seeds/{step:02d}.wav")[0] for step in range(3)]
    assert run(home, "generate", "-n", "1", "--seed", "4", "--output", "four").returncode == 0
    (generated,) = (home / "four").glob("*.wav")
    np.testing.assert_allclose(soundfile.read(generated)[0], ends[2], atol=1e-3)
    assert ends[0].shape == (4096, 2)
    assert np.abs(ends[0] - ends[2]).max() > 0.01
    done = run(home, "interpolate", "long.wav", "mono.ogg", "--steps", "2", "--amount", "0", "--output", "files")
    assert done.stdout.split() == ["files/00.wav", "files/01.wav"]
    assert (soundfile.read(home / "files/00.wav")[0] == soundfile.read(home / "long.wav")[0][:4096]).all()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["inpaint", "long.wav", "--keep", "0:0.4"], "long: the span 0:0.4 is not within the sound's 0.3 s; choose a span inside"),
        (["inpaint", "long.wav", "--keep", "0.2:0.1"], "the span 0.2:0.1 is not within"),
        (["inpaint", "long.wav", "--keep", "soon"], "--keep soon: neither spans of seconds, as 0:1.2,2:end, nor a readable text"),
        (["inpaint", "long.wav", "--keep", "long.wav"], "--keep long.wav: neither spans of seconds"),
        (["restyle", "long.wav", "--label", "ran"], f"unknown label 'ran'; did you mean 'rain'? (labels: {', '.join(LABELS)})"),
        (["restyle", "none.wav"], "none.wav"),
        (["restyle", "empty.wav"], "empty.wav: too short"),
        (["restyle", "nan.wav"], "nan.wav: nan (non-finite samples)"),
        (["restyle", "long.wav", "nan.wav"], "nan.wav: nan (non-finite samples)"),
        (["reconstruct", "long.wav"], "'waveform_unet' cannot reconstruct; it can generate, restyle, inpaint, interpolate; "),
        (["interpolate", "3", "long.wav"], "interpolate 3 long.wav: give two seeds or two recordings, not one of each"),
        (["generate", "--set", "amount="], "--set amount=…: is not used here; use `soundmill restyle`"),
        (["generate", "--set", "guidance_scale="], "sampling: cannot set 'guidance_scale=' (expected KEY=VALUE, keys: "),
        (["generate", "--psi", "0.7"], "psi is for GANs, which 'waveform_unet' is not; leave it out"),
        (["generate", "--set", "num_steps=3"], "num_steps is given twice; leave one of them out"),
        (["restyle", "long.wav", "--set", "amount=0.1"], "--set amount=…: is not used here; use --amount"),
        (["inpaint", "long.wav", "--keep", "0:0.1," * 60], "neither spans of seconds"),
        (["restyle", "long.wav", "long-input.wav"], "several results would be named long-input.wav; rename one"),
        (["restyle", "long.wav", "--set", "keep=[[0,5]]"], "--set keep=…: is not used here; use `soundmill inpaint`"),
        (["restyle", "long.wav", "--set", "resamples=2"], "--set resamples=…: is not used here; use `soundmill inpaint`"),
        (["inpaint", "long.wav", "--keep", "0:0.1", "--set", "amount=0.3"], "amount=…: is not used here; use `soundmill restyle`"),
        (["interpolate", "1", "2", "--set", "amount=0.3"], "--set amount=…: is not used here"),
        (["inpaint", "long.wav", "--keep", "0:0.1", "--set", "resamples=0"], "resamples"),
        (["inpaint", "long.wav", "--keep", "0:0.1", "--set", "keep=[[0,1]]"], "is not used here; use --keep"),
        (["interpolate", "1", "2", "--set", "nosuch=1"], "nosuch"),
        (["interpolate", "1", "2", "--amount", "0.5"], "--amount and --seed are for recordings"),
        (["interpolate", "1", "2", "--seed", "0"], "--amount and --seed are for recordings"),
        (["interpolate", str(2**63), "1"], "a seed is at most 9223372036854775807"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_written(home, command, message):
    soundfile.write(home / "empty.wav", np.zeros(0), RATE)
    soundfile.write(home / "nan.wav", np.full(100, np.nan), RATE, subtype="FLOAT")
    done = run(home, *command, "--output", "nothing")
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert not (home / "nothing").exists()


def test_a_recording_is_never_overwritten(home):
    before = (home / "long.wav").read_bytes()
    for command in (["restyle", "long.wav"], ["inpaint", "long.wav", "--keep", "0:0.1"]):
        done = run(home, *command, "--output", ".")
        assert "long.wav: a result would overwrite it; choose another --output" in done.stderr
    assert (home / "long.wav").read_bytes() == before
    (home / "own").mkdir()
    (home / "own/long.wav").write_bytes(before)
    assert "own/long.wav: is there, and was not made by a model" in run(home, "restyle", "long.wav", "--output", "own").stderr
    assert (home / "own/long.wav").read_bytes() == before
    (home / "own/00.wav").write_bytes(before)
    assert "own/00.wav: is there" in run(home, "interpolate", "1", "2", "--output", "own").stderr
    assert [run(home, "restyle", "long.wav", "--output", "anew").returncode for _ in range(2)] == [0, 0]


def test_a_file_in_place_of_a_directory_and_none_at_all_are_named(home, root):
    assert "long.wav: no checkpoint here" in refused("reconstruct", "long.wav", "--checkpoint", "long.wav", cwd=home)
    for path in (".", "none.json", "long.wav"):
        assert f"--from {path}: no such .json file" in refused("generate", "--from", path, "--project", str(root), cwd=home)


def test_recordings_are_decoded_anew_each_time_they_are_read(home):
    sound = open_sound(home / "long.wav")
    first, again = (np.concatenate(list(sound.blocks())) for _ in range(2))
    assert (first == again).all()
    assert (sound.sample_rate, first.shape) == (RATE, (sound.num_samples, sound.channels))
    assert (first == soundfile.read(home / "long.wav", dtype="float32")[0]).all()


def test_spans(tmp_path):
    assert parse_spans("0:1.2, 2:end") == [(0.0, 1.2), (2.0, None)]
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="has no span"):
        parse_spans(str(tmp_path / "empty.txt"))


def test_generate_without_a_checkpoint_says_what_to_run(tmp_path):
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    assert "no checkpoint; train one with `dvc repro`" in refused("generate", "--label", "dog", cwd=tmp_path)


@pytest.mark.slow
def test_families_are_listed_with_their_sizes_and_written(root, tmp_path):
    done = works("families", "--json", str(tmp_path / "families.json"), cwd=root)
    assert "23,331,457" in done.stdout
    assert "arXiv:2006.11239" in done.stdout
    described = json.loads((tmp_path / "families.json").read_text())
    assert list(described) == [*registry.FAMILIES]
    assert described["waveform_unet"]["commands"] == ["generate", "restyle", "inpaint", "interpolate"]
    assert described["diffwave"]["commands"] == ["generate", "reconstruct"]
    assert described["ddpm_mel"]["paper"] == {"unet": 23_331_457}
    assert described["ddpm_mel"]["laptop"]["unet"] > 0


def test_a_sentence_that_names_a_label_is_taken_for_it(built_graph, tmp_path):
    asked = (*GENERATE, "--project", str(built_graph))
    done = works(*asked, "a dog barks", cwd=tmp_path)
    assert done.stderr == "'a dog barks' matches the label 'dog'\n"
    assert done.stdout == "sounds/dog-0-001.wav\n"
    itself = soundmill(*asked, "Dog", cwd=tmp_path)
    assert (itself.returncode, itself.stderr) == (0, "")


def test_a_prompt_without_a_label_is_answered_with_a_command_that_works(built_graph, tmp_path):
    done = refused(*GENERATE, "--project", str(built_graph), "a cow moos", cwd=tmp_path)
    assert done.startswith("unknown label 'a cow moos' (labels: bell, bird, ")
    command = shlex.split(re.search(r"this works: soundmill (.+)", done)[1])
    works(*command, "-n", "1", "--set", "num_steps=1", cwd=tmp_path)


def test_a_kept_request_says_all_of_what_is_made_again(home):
    said = refused("generate", "rain", "--from", "kept.json", "--best-of", "2", "-n", "3", "--seed", "0", cwd=home)
    assert "leave out prompts, --number, --seed, --best-of" in said
