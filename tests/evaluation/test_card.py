"""The card of a result: complete, and the same bytes on every machine but for the hardware."""

from soundmill.evaluation import report

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
        "- FAD (yamnet) 8.8: between one class missing (5) and pieces of 50 ms (10); deaf to 8-bit samples",
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
