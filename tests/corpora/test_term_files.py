"""Terms in texts beside recordings: readmes, credits and cards, which may also be about something else."""

import pytest

from soundmill.corpora import registry, term_files, terms

BLOCKED = {"closed": "README.md", "partly": "LICENSE", "unclear": "README.md"}
CC0 = "http://creativecommons.org/publicdomain/zero/1.0/"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("All sounds are released under the Creative Commons Attribution 4.0 International License.", ["CC-BY-4.0"]),
        (f"# Rain\n\nSounds by Ann.\n\n## License\n\nCC0: {CC0}\n", ["CC0-1.0"]),
        ("Licence: CC BY-NC 4.0", ["CC-BY-NC-4.0"]),
        ("The sounds are in the public domain (CC0).", ["CC0-1.0"]),
        ("Our last pack was CC0. This one is not.", []),
        ("Unlike our last pack, these are not licensed under CC BY 4.0.", []),
        ("All sounds are CC BY 4.0 licensed, except wind.wav.", []),
        ("The code is under the MIT license, the sounds under CC BY 4.0.", []),
        ("The annotations are licensed under CC BY 4.0.", []),
        ("CC0 for academic use only.", []),
        ("Each clip has its own license, such as CC BY 4.0.", []),
        ("Thanks to CC0 for the idea", []),
        ("License: CC0 for rain, CC BY 4.0 for wind", ["CC-BY-4.0", "CC0-1.0"]),
        ("Ask us about the licence.", []),
        ("---\nlicense: cc-by-nc-sa-4.0\ntags: [audio]\n---\n# Anything, CC0 licensed", ["CC-BY-NC-SA-4.0"]),
        ("---\nlicense: [cc0-1.0, mit]\n---\n", ["CC0-1.0", "mit"]),
        ("---\nlicense: other\nlicense_name: my-licence\n---\n", ["my-licence"]),
        ("---\nlicense: other\n---\nSounds are released under CC0.", []),
        ("---\nlicense: [other, cc0-1.0]\n---\n", []),
        ("Licensed under CC BY 4.0, non-commercial only.", []),
        ("Licensed under CC BY-NC 4.0 (non-commercial).", ["CC-BY-NC-4.0"]),
        ("All audio is released under CC0. No AI training.", []),
        ("---\nx: !!bool foo\n---\n", []),
        ("---\nx: !!int ''\n---\n", []),
        ("---" + "\n" * 60_000, []),
        ("---\nlicense: unknown\n---\nSounds are released under CC0.", ["CC0-1.0"]),
        ("---\nlicense: {a: 1}\n---\n", []),
        ("---\nlicense: [[[\n---\nx", []),
        ("---\n" + "[" * 5000 + "\n---\n", []),
    ],
)
def test_only_what_is_clear_is_taken(text, named):
    assert term_files.named_by(text) == named


def test_the_readmes_of_real_corpora(shared):
    samples, esc10 = shared / "data/cc0_samples/README.md", shared / "data/esc10/README.txt"
    assert term_files.named_by(samples.read_text(encoding="utf-8")) == ["CC0-1.0"]
    assert term_files.named_by(esc10.read_text(encoding="utf-8")) == ["CC-BY-3.0", "CC0-1.0"]


def test_texts_apply_to_their_folder_and_the_stricter_of_two_holds(lay):
    texts = {
        "README.md": "All sounds are licensed under CC BY 4.0.",
        "rain/CREDITS.txt": "Licence: CC0",
        "rain/LICENSE": "Creative Commons Attribution-NonCommercial 4.0 International",
        "wind/readme.txt": "Recorded in May.",
        "odd/README": "Rain is licensed under CC0, wind under CC BY 4.0.",
        "unclear/README.md": "Licensed under CC BY-NC 4.0, unless noted otherwise.",
        "closed/README.md": "Proprietary. All rights reserved.",
        "partly/LICENSE": "Sounds: proprietary, all rights reserved. Metadata: CC0 1.0.",
        "UrbanSound_README.txt": b"\xff\xfe\x00license: CC",
    }
    files = lay("a.wav", "rain/a.wav", "wind/a.wav", "odd/deep/a.wav", *(f"{name}/a.wav" for name in BLOCKED), **texts)
    tables = registry.read("folder", files, 1)
    terms.fill(tables, files)
    assert {row["path"]: (row["licence"], row["terms_found"]) for row in tables.recordings} == {
        "a.wav": ("CC-BY-4.0", "README.md"),
        "odd/deep/a.wav": ("unknown", "odd/README"),
        **{f"{folder}/a.wav": ("unknown", f"{folder}/{name}") for folder, name in BLOCKED.items()},
        "rain/a.wav": ("CC-BY-NC-4.0", "licence: rain/LICENSE (CC-BY-NC-4.0); licence: rain/CREDITS.txt (CC0-1.0)"),
        "wind/a.wav": ("CC-BY-4.0", "README.md"),
    }
    assert [remark for remark in tables.remarks if remark.startswith("odd: its texts name several licences (CC-BY-4.0, CC0-1.0)")]
