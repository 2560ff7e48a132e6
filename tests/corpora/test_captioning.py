"""Captions from names: known answers, ids that are no words, and real files."""

import pytest

from soundmill.corpora import captioning
from soundmill.manifest import escape_path


def facts(path: str, *labels: str, **more) -> dict[str, str]:
    return captioning.facts_of({"path": escape_path(path.encode()), **more}, labels)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("drums/HeavyKick_03.wav", {"file": "heavy kick", "folder": "drums"}),
        ("010 - Fire crackling/3-158476-A.ogg", {"folder": "fire crackling"}),
        (
            "pads/train/audio/warm pad 120bpm_C#min.wav",
            {"file": "warm pad", "folder": "pads", "tempo": "120", "key": "C sharp minor"},
        ),
        ("loop_bpm93.5_Am-2.flac", {"file": "loop", "tempo": "93.5", "key": "A minor"}),
        ("strings Bb major.wav", {"file": "strings", "key": "B flat major"}),
        ("I Am here.wav", {"file": "am here"}),
        ("Abm-pad.wav", {"file": "pad", "key": "A flat minor"}),
        ("Y-0KrZ56kjtlv_340.flac", {}),
        ("MXrlMqk6m49.wav", {}),
        ("550e8400-e29b-41d4-a716-446655440000.wav", {}),
        ("Vögel/Straße im Regen.wav", {"file": "straße im regen", "folder": "vögel"}),
        ("雨/風の音.wav", {"file": "風の音"}),
        ("{label}/{0.__class__}.wav", {"file": "class", "folder": "label"}),
        ("-.wav", {}),
    ],
)
def test_names_give_what_is_in_them_and_nothing_else(path, expected):
    assert facts(path) == expected


def test_the_first_template_with_known_fields_makes_the_caption():
    templates = ["{label} at {tempo} bpm in {key}", "{label} at {tempo} bpm", "{label}", "{file}, {folder}", "{file}"]
    known = {
        "a loop at 90 bpm in A minor": facts("x_90bpm_Am.wav", "a loop"),
        "dog, rain and wind": facts("x.wav", "dog", "rain", "wind"),
        "door slam, house": facts("house/door_slam.wav"),
        "door slam": facts("door_slam.wav"),
    }
    assert {captioning.choose(templates, of).format_map(of): of for of in known.values()} == known
    assert captioning.choose(templates, facts("4.wav")) is None
    assert captioning.choose(["{label}"], {"label": "{file} {0}"}).format_map({"label": "{file} {0}"}) == "{file} {0}"
    assert facts("x_90bpm.wav", bpm=120.0)["tempo"] == "120"  # of a loop that was stretched to it
    assert captioning.facts_of({"path": "4.wav"}, [], ["rain", "wind", "bell"]) == {"tags": "rain, wind and bell"}


@pytest.mark.parametrize("template", ["", "a sound", "{sound}", "{label!r}", "{label:>9}", "{label.x}", "{}", "{0}", "{label"])
def test_other_templates_are_refused(template):
    with pytest.raises(ValueError, match=r"must contain \{label\}|expected '\}'"):
        captioning.fields_of(template)
