"""What there is to hear: families as the pipeline leaves them, folders of anyone's, and what they were asked for; the blind test:
what its page and key hold, and that the page tells of no sound whose it is."""

import base64
import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from soundmill.audio.flac import decode_flac, flac_channels, flac_rate, write_wav
from soundmill.audio.levels import integrated_loudness
from soundmill.audio.tags import GENERATED, MadeBy
from soundmill.errors import UserError
from soundmill.listening import answers, blind, material
from soundmill.listening.blind import Plan
from soundmill.listening.material import Request
from tests.prepared import sound, write_sounds

SECONDS = 6.0
MAKER = MadeBy("soft checkpoint 0123abcd", GENERATED)
HERTZ = {"beep/1": 500.0, "beep/2": 700.0, "hiss/1": 1100.0, "hiss/2": 1300.0}
RATE = 16_000
BRIEF = 0.5


def tone(hertz: float, rate: int, level: float = 0.2, seconds: float = SECONDS) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_models(root: Path) -> Path:
    """real; one 20 dB softer, with the tags of its maker; one in stereo at another rate, without `hiss/2`."""
    for name, hertz in HERTZ.items():
        write_wav(root / "real" / f"{name}.wav", tone(hertz, 16_000), 16_000)
        write_wav(root / "soft" / f"{name}.wav", tone(hertz, 16_000, 0.02), 16_000, made_by=MAKER)
        if name != "hiss/2":
            write_wav(root / "wide" / f"{name}.wav", np.stack([tone(hertz, 44_100), tone(hertz, 44_100, 0.1)]), 44_100)
    return root


def write_report(directory: Path, kl: dict[str, float]) -> Path:
    """What `soundmill evaluate --report` leaves that a listening page reads."""
    directory.mkdir(parents=True)
    scores = (
        '{"kl_yamnet": 1.5, "fad_yamnet": 9.0, "baselines": {"kl_yamnet": {}, "fad_yamnet": {}}, "unranked": {"fad_yamnet": "x"}}'
    )
    (directory / "scores.json").write_text(scores, encoding="utf-8")
    rows = "".join(f"{name},{value}\n" for name, value in kl.items())
    (directory / "sounds.csv").write_text(f"id,kl_yamnet\n{rows}", encoding="utf-8")
    return directory


def test_requests_that_most_models_have_come_first_and_labels_in_turn(tmp_path):
    write_models(tmp_path)
    models = [material.read_folder(name, material.open_folder(tmp_path / name)) for name in ("soft", "wide")]
    asked = material.folder_requests(material.open_folder(tmp_path / "soft"), None)
    gathered = material.gather(models, {}, asked)
    assert gathered.order() == ["beep/1", "hiss/1", "beep/2", "hiss/2"]
    assert asked["beep/1"] == Request(("beep",), "", "")
    with pytest.raises(UserError, match="several models are called soft"):
        material.gather([models[0], models[0]], {}, asked)


def test_a_folders_captions_are_of_a_csv_or_of_what_generate_noted(tmp_path):
    prompt = json.dumps({"prompt": "a dog barks", "seed": 0})
    write_wav(tmp_path / "a" / "dog-0-001.wav", tone(500, RATE), RATE, prompt)
    write_wav(tmp_path / "a" / "other.wav", tone(500, RATE), RATE, "not JSON")
    opened = material.open_folder(tmp_path / "a")
    assert [asked.text for asked in material.folder_requests(opened, None).values()] == ["a dog barks", ""]
    (tmp_path / "texts.csv").write_text("id,caption\ndog-0-001,a cat\nother,rain\n")
    assert [asked.text for asked in material.folder_requests(opened, tmp_path / "texts.csv").values()] == ["a cat", "rain"]


def test_real_clips_and_what_the_catalog_says(tmp_path):
    rows = [
        sound(
            name.replace("/", "_"), tone(hertz, RATE), recording_id=name, source=f"{name}.wav", start=2.5, split="test",
            labels=[name[:4]], captions=["a sound", "another"] if name == "beep/1" else [],
        )
        for name, hertz in HERTZ.items()
    ]  # fmt: skip
    tables = write_sounds(rows, tmp_path / "clips", tmp_path / "catalog.parquet")
    real, asked = material.real_clips(tables, {"beep_1", "hiss_1", "gone_1"})
    assert asked == {
        "beep_1": Request(("beep",), "a sound", "beep/1.wav from 2.5 s"),
        "hiss_1": Request(("hiss",), "", "hiss/1.wav from 2.5 s"),
    }
    wave, rate = real["hiss_1"]()
    assert rate == RATE
    np.testing.assert_allclose(wave[0], tone(1100, RATE), atol=1e-4)


def test_scores_that_rank_models_and_those_of_single_sounds(tmp_path):
    scores, of = material.read_report(write_report(tmp_path / "report", {"beep/1": 0.5}))
    assert scores == {"kl_yamnet": 1.5}  # that of FAD is said to rank nothing
    assert of == {"beep/1": {"kl_yamnet": 0.5}}
    (tmp_path / "report" / "sounds.csv").write_text("id,codec_lsd,kl_yamnet\nbeep/1,3,0.5\nhiss/1,4,\n")
    assert material.read_report(tmp_path / "report")[1] == {"beep/1": {"kl_yamnet": 0.5}, "hiss/1": {}}
    assert material.read_report(tmp_path / "none") == ({}, {})
    with pytest.raises(UserError, match=r"none/scores.json: no such file; score the sounds"):
        material.read_report(tmp_path / "none", required=True)


@pytest.mark.parametrize("line", ["beep/1,much", "beep/1,nan", "beep/1,1,2", "\xff,1", "[1]", '{"baselines": null}'])
def test_damaged_scores_are_named(tmp_path, line):
    report, name = write_report(tmp_path / "report", {}), "scores.json" if line[0] in "[{" else "sounds.csv"
    (report / name).write_text(line if name == "scores.json" else f"id,kl_yamnet\n{line}\n", encoding="latin-1")
    with pytest.raises(UserError, match=rf"{name}.*score the sounds again"):
        material.read_report(report)


def test_sounds_that_cannot_be_opened_are_all_named(tmp_path):
    write_models(tmp_path)
    (tmp_path / "soft" / "empty.wav").touch()
    (tmp_path / "soft" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    with pytest.raises(UserError) as error:
        material.open_folder(tmp_path / "soft")
    assert "empty.wav: empty" in str(error.value)
    assert "gone.wav: dangling link" in str(error.value)


def gathered(root, names=("soft", "wide"), captions=None) -> material.Material:
    models = [material.read_folder(name, material.open_folder(root / name)) for name in names]
    asked = material.folder_requests(material.open_folder(root / names[0]), captions)
    return material.gather(models, material.folder_sounds(material.open_folder(root / "real")), asked)


def plan(per_model, *names, **more) -> Plan:
    return Plan({name: blind.questions()[name] for name in names}, per_model, 0, **more)


@pytest.fixture
def sounds(tmp_path):
    """Three requests of all; the models say who they are wherever a WAV can."""
    for name, hertz in list(HERTZ.items())[:3]:
        write_wav(tmp_path / "real" / f"{name}.wav", tone(hertz, 16_000, 0.2, BRIEF), 16_000, "of the real ones")
        write_wav(tmp_path / "soft" / f"{name}.wav", tone(hertz, 16_000, 0.01, BRIEF), 16_000, '{"family": "softmodel"}')
        write_wav(tmp_path / "wide" / f"{name}.wav", np.stack([tone(hertz, 44_100, 0.3, BRIEF)] * 2), 44_100, "widemodel")
    return tmp_path


def content(page) -> dict:
    return json.loads(re.search(r'id="content">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)[1])


def test_the_page_tells_of_no_sound_whose_it_is(sounds):
    page, key = blind.write(sounds / "test", gathered(sounds), plan(3, "quality", "similarity"))
    text = page.read_text(encoding="utf-8")
    for word in ("soft", "wide", "softmodel", "widemodel", "beep/1", "hiss/1", "bad_", "seed"):
        assert not re.search(rf"\b{word}\b", text.partition("<script type")[2].partition("</script>")[0]), word
    shown = content(page)
    assert set(shown) == {"test", "questions", "scale", "compare", "orders", "sounds", "references", "beeps", "check"}
    data = {name: base64.b64decode(one["flac"]) for name, one in shown["sounds"].items()}
    assert sorted(data) == list(data) == [f"s{number:03d}" for number in range(1, 13)]  # 2 models, real, bad; 3 requests
    assert {(flac_rate(one), flac_channels(one)) for one in data.values()} == {(44_100, 2)}
    for secret in (b"softmodel", b"widemodel", b"real ones", b"TITLE", b"COMMENT"):
        assert not any(secret in one for one in data.values())
    heard = {name: decode_flac(one) for name, one in data.items()}
    secret = answers.read_key(key)
    loudness = {name: integrated_loudness(wave, 44_100) for name, wave in heard.items() if secret.sounds[name].system != "bad"}
    np.testing.assert_allclose(list(loudness.values()), blind.LOUDNESS, atol=0.1)
    systems = [secret.sounds[name].system for name in sorted(data)]
    assert len(list(itertools.groupby(systems))) > 4  # not one system after the other; one order in 15,400 is, by chance
    assert Counter(one.system for one in secret.sounds.values()) == {"soft": 3, "wide": 3, "real": 3, "bad": 3}


def test_nobody_rebuilds_the_key_from_the_sounds_and_the_seed(sounds):
    one = plan(3, "quality")
    page, key = blind.write(sounds / "test", gathered(sounds), one)
    guess_page, guess = blind.write(sounds / "guess", gathered(sounds), one)
    key.chmod(0o644)  # as of an earlier version
    answers.read_key(key).write(key)
    assert key.stat().st_mode & 0o077 == 0
    secret, guessed = answers.read_key(key), answers.read_key(guess)
    assert secret.sounds != guessed.sounds
    assert secret.orders != guessed.orders
    assert (secret.salt != guessed.salt, len(secret.salt)) == (True, 32)
    assert secret.salt not in page.read_text(encoding="utf-8")
    (sounds / "again").mkdir()
    shutil.copy(key, sounds / "again")
    again = blind.write(sounds / "again", gathered(sounds), one)
    assert [path.read_bytes() for path in again] == [page.read_bytes(), key.read_bytes()]
    assert guess_page.read_bytes() != page.read_bytes()


def test_a_key_without_a_salt_can_still_be_read(sounds):
    _, key = blind.write(sounds / "test", gathered(sounds), plan(3, "quality"))
    document = json.loads(key.read_text(encoding="utf-8"))
    del document["salt"]
    key.write_text(json.dumps(document), encoding="utf-8")
    assert answers.read_key(key).salt == ""
    with pytest.raises(UserError, match=r"key.json: the key of another test"):  # the new one is salted
        blind.write(sounds / "test", gathered(sounds), plan(3, "quality"))
    key.write_text("{")
    with pytest.raises(UserError, match=r"key.json: not readable.*; restore it, or choose another --output"):
        blind.write(sounds / "test", gathered(sounds), plan(3, "quality"))


def test_a_bad_anchor_is_another_request_under_noise_and_breaks_off(sounds):
    page, key = blind.write(sounds / "test", gathered(sounds), plan(3, "quality", "relevance"))
    shown, secret = content(page), answers.read_key(key)
    for name, one in secret.sounds.items():
        assert shown["sounds"][name]["text"] == one.request.partition("/")[0]
        if one.system == "bad":
            wave = decode_flac(base64.b64decode(shown["sounds"][name]["flac"]))[0]
            end = round(0.8 * len(wave))
            assert np.abs(wave[end + 200 :]).max() < 0.01 * np.abs(wave[:end]).max()
            spectrum = np.abs(np.fft.rfft(wave[:end]))
            pitch = np.fft.rfftfreq(end, 1 / 44_100)[spectrum.argmax()]
            others = [hertz for other, hertz in HERTZ.items() if not other.startswith(shown["sounds"][name]["text"])]
            assert min(abs(pitch - hertz) for hertz in others) < 5


def test_loops_are_heard_three_times_in_a_row(sounds):
    page, _ = blind.write(sounds / "test", gathered(sounds), plan(3, "loopability"))
    wave = decode_flac(base64.b64decode(next(iter(content(page)["sounds"].values()))["flac"]))
    once = round(BRIEF * 44_100)
    assert wave.shape == (2, 3 * once)
    np.testing.assert_array_equal(wave[:, :once], wave[:, once : 2 * once])


def test_pairs_of_models_and_one_model_beside_the_real_sounds(sounds):
    _, key = blind.write(sounds / "two", gathered(sounds), plan(3, "quality", compare=True))
    secret = answers.read_key(key)
    pairs = Counter(frozenset(secret.sounds[name].system for name in trial) for trial in secret.orders[0])
    assert pairs == {frozenset({"soft", "wide"}): 3 + 2, frozenset({"real", "bad"}): 3}  # two of them once more
    _, key = blind.write(sounds / "one", gathered(sounds, ("soft",)), plan(3, "quality", compare=True))
    secret = answers.read_key(key)
    assert frozenset({"soft", "real"}) in {frozenset(secret.sounds[name].system for name in trial) for trial in secret.orders[0]}


def test_scores_and_weights_go_into_the_key(tmp_path):
    write_models(tmp_path)
    report = write_report(tmp_path / "report", {"beep/1": 0.5, "hiss/2": 1.0, "other": 2.0})
    model = material.read_folder("soft", material.open_folder(tmp_path / "soft"), report)
    output = material.gather([model], material.folder_sounds(material.open_folder(tmp_path / "real")), {})
    secret = answers.read_key(blind.write(tmp_path / "test", output, plan(4, "quality"))[1])
    assert secret.models["soft"].scores == {"kl_yamnet": 1.5}
    assert secret.models["soft"].of == {"beep/1": {"kl_yamnet": 0.5}, "hiss/2": {"kl_yamnet": 1.0}}


@pytest.mark.parametrize(
    ("names", "plan", "message"),
    [
        (("soft",), plan(4, "quality"), "3 requests have a real sound and one of every model, fewer than --per-model 4"),
        (("real",), plan(3, "quality"), "'real' is a reserved name"),
    ],
)
def test_mistakes_are_named(sounds, names, plan, message):
    with pytest.raises(UserError, match=message):
        blind.write(sounds / "test", gathered(sounds, names), plan)
    assert not (sounds / "test").exists()


def test_what_was_asked_for_must_be_known_where_it_is_asked_about(tmp_path):
    for name in "abc":
        for side in ("real", "soft"):
            write_wav(tmp_path / side / f"{name}.wav", tone(500, 16_000, 0.2, BRIEF), 16_000)
    with pytest.raises(UserError, match=r"relevance: no caption or.*give --captions"):
        blind.write(tmp_path / "test", gathered(tmp_path, ("soft",)), plan(3, "relevance"))
    (tmp_path / "texts.csv").write_text("id,caption\na,<b>rain</b>\nb,wind\nc,sea\n")
    page, _ = blind.write(tmp_path / "test", gathered(tmp_path, ("soft",), tmp_path / "texts.csv"), plan(3, "relevance"))
    assert "<b>rain" not in page.read_text(encoding="utf-8")
    assert "<b>rain</b>" in {one["text"] for one in content(page)["sounds"].values()}
