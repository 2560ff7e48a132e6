"""The report page and the card of a result: every number, sound and warning is there, safely escaped; bytes do not change."""

import base64
import csv
import io
import json
import math
import re

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Text
from selenium.webdriver.common.by import By

from soundmill.audio.flac import decode_mono, flac_rate
from soundmill.evaluation import figures, report, score_rows, waveforms
from soundmill.evaluation.ladder import Climbed
from soundmill.metrics import scores
from soundmill.page import sounds
from tests.chromium import browser


def metrics(**changes):
    return {
        "protocol": "soundmill-3",
        "reference": "test",
        "fad_yamnet": 18.2,
        "fad_yamnet_low": 16.0,
        "fad_yamnet_high": 20.5,
        "kl_yamnet": 2.5,
        "label_accuracy_yamnet": 0.45,
        "baselines": {
            "fad_yamnet": {"floor": 2.6, "codec_floor": 2.7, "codec": 8.7, "silence": 39.0, "noise": 63.7},
            "kl_yamnet": {"floor": 1.3, "codec": 0.4, "silence": 7.0, "noise": 8.5},
            "label_accuracy_yamnet": {"real": 0.97, "chance": 0.1},
        },
        "silent_share": 0.0,
        "clipped_share": 0.25,
        "duplicate_share": 0.0,
        "counts": {"generated": 80, "reference": 80, "codec": 80},
        "warnings": ["mind <this>"],
        "left_out": {},
        "unranked": {},
        "embedders": {"yamnet": {"weights": "abc"}, "tagger": "unavailable: <gone>"},
        "files": {"generated": "d1", "reference": "d2", "codec": "d3"},
        **changes,
    }


def card(clip_id: str, seed: int) -> sounds.Card:
    random = np.random.default_rng(seed)
    waves = [(random.standard_normal(16_000) * level).astype(np.float32) for level in (0.1, 0.01)]
    both = tuple(sounds.Sound(what, wave, 16_000) for what, wave in zip(("generated", "real"), waves, strict=True))
    return sounds.Card(clip_id, "dog", "a <b>dog</b> barks", both, (sounds.Chip("yamnet hears rain ✗", False),))


def write(directory, **changes):
    cards = (card("dog_1", 0), card("dog_2", 1))
    sections = [sounds.Section("Generated", "next to <real>", cards), sounds.Section("Codec", "", cards[:1])]
    classes = {"dog": {"generated": 2, "kl_yamnet": 1.234}, "": {"generated": 1, "kl_yamnet": 7.0}}
    of = {"kl_yamnet": {"dog_2": 1.5, "dog_1": 0.25}, "label_accuracy_yamnet": {"dog_2": 1.0}, "fd_yamnet": {"dog_1": 3.0}}
    report.write_report(directory, "ddpm_mel", metrics(**changes), sections, of, classes)
    return directory


def page_of(directory, *cards: sounds.Card) -> str:
    """A page with a section of these cards."""
    report.write_report(directory, "x", metrics(), [sounds.Section("one", "", cards)], {})
    return (directory / "index.html").read_text(encoding="utf-8")


def test_the_page_shows_the_ladder(tmp_path):
    rungs = {"generated": 8.8, "real": 3.2, "pieces_200ms": 4.4, "pieces_50ms": 10.0, "bits_8": 3.3}
    ladder = {"clips": 20, "missing_class": "dog <1>", "scores": {"fad_yamnet": rungs}}
    files = {path.name: path.read_bytes() for path in write(tmp_path / "report", ladder=ladder).iterdir()}
    page = files["index.html"].decode()
    assert "20 real sounds, degraded in known ways" in page
    assert (
        "<p>FAD (yamnet, 20 sounds) 8.8: between pieces of 200 ms (4.4) and pieces of 50 ms (10); deaf to 8-bit samples</p>" in page
    )
    assert "The missing class is “dog &lt;1&gt;”." in page
    assert page.count("<svg") == 2
    ids = [name for name in re.findall(r'<(?:path|clipPath) id="([^"]+)"', page) if not name.startswith("DejaVu")]
    assert len(set(ids)) == len(ids)  # of both charts, except for glyphs
    assert files["ladder.png"].startswith(b"\x89PNG")
    assert b"pieces of 200 ms & 4.4" in files["ladder.tex"]
    without = write(tmp_path / "without")
    assert "The ladder" not in (without / "index.html").read_text(encoding="utf-8")
    assert not (without / "ladder.png").exists()


def test_a_dot_is_hollow_if_the_metric_is_deaf_to_its_rung():
    one = Climbed("fad_yamnet", "fad", "yamnet", 20, 8.8, {"real": 3.2, "pieces_50ms": 10.0, "low_pass_4khz": 3.0, "bits_8": 3.3})
    figure = figures.draw_ladder([one])
    dots = {line.get_xdata()[0]: line for line in figure.axes[0].lines if line.get_marker() == "o"}
    assert dots.keys() == {3.2, 10.0, 3.0, 3.3}
    assert {value for value, dot in dots.items() if dot.get_markerfacecolor() == "white"} == {3.0, 3.3}
    colours = {3.2: figures.COLOURS["real"], 10.0: figures.HEARD, 3.0: figures.DEAF, 3.3: figures.DEAF}
    assert {value: dot.get_color() for value, dot in dots.items()} == colours
    texts = {text.get_text(): text for text in figure.axes[0].texts}
    assert {
        "real sounds",
        "pieces of 50 ms",
        "low-pass at 4 kHz",
        "8-bit samples",
        "generated 8.8",
        "FAD (yamnet, 20 sounds)",
    } < texts.keys()
    assert [texts[value].get_ha() for value in ("10", "3")] == ["left", "right"]  # away from the line of the real sounds


def test_an_interrupted_report_leaves_the_earlier_one_whole(tmp_path, monkeypatch):
    directory = write(tmp_path / "report")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(report.page, "render", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(directory, warnings=["another"])
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_page_holds_scores_sounds_warnings_and_provenance(tmp_path):
    directory = write(tmp_path / "report")
    page = (directory / "index.html").read_text(encoding="utf-8")
    shown = ("ddpm_mel", "18.2", "16 … 20.5", "63.7", "45.0%", "25% clipped", "abc", "d2", "dog_2", "1.23", "(no folder)")
    for text in (*shown, "mind &lt;this&gt;", "next to &lt;real&gt;", "yamnet hears rain ✗"):
        assert text in page
    assert "<b>dog</b>" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing outside the page is needed
    players = re.findall(r'src="data:audio/flac;base64,([^"]+)"', page)
    assert len(players) == 6
    np.testing.assert_allclose(decode_mono(base64.b64decode(players[0])), card("dog_1", 0).sounds[0].wave, atol=1e-4)
    assert page.count("data:image/png") == 6


def test_bytes_do_not_change(tmp_path):
    first, second = write(tmp_path / "first"), write(tmp_path / "second")
    names = sorted(path.name for path in first.iterdir())
    assert names == ["index.html", "scores.csv", "scores.json", "scores.md", "scores.png", "scores.tex", "sounds.csv"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_scores_as_table_and_json(tmp_path):
    directory = write(tmp_path / "report")
    table = (directory / "scores.md").read_text(encoding="utf-8").splitlines()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert lines[0] == ["score", "value", "95 %", "real", "floor", "codec floor", "codec", "silence", "noise", "chance"]
    assert lines[2] == ["fad_yamnet", "18.2", "16 … 20.5", "–", "2.6", "2.7", "8.7", "39", "63.7", "–"]
    assert lines[4] == ["label_accuracy_yamnet", "45.0%", "–", "97.0%", "–", "–", "–", "–", "–", "10.0%"]
    document = json.loads((directory / "scores.json").read_text(encoding="utf-8"))
    assert document["title"] == "ddpm_mel"
    assert document["warnings"] == ["mind <this>"]
    assert document["fad_yamnet"] == 18.2


def test_scores_as_csv_and_latex(tmp_path):
    directory = write(tmp_path / "report", is_yamnet=3.5, clap_score=0.25, embedders={"yamnet": {}, "clap": {}})
    rows = list(csv.DictReader((directory / "scores.csv").open(encoding="utf-8")))
    assert [row["score"] for row in rows] == ["clap_score", "fad_yamnet", "kl_yamnet", "is_yamnet", "label_accuracy_yamnet"]
    assert (rows[1]["value"], rows[1]["low"], rows[1]["noise"], rows[1]["chance"]) == ("18.2", "16.0", "63.7", "")
    assert (rows[1]["protocol"], rows[1]["generated"]) == ("soundmill-3", "80")
    sounds_of = list(csv.DictReader((directory / "sounds.csv").open(encoding="utf-8")))
    assert sounds_of == [
        {"id": "dog_1", "kl_yamnet": "0.25", "label_accuracy_yamnet": ""},
        {"id": "dog_2", "kl_yamnet": "1.5", "label_accuracy_yamnet": "1.0"},
    ]
    latex = (directory / "scores.tex").read_text(encoding="utf-8")
    assert r"Fréchet distance & yamnet & 18.2 & 16 -- 20.5 & -- & 2.6 & 2.7 & 8.7 & 39 & 63.7 & -- \\" in latex
    assert r"45.0\%" in latex
    assert latex.count("&") == 6 * 10
    assert not re.search(r"(?<!\\)[_%]", latex)


def test_scores_that_rank_nothing_and_those_withheld_say_so_everywhere(tmp_path):
    changes = {"fad_yamnet": None, "kl_yamnet": 2.5, "mmd_yamnet": 0.1, "codec_lsd": 3.5, "codec_lsd_low": 3.0}
    reasons = {
        "left_out": {"fad_yamnet": "a Fréchet distance needs 50 <reference> sounds"},
        "unranked": {"mmd_yamnet": "the model was trained against yamnet"},
    }
    directory = write(tmp_path / "report", **changes, **reasons)
    rows = {row["score"]: row for row in csv.DictReader((directory / "scores.csv").open(encoding="utf-8"))}
    assert (rows["fad_yamnet"]["value"], rows["fad_yamnet"]["ranks"]) == ("", "False")
    assert (rows["mmd_yamnet"]["ranks"], rows["mmd_yamnet"]["note"]) == ("False", reasons["unranked"]["mmd_yamnet"])
    assert rows["kl_yamnet"]["ranks"] == "True"
    assert (rows["codec_lsd"]["embedder"], rows["codec_lsd"]["value"]) == ("waves", "3.5")
    text = (directory / "scores.md").read_text(encoding="utf-8")
    for message in ("0.1†", reasons["left_out"]["fad_yamnet"], reasons["unranked"]["mmd_yamnet"]):
        assert message in text
    latex = (directory / "scores.tex").read_text(encoding="utf-8")
    assert r"0.1$^\dagger$" in latex
    assert "ranks no models" in latex
    page = (directory / "index.html").read_text(encoding="utf-8")
    for message in ("0.1†", "50 &lt;reference&gt; sounds", reasons["unranked"]["mmd_yamnet"], "Log-spectral distance"):
        assert message in page
    assert '<b class="hot">–</b>' in page
    assert json.loads((directory / "scores.json").read_text())["fad_yamnet"] is None


def test_a_note_stands_once_below_the_table_and_makes_no_row_higher(tmp_path):
    note = "the model was trained against yamnet, so this says how well it was fooled and not how good it sounds"
    write(tmp_path / "report", mmd_yamnet=0.1, unranked={"mmd_yamnet": note, "kl_yamnet": note})
    with browser() as chrome:
        chrome.set_window_size(1000, 800)
        chrome.get((tmp_path / "report" / "index.html").as_uri())
        table = next(one for one in chrome.find_elements(By.TAG_NAME, "table") if "2.5†" in one.text)
        heights = [row.rect["height"] for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")]
        assert max(heights) - min(heights) <= 1  # a border is rounded
        assert note not in table.text
        text = chrome.find_element(By.TAG_NAME, "body").text
    assert text.count(f"† ranks no models: KL divergence yamnet, Kernel distance (MMD) yamnet: {note}") == 1


def test_pictures_of_a_card_are_level_whatever_stands_below_them(tmp_path):
    quiet = card("a", 0).sounds[1]
    loud = sounds.Sound("generated", 1e3 * quiet.wave, quiet.sample_rate)  # with a note that its player clips
    page_of(tmp_path, sounds.Card("a", "a", "", (loud, quiet)))
    with browser() as chrome:
        chrome.get((tmp_path / "index.html").as_uri())
        places = [picture.rect["y"] for picture in chrome.find_elements(By.CSS_SELECTOR, ".picture")]
    assert places[0] == places[1]


def many(values):
    """Every metric, each among baselines of these values."""
    keys = [f"{metric}_vggish" for metric in (*scores.METRICS, "label_accuracy")]
    keys += [*waveforms.METRICS, *(f"codec_{metric}" for metric in waveforms.METRICS)]
    names = score_rows.BASELINES[-len(values) :]
    return metrics(
        **dict.fromkeys(keys, values[0]),
        baselines={key: dict(zip(names, values, strict=True)) for key in keys},
        unranked=dict.fromkeys(keys[::2], "trained against it"),
        embedders={"vggish": {}},
    )


@pytest.mark.parametrize(
    "values",
    [
        (0.000123456,) * 7,
        (0.95, 0.951, 0.952, 0.953, 0.954, 0.955, 0.956),
        (0.0001234, 0.0001236, 0.0001238, 0.9, 0.91, 0.92, 0.93),
        (-0.001234, 0.0, 0.0001, 12345.0, 12346.0),
        (18.2, 2.73, 2.77, 40.1, 40.2),
    ],
)
@pytest.mark.slow(minutes=0.3)
def test_no_text_of_a_chart_covers_another_or_leaves_it(values):
    figure = figures.draw_scores(many(values))
    for dpi in (72, 150):  # of the page and of the picture
        figure.dpi = dpi
        figure.draw_without_rendering()
        texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        assert len(texts) > 24 * (2 + len(values))
        x0, y0, x1, y1 = np.array([text.get_window_extent().extents for text in texts]).T
        assert min(x0.min(), y0.min()) >= 0
        assert (x1.max() <= figure.bbox.x1, y1.max() <= figure.bbox.y1) == (True, True)
        covers = (x0[:, None] < x1) & (x0 < x1[:, None]) & (y0[:, None] < y1) & (y0 < y1[:, None])
        assert [(texts[a], texts[b]) for a, b in np.argwhere(np.triu(covers, 1))] == []


def test_long_sounds_are_cut_on_the_page(tmp_path):
    long = sounds.Sound("generated", np.full(int(8_000 * (sounds.LONGEST_SECONDS + 5)), 0.1, np.float32), 8_000)
    page = page_of(tmp_path, sounds.Card("a", "a", "", (long,)))
    (sound,) = re.findall(r'src="data:audio/flac;base64,([^"]+)"', page)
    assert len(decode_mono(base64.b64decode(sound))) == 8_000 * sounds.LONGEST_SECONDS
    assert "first 30 s" in page


@pytest.mark.parametrize(
    ("rate", "level"), [(100, 1.0), (3_000, 10.0), (8_000, 1e-38), (44_100, 1.0), (192_000, 1e30), (384_000, 10.0), (768_000, 1.0)]
)
def test_sounds_of_any_rate_and_level_are_seen_and_heard(rate, level, tmp_path, capsys):
    """A tone: the row of its frequency is the brightest, whatever the rate and the level; and what the player changes is named."""
    pitch = min(rate / 8, 20_000)
    tone = 0.9 * np.sin(2 * np.pi * pitch * np.arange(int(0.9 * rate)) / rate)
    sound = sounds.Sound("generated", (level * tone).astype(np.float32), rate)
    page = page_of(tmp_path, sounds.Card("a", "a", "", (sound,)))
    (picture,) = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)"', page)
    brightness = imread(io.BytesIO(base64.b64decode(picture)))[..., :3].sum(2).mean(1)[::-1]

    def mels(hertz: float) -> float:  # Slaney 1998
        return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)

    place = (mels(pitch) - mels(min(40, rate / 200))) / (mels(rate / 2) - mels(min(40, rate / 200)))
    assert np.argmax(brightness) / len(brightness) == pytest.approx(place, abs=0.05)
    (player,) = re.findall(r'src="data:audio/flac;base64,([^"]+)"', page)
    data = base64.b64decode(player)
    assert 8_000 <= flac_rate(data) <= 96_000
    assert len(decode_mono(data)) / flac_rate(data) == pytest.approx(0.9, abs=0.01)
    assert np.abs(decode_mono(data)).max() == pytest.approx(0 if level < 1 else min(0.9 * level, 1), abs=0.02)
    assert ("clipped in the player" in page) == (level > 1)
    assert ("silent in the player" in page) == (level < 1)
    assert (f"played at {flac_rate(data)} Hz instead of {rate}" in page) == (flac_rate(data) != rate)
    assert capsys.readouterr().err == ""


def test_a_damaged_sound_is_named_and_all_others_are_there(tmp_path, capsys):
    good = card("good", 0)
    wave = good.sounds[0].wave
    bad = {"nan": np.where(wave == wave.max(), np.nan, wave), "inf": np.where(wave == wave.max(), np.inf, wave)}
    made = {name: sounds.Sound("generated", output, 16_000) for name, output in bad.items()}
    made["gone"] = sounds.Sound("generated", wave[:0], 1, "gone.wav: missing")
    page = page_of(tmp_path, good, *(sounds.Card(name, name, "", (one, good.sounds[1])) for name, one in made.items()))
    assert page.count("<img") == page.count("<audio") == 5
    message = capsys.readouterr().err
    for name, why in {**dict.fromkeys(bad, "non-finite samples"), "gone": "gone.wav: missing"}.items():
        for what in ("picture", "player"):
            assert f"<li>{name}, generated: no {what}: {why}</li>" in page
            assert f"{tmp_path.name}/index.html: {name}, generated: no {what}: {why}\n" in message
    assert page.count("see “Warnings”") == 6


def test_silence_is_dark_and_said_of_nothing(tmp_path):
    sound = sounds.Sound("generated", np.zeros(16_000, np.float32), 16_000)
    page = page_of(tmp_path, sounds.Card("a", "a", "", (sound,)))
    (picture,) = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)"', page)
    assert imread(io.BytesIO(base64.b64decode(picture)))[..., :3].max() < 0.1
    assert 'class="note"' not in page


def test_best_and_worst():
    of = {f"s{index}": abs(index - 4.2) for index in range(10)}
    result = report.best_and_worst(of, "lower")
    assert result["Best"] == ["s4", "s5", "s3"]
    assert result["Worst"] == ["s8", "s0", "s9"]
    assert not set(result["Middling"]) & {*result["Best"], *result["Worst"]}
    assert report.best_and_worst(of, "higher")["Best"] == ["s9", "s0", "s8"]
    assert [len(ids) for ids in report.best_and_worst({"a": 1.0, "b": 2.0, "c": 3.0, "d": 0.0}, "lower").values()] == [1, 1, 1]
    assert report.best_and_worst({}, "lower") == {"Best": [], "Middling": [], "Worst": []}


@pytest.mark.parametrize(
    ("value", "codec", "count", "expected"),
    [
        (18.6, 4.3, 80, "10% is due to the codec (real clips lose 1.6 in it) and 90% to the model: the model loses more"),
        (18.6, 17.0, 80, "the codec loses more"),
        (2.0, 8.7, 80, "as close to the reference as other real clips"),
        (50.0, 8.7, 80, "no closer to real ones than silence or noise"),
        (18.6, 8.7, 15, "15 clips through the codec are too few"),
    ],
)
def test_verdict(value, codec, count, expected):
    baselines = {"floor": 2.6, "codec_floor": 2.7, "codec": codec, "silence": 39.0, "noise": 63.7}
    row = score_rows.ScoreRow("fad_yamnet", "fad", "yamnet", value, None, None, baselines)
    assert expected in score_rows.verdict(row, {"codec": count, "generated": 80})


RUNGS = {"generated": 8.8, "real": 3.2, "pieces_200ms": 4.4, "pieces_50ms": 10.0, "bits_8": 3.3, "missing_class": 5.0}


def result(**changes: object) -> dict:
    metrics = {
        "protocol": "soundmill-3", "version": 3, "soundmill": "0.1.0", "resampler": "soxr HQ", "sample_rate": None,
        "level": "peak", "chosen_by": ["tagger"],
        "seed": 7, "replicates": 200, "trained_against": ["vggish"], "weights": "EMA (step 500)",
        "counts": {"generated": 80, "reference": 160, "codec_reference": 12}, "seconds": {"generated": 400.0, "reference": 800.0},
        "files": {"generated": "aaaa", "reference": "bbbb"},
        "embedders": {"yamnet": {"weights": "10c95e", "embeddings": {}}, "vggish": {"weights": "100869", "front_end": "google"},
                      "clap": "unavailable: no weights"},
        "fad_yamnet": 9.0, "fad_yamnet_low": 8.0, "fad_yamnet_high": 10.0, "fad_vggish": 2.0, "kl_yamnet": None,
        "baselines": {"fad_yamnet": {"floor": 3.0, "silence": 38.9, "noise": 63.0}, "fad_vggish": {"silence": 1.0}},
        "left_out": {"kl_yamnet": "the folders have no ids in common"},
        "unranked": {"fad_vggish": "the model was trained against vggish"},
        "memorised_yamnet": 0.025, "memorised_yamnet_real": 0.05,
        "ladder": {"clips": 24, "missing_class": "dog", "scores": {"fad_yamnet": RUNGS}},
        "warnings": ["0.6% of the reference sounds are clipped, which no score shows."],
    }  # fmt: skip
    return metrics | changes


COMMAND = "soundmill evaluate made real --embedder yamnet --seed 7"


def test_all_that_a_paper_needs_is_there(tmp_path):
    report.write_card(tmp_path, "made against real", result(), COMMAND, 4)
    text = (tmp_path / report.CARD).read_text(encoding="utf-8")
    for part in (
        "# made against real\n\n```sh\nsoundmill evaluate made real --embedder yamnet --seed 7\n```",
        "| protocol | soundmill-3, soundmill 0.1.0 |",
        "| generated sounds | 80, 400 s, digest aaaa |",
        "| reference sounds | 160, 800 s, digest bbbb |",
        "| other counts | codec reference 12 |",
        "| candidates per prompt | 4 |",
        "| checkpoint | EMA (step 500) |",
        "| trained against | vggish |",
        "| weights chosen by | tagger |",
        "| level of sounds | peak |",
        "| seed, resamples | 7, 200 |",
        "| resampling | soxr HQ, directly to each embedder's rate |",
        "| embedder yamnet | weights 10c95e |",
        "| embedder vggish | weights 100869, front_end google |",
        "| embedder clap | unavailable: no weights |",
        "| memorised yamnet real | 5.0% |",
        "8 … 10",
        "- `fad_vggish`: the model was trained against vggish",
        "- `kl_yamnet`: the folders have no ids in common",
        "24 sounds each",
        "- FAD (yamnet, 24 sounds) 8.8: between one class missing (5) and pieces of 50 ms (10); deaf to 8-bit samples",
        "- The missing class is dog.",
        "- 0.6% of the reference sounds are clipped",
        f"## Hardware\n\n{report.hardware()}\n",
    ):
        assert part in text, part
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "card.md", "ladder.png", "ladder.tex", "scores.png", "scores.tex",
    ]  # fmt: skip
    for name in ("scores.png", "ladder.png"):
        assert f"![{name}]({name})" in text
    assert r"pieces of 200 ms & 4.4 \\" in (tmp_path / "ladder.tex").read_text(encoding="utf-8")
    assert r"8-bit samples & (3.3) \\" in (tmp_path / "ladder.tex").read_text(encoding="utf-8")


def test_only_the_last_section_depends_on_the_machine(tmp_path, monkeypatch):
    report.write_card(tmp_path / "here", "a", result(), COMMAND, None)
    monkeypatch.setattr(report, "hardware", lambda: "another machine")
    report.write_card(tmp_path / "there", "a", result(), COMMAND, None)
    here, there = ({path.name: path.read_bytes() for path in (tmp_path / place).iterdir()} for place in ("here", "there"))
    parts = [files.pop(report.CARD).decode().split("## Hardware") for files in (here, there)]
    assert here == there
    assert parts[0][0] == parts[1][0]
    assert parts[0][1] != parts[1][1] == "\n\nanother machine\n"
    assert "| candidates per prompt | unknown |" in parts[0][0]
