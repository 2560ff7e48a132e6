"""Spellings of licences, and terms of recordings, from `licences.csv`, licence files, readmes, credits and cards."""

import pytest

from soundmill import params
from soundmill.corpora import check, licence_texts, statements, terms
from soundmill.corpora.registry import Directory, unite
from soundmill.corpora.tables import CorpusTables
from soundmill.corpora.terms import TermsParams
from soundmill.errors import UserError
from tests.corpora.test_check import shown
from tests.corpora.tiny import filled

HEADER = "glob,licence,creator,source_url,ai_terms\n"
KEEP = {"allow": None, "unknown": "keep", "ai_refused": "keep"}
BLOCKED = {"closed": "README.md", "partly": "LICENSE", "unclear": "README.md"}
CC0 = "http://creativecommons.org/publicdomain/zero/1.0/"


def of(tables: CorpusTables, *columns: str) -> dict[str, tuple]:
    return {row["path"]: tuple(row[column] for column in columns) for row in tables.recordings}


def test_the_last_row_that_matches_decides(lay):
    rows = "*,CC BY 4.0,Ann,https://a.org,allowed\nrain/*,CC0,,,\nrain/b [1].wav,Mine,Bob,,refused\n\n?.wav,,Eve,,unknown\n"
    rows += "gone.wav,CC0,,,\n"
    inventory = lay("a.wav", "rain/a.wav", "rain/b [1].wav", "rain/deep/c.wav", "wind/d.wav", **{"licences.csv": HEADER + rows})
    tables = filled(inventory)
    assert of(tables, *terms.COLUMNS[1:], "terms_found") == {
        "a.wav": (None, "Eve", None, None, "licences.csv:6"),
        "rain/a.wav": ("CC0-1.0", None, None, None, "licences.csv:3"),
        "rain/b [1].wav": ("Mine", "Bob", None, "refused", "licences.csv:4"),
        "rain/deep/c.wav": ("CC0-1.0", None, None, None, "licences.csv:3"),
        "wind/d.wav": ("CC-BY-4.0", "Ann", "https://a.org", "allowed", "licences.csv:2"),
    }
    assert tables.remarks[-1] == "licences.csv: 1 rows name no recording (first: gone.wav)"
    assert len({id(row["licence"]) for row in tables.recordings if row["licence"] == "CC0-1.0"}) == 1  # not a text per recording


def test_the_file_is_neither_a_recording_nor_ignored_nor_a_table_of_captions(lay):
    inventory = lay("a.wav", **{"licences.csv": HEADER + "*,CC0,,,\n", "sub/licences.csv": "x"})
    tables = filled(inventory)
    assert (inventory.ignored, [file.path for file in inventory.audio]) == ({".csv": 1}, ["a.wav"])
    assert inventory.csv_files() == [b"sub/licences.csv"]
    assert ["sub/licences.csv" in remark for remark in tables.remarks] == [True]
    assert of(tables, "licence") == {"a.wav": ("CC0-1.0",)}


def test_hostile_cells_stay_text(lay):
    html, formula = "<script>alert(1)</script>", '=HYPERLINK(""http://x"")'
    rows = f'a.wav,{html},"{formula}","java\x00script:\u202e\x1b[31m\nx",\n'
    (found,) = of(filled(lay("a.wav", **{"licences.csv": "\ufeff" + HEADER + rows})), "licence", "creator", "source_url").values()
    assert found == (html, '=HYPERLINK("http://x")', "java script: [31m x")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r":1: the header must be glob,licence,creator,source_url,ai_terms"),
        (b"file,licence\na.wav,CC0\n", r":1: the header must be"),
        (HEADER.encode() + b"*,CC0,,,\na.wav,CC0\n", r":3: 2 cells, must be 5"),
        (HEADER.encode() + b"*,CC0,,,,\n", r":2: 6 cells"),
        (HEADER.encode() + b",CC0,,,\n", r":2: glob is empty"),
        (HEADER.encode() + b'*,"CC\n0",,,\n*,CC0,,,yes\n', r":4: ai_terms is 'yes', must be empty or one of allowed"),
        (HEADER.encode() + b"*,CC0,,,\n*,CC0," + b"x" * (1 << 20) + b",,\n", r":3: not readable as csv: field larger"),
        (HEADER.encode() + b"*,CC0," + b"x" * 5000 + b",,\n", r":2: creator has more than 4096 characters"),
        (HEADER.encode() + b'*,CC0,,,\n*,"CC0,,,\n', r":3: not readable as csv"),
        (HEADER.encode() + b"*,CC0,,,\n*,CC0,Andr\xe9,,\n", r":3: not UTF-8 text"),
        (HEADER.encode() + b"*.wav,CC0,,,\n" * 1001, r": more than 1000 rows have wildcards"),
    ],
)
def test_an_unusable_file_stops_with_file_and_line(lay, content, problem):
    inventory = lay("a.wav", **{"licences.csv": content})
    with pytest.raises(UserError, match=rf"licences\.csv{problem}"):
        filled(inventory)


def test_many_rows_may_name_recordings_with_brackets(lay):
    names = [f"[{number}].wav" for number in range(1001)]
    tables = filled(lay(*names, **{"licences.csv": HEADER + "".join(f"{name},CC0,,,\n" for name in names)}))
    assert set(of(tables, "licence").values()) == {("CC0-1.0",)}


def test_the_nearest_licence_files_decide_where_no_row_matches(lay):
    texts = {
        "LICENSE.txt": "Creative Commons Attribution 4.0 International",
        "wind/COPYING": "https://creativecommons.org/publicdomain/zero/1.0/",
        "odd/license.md": "All rights reserved.",
        "both/LICENSE-a": "CC BY 4.0",
        "both/LICENSE-b": "CC BY-NC 4.0",
        "late/LICENCE": b"\xff\x00" * (1 << 15) + b"CC0",
        "licences.csv": HEADER + "rain/a.wav,Mine,,,\n",
    }
    tables = filled(lay("a.wav", "rain/a.wav", "rain/deep/b.wav", "wind/a.wav", "odd/a.wav", "both/a.wav", "late/a.wav", **texts))
    assert of(tables, "licence", "terms_found") == {
        "a.wav": ("CC-BY-4.0", "LICENSE.txt"),
        "rain/a.wav": ("Mine", "licences.csv:2"),
        "rain/deep/b.wav": ("CC-BY-4.0", "LICENSE.txt"),
        "wind/a.wav": ("CC0-1.0", "wind/COPYING"),
        "odd/a.wav": ("unknown", "odd/license.md"),
        "both/a.wav": ("unknown", "both/LICENSE-a"),
        "late/a.wav": ("unknown", "late/LICENCE"),
    }
    assert tables.remarks[-1].startswith("both: its licence files name several licences (CC-BY-4.0, CC-BY-NC-4.0)")


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, "abcde"),
        ({"allow": ["CC-BY-*"]}, "bcd"),
        ({"allow": ["CC-BY-[0-9]*", "CC0-1.0"]}, "abd"),
        ({"unknown": "quarantine"}, "abce"),
        ({"ai_refused": "quarantine"}, "acde"),
        ({"allow": ["CC0-*"], "unknown": "quarantine"}, "a"),
        ({"allow": ["CC-BY-[0-9]*", "CC-BY-4.0, no *"]}, "bd"),
        ({"allow": ["CC-BY-4.0, no AI"]}, "de"),
    ],
)
def test_what_breaks_the_terms_is_left_out(lay, changes, left):
    rows = "a.wav,CC0,,,\nb.wav,CC BY 4.0,,,refused\nc.wav,CC BY-NC 4.0,,,allowed\n"
    rows += 'e.wav,"CC-BY-4.0, no AI",,,\n'
    tables = filled(lay("a.wav", "b.wav", "c.wav", "d.wav", "e.wav", **{"licences.csv": HEADER + rows, "b.txt": "a bark"}))
    refused = {row["path"][0]: row for row in params.parse(TermsParams, KEEP | changes, "terms").refused(tables.recordings)}
    assert set(refused) == set("abcde") - set(left)
    for name, row in refused.items():
        assert ("no known licence" if name == "d" else "licences.csv:") in row["detail"]
    with pytest.raises(UserError, match=r"corpus\.terms: no recording is left \(first: d\.wav: no known licence"):
        alone = [row for row in tables.recordings if row["path"] == "d.wav"]
        params.parse(TermsParams, KEEP | {"unknown": "quarantine"}, "terms").refused(alone)


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, ["free/a.wav", "free/b.wav", "nc/a.wav", "nc/b.wav", "odd/a.wav", "plain/a.wav"]),
        ({"allow": ["CC0-1.0"]}, ["free/a.wav", "plain/a.wav"]),
        ({"allow": ["CC0-1.0", "unknown"]}, ["free/a.wav", "free/b.wav", "nc/b.wav", "odd/a.wav", "plain/a.wav"]),
        ({"allow": ["CC0-1.0", "unknown"], "unknown": "quarantine"}, ["free/a.wav"]),
    ],
)
def test_an_unclear_licence_is_none_of_those_allowed(lay, changes, left):
    texts = {"free/LICENSE": "CC0 1.0", "nc/LICENSE": "CC BY-NC 4.0", "odd/LICENSE": "Ask us."}
    texts["list.csv"] = "filename,license\nfree/b.wav,other\nnc/b.wav,other\n"
    tables = filled(lay("free/a.wav", "free/b.wav", "nc/a.wav", "nc/b.wav", "odd/a.wav", "plain/a.wav", **texts))
    refused = {row["path"]: row for row in params.parse(TermsParams, KEEP | changes, "terms").refused(tables.recordings)}
    assert [row["path"] for row in tables.recordings if row["path"] not in refused] == left
    if changes == {"allow": ["CC0-1.0"]}:
        where = {path: row["detail"].rpartition("(")[2] for path, row in refused.items() if "an unclear licence" in row["detail"]}
        assert where == {"free/b.wav": "list.csv:2)", "nc/b.wav": "list.csv:3)", "odd/a.wav": "odd/LICENSE)"}


def test_each_part_of_a_union_has_its_own_terms(tmp_path):
    for name, licence in (("one", "CC0"), ("two", "CC BY 4.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").write_bytes(b"RIFF" + name.encode())
        (tmp_path / name / "licences.csv").write_text(f"{HEADER}a.wav,{licence},,,\n")
    parts = check.read([Directory(name, "folder", 1.0, tmp_path / name, False) for name in ("one", "two")])
    assert of(unite(parts)[1], "licence") == {"one/a.wav": ("CC0-1.0",), "two/a.wav": ("CC-BY-4.0",)}


def test_the_same_file_under_another_name_is_refused_too(lay):
    rows = HEADER + "a.wav,CC0,,,refused\nc.wav,CC0,,,\n"
    tables = filled(lay("a.wav", "b.wav", **{"licences.csv": rows, "c.wav": b"RIFFa.wav"}))
    refused = params.parse(TermsParams, KEEP | {"ai_refused": "quarantine"}, "terms").refused(tables.recordings)
    assert [(row["path"], row["detail"].partition(":")[0]) for row in refused] == [
        ("a.wav", "use for AI refused, and corpus.terms.ai_refused is quarantine (licences.csv"),
        ("c.wav", "the same file as a.wav"),
    ]


def test_check_counts_recordings_by_licence(lay, tmp_path):
    rows = "a*,CC0,,,\nb.wav,[red]<b>mine</b>,,,\n" + "".join(f"c{number}.wav,L{number},,,\n" for number in range(30))
    lay("a1.wav", "a2.wav", "b.wav", "d.wav", *(f"c{number}.wav" for number in range(30)), **{"licences.csv": HEADER + rows})
    report = check.check(tmp_path)
    assert list(report.as_json()["licences"].items())[:2] == [("CC0-1.0", 2), ("L0", 1)]
    lines = [line.split() for line in shown(report).splitlines()]
    assert ["licence", "recordings"] in lines
    assert ["CC0-1.0", "2"] in lines
    assert ["13", "others", "13"] in lines


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
        ("Licensed under CC BY\u2011NC 4.0, or by-nc for short.", ["CC-BY-NC-4.0"]),
        ("Licensed under CC BY\u2013NC\u2013ND 4.0.", ["CC-BY-NC-ND-4.0"]),
        ("Licensed under CC Attribution\u2013NoDerivatives.", ["CC-BY-ND"]),
        ("Licensed under Creative Commons Attribution\u2013ShareAlike.", ["CC-BY-SA"]),
        ("Licensed under CC BY 4.0. Recorded by NC State in Raleigh, NC, and Adelaide, SA.", ["CC-BY-4.0"]),
        *((f"Licensed under {one}.", []) for one in ("CC BY (NC)", "CC BY + SA", "CC BY:ND", "CC BY 4.0, no-derivatives")),
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
    assert licence_texts.named_by(text) == named


def test_the_readmes_of_real_corpora(shared):
    samples, esc10 = shared / "data/cc0_samples/README.md", shared / "data/esc10/README.txt"
    assert licence_texts.named_by(samples.read_text(encoding="utf-8")) == ["CC0-1.0"]
    assert licence_texts.named_by(esc10.read_text(encoding="utf-8")) == ["CC-BY-3.0", "CC0-1.0"]


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
    tables = filled(files)
    assert {row["path"]: (row["licence"], row["terms_found"]) for row in tables.recordings} == {
        "a.wav": ("CC-BY-4.0", "README.md"),
        "odd/deep/a.wav": ("unknown", "odd/README"),
        **{f"{folder}/a.wav": ("unknown", f"{folder}/{name}") for folder, name in BLOCKED.items()},
        "rain/a.wav": ("CC-BY-NC-4.0", "licence: rain/LICENSE (CC-BY-NC-4.0); licence: rain/CREDITS.txt (CC0-1.0)"),
        "wind/a.wav": ("CC-BY-4.0", "README.md"),
    }
    assert [remark for remark in tables.remarks if remark.startswith("odd: its texts name several licences (CC-BY-4.0, CC0-1.0)")]


SPELLINGS = {
    "CC-BY-4.0": [
        "CC BY 4.0",
        "cc-by-4.0",
        "CC_BY_4.0",
        "Attribution 4.0",
        "https://creativecommons.org/licenses/by/4.0/",
        "http://www.creativecommons.org/licenses/by/4.0/deed.en",
        "Creative Commons Attribution 4.0 International (CC BY 4.0)",
        "Creative Commons Attribution 4.0 International Public License",
    ],
    "CC-BY": ["CC BY", "Attribution", "Creative Commons Attribution license"],
    "CC-BY-NC-3.0": ["http://creativecommons.org/licenses/by-nc/3.0/", "Attribution NonCommercial 3.0", "CC BY NC 3.0 Unported"],
    "CC-BY-NC-ND-1.0": ["http://creativecommons.org/licenses/by-nd-nc/1.0/"],
    "CC-BY-NC-SA-4.0": [
        "CC BY-NC-SA 4.0",
        "CC BY-SA-NC 4.0",
        "Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International License",
    ],
    "CC-BY-ND-2.5": ["cc by-nd 2.5", "Creative Commons Attribution No Derivative Works 2.5"],
    "CC-BY-SA-2.0": ["Attribution Share-Alike 2.0", "https://creativecommons.org/licenses/by-sa/2.0/legalcode"],
    "CC-BY-3.0-US": ["https://creativecommons.org/licenses/by/3.0/us/"],
    "CC0-1.0": [
        "CC0",
        "cc0 1.0",
        "CC0-1.0",
        "Creative Commons 0",
        "Creative Commons Zero",
        "http://creativecommons.org/publicdomain/zero/1.0/",
        "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication",
    ],
    "CC-PDM-1.0": ["Public Domain Mark 1.0", "https://creativecommons.org/publicdomain/mark/1.0/"],
    "PDDL-1.0": ["PDDL", "Open Data Commons Public Domain Dedication and License"],
    "Unlicense": ["The Unlicense"],
}
OTHERS = [
    *("MIT", "not CC0", "CC BY 4.0, but not for AI", "CC-BY-4.0 OR MIT", "CC BY 4.0 and CC0", "Sampling+", "CC BY 5.0"),
    *("http://creativecommons.org/licenses/sampling+/1.0/", "public domain", "all rights reserved", "", "<b>CC0</b>"),
]


@pytest.mark.parametrize(("name", "spelling"), [(name, one) for name, some in SPELLINGS.items() for one in some])
def test_common_spellings_become_ids(name, spelling):
    assert statements.spdx(spelling) == name
    assert statements.spdx(name) == name


@pytest.mark.parametrize("text", OTHERS)
def test_other_licences_stay_as_they_are(text):
    assert statements.spdx(text) == text


def test_a_text_names_its_licences():
    legal = (
        "Creative Commons Attribution-NonCommercial 4.0 International Public License\n\nBy exercising … text of the Creative "
        "Commons public\nlicenses is dedicated to the public domain under the [CC0\nPublic Domain Dedication](https://creativecommons.org/"
        "publicdomain/zero/1.0/legalcode). Creative Commons may be contacted at creativecommons.org."
    )
    assert statements.named_in(legal) == ["CC-BY-NC-4.0"]
    assert statements.named_in("Under CC BY, see https://creativecommons.org/licenses/by/4.0/.") == ["CC-BY-4.0"]
    assert statements.named_in("Sounds: CC BY-NC 3.0. Labels: CC0.") == ["CC-BY-NC-3.0", "CC0-1.0"]
    assert statements.named_in("This is free and unencumbered software released\ninto the public domain.") == ["Unlicense"]
    assert statements.named_in("Copyright: all rights reserved. It is not in the public domain.") == []


@pytest.mark.parametrize("piece", ["cc by ----", "creative commons attribution - ", "cc by-nc-", "public   domain", "\u00a0", "a"])
def test_long_repetitions_end(piece):
    assert len(statements.named_in(piece * ((1 << 16) // len(piece)))) <= 2
    assert statements.spdx(f"{piece * 1000}x") == f"{piece * 1000}x"
