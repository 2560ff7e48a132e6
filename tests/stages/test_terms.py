"""A corpus of 60 recordings with terms in nine places beside a hand-made truth, and what a policy leaves of it.

What is left must be, to the byte, what a corpus gives that never had the others.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from soundmill import attribution, params
from soundmill.publishing import model
from stages import duplicates, quality, resample, scan, segment, splits
from tests.checkouts import copy_project, dvc
from tests.corpora.test_sound_tags import id3, info
from tests.prepared import PLAN, execution
from tests.stages import of_waves
from tests.stages.families import ROWS
from tests.stages.handling import CATALOG, SPLITS, TERMS, call, call_catalog, external, settle, table, tree
from tests.stages.test_quality import PARAMS

RATE = 16_000
BY = "http://creativecommons.org/licenses/by/3.0/"
ZERO = "https://creativecommons.org/publicdomain/zero/1.0/"
HTML, FORMULA, LONG = "<b>Mine</b><script>alert(1)</script>", '=HYPERLINK("http://x")', "x" * (1 << 20)
Truth = tuple[str | None, str | None, str | None, str | None]
NOTHING: Truth = (None, None, None, None)
UNCLEAR: Truth = ("unknown", None, None, None)  # a licence is stated, but not which
# Path of a recording → licence, creator, address, use for AI; written by hand from the texts below.
TRUTH: dict[str, Truth] = {
    # 1: licences.csv, which all other places give way to
    "own/a.wav": ("CC-BY-4.0", "Ann", "https://a.org", "refused"),
    "own/b.flac": ("CC0-1.0", None, None, None),
    "own/c.ogg": (HTML, FORMULA, "javascript:alert(1)", "allowed"),
    "own/d.wav": (None, "Eve", None, None),
    "own/e.wav": ("CC-BY-SA-3.0-US", None, None, "with_disclosure"),
    "own/f.wav": ("CC0-1.0", None, None, None),
    # 2: FSD50K
    "FSD50K.dev_audio/100.wav": ("CC-BY-3.0", "ann", None, None),
    "FSD50K.dev_audio/101.wav": ("CC0-1.0", "bob", None, None),
    "FSD50K.dev_audio/102.wav": ("CC-BY-NC-3.0", HTML, None, None),
    "FSD50K.dev_audio/103.wav": ("http://creativecommons.org/licenses/sampling+/1.0/", "eve", None, None),
    "FSD50K.dev_audio/104.wav": (None, "no licence", None, None),
    "FSD50K.dev_audio/105.wav": NOTHING,
    "FSD50K.eval_audio/106.wav": ("CC0-1.0", FORMULA, None, None),
    "FSD50K.eval_audio/107.wav": NOTHING,
    # 3: a csv as Clotho's, in Latin-1
    "clotho/Rain & wind.wav": ("CC-BY-3.0", "José", "https://freesound.org/people/jose/sounds/1", None),
    "clotho/b.wav": NOTHING,
    "clotho/c.wav": ("CC0-1.0", "Müller", None, None),
    "clotho/d.wav": ("CC-BY-NC-4.0", "Ann; Bob", None, None),  # its tags say otherwise
    "clotho/e.wav": ("unknown", "Eve", None, None),  # a megabyte of licence
    "clotho/x/same.wav": UNCLEAR,  # a name of two files
    "clotho/y/same.wav": UNCLEAR,
    # 4: answers of Freesound
    "freesound/200__ann__dog.wav": ("CC-BY-NC", "ann", "https://freesound.org/s/200/", None),
    "freesound/201.wav": ("CC0-1.0", "bob", None, None),
    "freesound/202.wav": ("CC-BY", None, None, None),
    "freesound/203.wav": ("Sampling+", "eve", None, None),
    "freesound/204.wav": NOTHING,
    # 5: columns of Hugging Face
    "hub/a.wav": ("CC-BY-4.0", "Ann", "https://h.org/1", None),
    "hub/b.wav": ("CC-BY-NC-ND-4.0", None, None, "refused"),
    "hub/c.wav": ("apache-2.0", None, None, "allowed"),
    "hub/d.wav": ("CC0-1.0", "Bob", None, None),  # nothing in its row, a card beside it
    "hub/e.wav": ("CC0-1.0", None, None, None),
    "hub/f.wav": ("CC0-1.0", None, None, "with_disclosure"),
    # 6: licence files
    "licensed/a.wav": ("CC-BY-4.0", None, None, None),
    "licensed/deep/b.wav": ("CC-BY-4.0", None, None, None),
    "licensed/deep/c.wav": ("CC-BY-4.0", "Ann", None, None),  # an artist in its tags
    "licensed/odd/d.wav": UNCLEAR,  # all rights reserved: no licence
    "licensed/both/e.wav": ("CC-BY-SA-4.0", None, None, None),  # its readme says CC0
    "licensed/two/f.wav": UNCLEAR,  # two licence files
    # 7: readmes and credits
    "told/a.wav": ("CC0-1.0", None, None, None),
    "told/b.wav": ("CC0-1.0", None, None, None),
    "told/not/c.wav": UNCLEAR,  # says what is not, which blocks the readme above
    "told/several/d.wav": UNCLEAR,
    "told/credits/e.wav": ("CC-BY-4.0", None, None, None),
    "told/card/f.wav": ("CC-BY-NC-SA-4.0", None, None, None),
    # 8: tags
    "tags/a.wav": ("CC-BY-4.0", "Björk", None, None),
    "tags/b.wav": (None, "Björk", None, None),  # in Windows-1252; 2020 is no licence
    "tags/c.flac": ("CC-BY-3.0", "Ann", None, None),
    "tags/d.ogg": ("CC0-1.0", None, None, None),
    "tags/e.mp3": ("CC-BY-3.0", "Жук", "https://t.org/e", None),
    "tags/f.wav": ("All rights reserved, Eve", None, None, None),
    "tags/g.wav": NOTHING,  # a megabyte of artist
    "tags/h.wav": (None, HTML, None, None),
    # 9: JSON beside recordings
    "beside/a.wav": ("CC-BY-4.0", "Ann", "https://y.org/a", None),
    "beside/b.wav": ("CC BY 4.0 or so", "=1+1", None, None),
    "beside/c.wav": NOTHING,  # JSON nested too deeply
    "beside/d.wav": NOTHING,  # not JSON
    # nowhere
    "bare/a.wav": NOTHING,
    "bare/b.wav": NOTHING,
    "bare/copy of own a.wav": NOTHING,
    "bare/softer hub b.ogg": NOTHING,
}
CSV = "glob,licence,creator,source_url,ai_terms\n"
TEXTS: dict[str, str | bytes] = {
    "licences.csv": CSV
    + "own/*,CC0,,,\nown/a.wav,CC BY 4.0,Ann,https://a.org,refused\nown/d.wav,,Eve,,\nown/e.wav,https://creativecommons.org/licenses/by-sa/3.0/us/,,,with_disclosure\n"
    + f'own/c.ogg,{HTML},"{FORMULA.replace(chr(34), chr(34) * 2)}",javascript:alert(1),allowed\n',
    "own/LICENSE": "CC BY-NC-ND 4.0",
    "FSD50K.metadata/dev_clips_info_FSD50K.json": json.dumps(
        {
            "100": {"title": "a", "license": BY, "uploader": "ann"},
            "101": {"license": ZERO, "uploader": "bob\x00"},
            "102": {"license": "http://creativecommons.org/licenses/by-nc/3.0/", "uploader": HTML},
            "103": {"license": "http://creativecommons.org/licenses/sampling+/1.0/", "uploader": "eve"},
            "104": {"license": "", "uploader": "no licence", "url": "javascript:alert(1)"},
            "105": {"license": None, "uploader": 7, "tags": ["CC0"]},
            "999": {"license": ZERO, "uploader": "nobody"},
        }
    ),
    "FSD50K.metadata/eval_clips_info_FSD50K.json": json.dumps({"106": {"license": ZERO, "uploader": FORMULA}}),
    "clotho/clotho_metadata_development.csv": (
        "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
        f"Rain &amp; wind.wav,rain,1,https://freesound.org/people/jose/sounds/1,,José,{BY}\n"
        "b.wav,b,Not found,Not found,,Not found,Not found\n"
        f"c.wav,c,3,,,Müller,{ZERO}\nd.wav,d,4,,,Ann,http://creativecommons.org/licenses/by-nc/4.0/\n"
        f"e.wav,e,5,,,Eve,{'x' * 5000}\nsame.wav,s,6,,,Ann,{ZERO}\n../../etc/passwd,s,6,,,Ann,{ZERO}\n"
    ).encode("latin-1"),
    "freesound/page.json": json.dumps(
        {
            "results": [
                {
                    "id": 200,
                    "name": "dog.wav",
                    "license": "Attribution NonCommercial",
                    "username": "ann",
                    "url": "https://freesound.org/s/200/",
                },
                {"id": 201, "license": ZERO, "username": "bob", "url": "//freesound.org"},
                {"id": 202, "license": "Attribution", "username": LONG},
                {"id": 203, "license": "Sampling+", "username": "eve"},
                ["license", "CC0"],
            ]
        }
    ),
    "hub/metadata.jsonl": "\n".join(
        json.dumps({"file_name": f"{name}.wav", **row})
        for name, row in {
            "a": {"license": "cc-by-4.0", "creator": "Ann", "url": "https://h.org/1"},
            "b": {"license": "cc-by-nc-nd-4.0", "ai_terms": "refused"},
            "c": {"licence": "apache-2.0", "ai_terms": "allowed"},
            "d": {"license": "unknown", "artist": ["Bob"]},
            "f": {"ai_terms": "with_disclosure"},
        }.items()
    ),
    "hub/README.md": "---\nlicense: cc0-1.0\n---\n# Sounds\n",
    "licensed/LICENSE.txt": "Creative Commons Attribution 4.0 International",
    "licensed/odd/LICENSE": "All rights reserved.",
    "licensed/both/COPYING": "CC BY-SA 4.0",
    "licensed/both/README.txt": "Licence: CC0",
    "licensed/two/LICENSE-a": "CC BY 4.0",
    "licensed/two/LICENSE-b": "CC0",
    "told/README.md": f"# Sounds\n\n## License\n\n{ZERO}\n",
    "told/not/readme.txt": "These are not licensed under CC BY 4.0.",
    "told/several/README": "Licence of rain: CC0. Licence of wind: CC BY 4.0.",
    "told/credits/CREDITS.txt": "All sounds by Ann, released under the Creative Commons Attribution 4.0 licence.",
    "told/card/README.md": "---\nlicense: cc-by-nc-sa-4.0\n---\nCC0 everywhere",
    "beside/a.info.json": json.dumps({"id": "z", "uploader": "Ann", "webpage_url": "https://y.org/a", "license": "CC BY 4.0"}),
    "beside/b.json": json.dumps({"license": "CC BY 4.0 or so", "author": "=1+1", "href": "../b"}),
    "beside/c.json": '{"license": ' + "[" * 20_000,
    "beside/d.json": b'{"license": "CC0"\xff',
    "bare/huge.csv": f"filename,license\na.wav,{LONG}\n",
    "bare/null.csv": b"filename,license\na.wav,CC0\0\n",
}
TAGS = {
    "clotho/d.wav": info(ICOP=b"CC0", IART=b"Bob"),
    "licensed/deep/c.wav": info(IART=b"Ann"),
    "tags/a.wav": info(ICOP="© 2020, CC BY 4.0".encode(), IART="Björk".encode(), ISFT=b"CC0"),
    "tags/b.wav": info(ICOP=b"2020", IART=b"Bj\xf6rk", ICMT=b"CC0"),
    "tags/f.wav": info(ICOP=b"All rights reserved, Eve"),
    "tags/g.wav": info(IART=LONG.encode()),
    "tags/h.wav": info(IART=HTML.encode()),
}
STRINGS = {
    "tags/c.flac": {"license": BY, "artist": "Ann"},
    "tags/d.ogg": {"copyright": "CC0 1.0 Universal"},
}
POLICY = TERMS | {"allow": ["CC0-1.0", "CC-BY-[0-9]*"], "ai_refused": "quarantine"}
COPIES = {"bare/copy of own a.wav": "own/a.wav", "bare/softer hub b.ogg": "hub/b.wav"}
PORTS = ("--corpus", "data/corpus", "--clips", "data/clips", "--quality", "data/quality.parquet")
STAGES = (
    (segment, "clips", ("--variant", "default", "--corpus", "data/corpus", "--segments", "data/segments.parquet")),
    (resample, "clips", ("--variant", "default", *PORTS[:4], "--segments", "data/segments.parquet")),
    (duplicates, "duplicates", (*PORTS[:4], "--duplicates", "data/duplicates.parquet", "--report", "data/duplicates.html")),
    (quality, "quality", (*PORTS[:4], "--verdicts", "data/quality.parquet", "--report", "data/quality.html")),
)


def lay(root: Path, paths: list[str]) -> None:
    """The recordings at these paths, each of its own noise, and all texts."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(TRUTH).index(COPIES.get(path, path))).standard_normal(3 * RATE)
        if path in COPIES and path.endswith(".wav"):
            continue
        with soundfile.SoundFile(file, "w", RATE, 1, format={".mp3": "MP3"}.get(file.suffix)) as sound:
            for name, text in STRINGS.get(path, {}).items():
                setattr(sound, name, text)
            sound.write((0.05 if path in COPIES else 0.1) * noise)
        data = file.read_bytes() + TAGS.get(path, b"")
        if path == "tags/e.mp3":
            data = id3(TPE1=b"\1" + "Жук".encode("utf-16"), WCOP=BY.encode(), TCOP=b"\x002020", WOAF=b"https://t.org/e") + data
        file.write_bytes(data if data[:4] != b"RIFF" else b"RIFF" + (len(data) - 8).to_bytes(4, "little") + data[8:])
    for path, original in COPIES.items():
        if path in paths and path.endswith(".wav"):
            shutil.copy(root / original, root / path)
    for path, text in TEXTS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text if isinstance(text, bytes) else text.encode())


def settled(project: Path, terms: dict) -> None:
    sections = {name: PARAMS[name] for name in ("duplicates", "quality")} | {"splits": SPLITS}
    sections["quality"] = {**sections["quality"], "rules": dict.fromkeys(sections["quality"]["rules"])}
    sections["catalog"] = CATALOG
    corpus = external("sounds") | {"terms": terms}
    sections["families"] = {"diffwave": {"clips": "default"}}  # by which the card finds labels
    settle(project, corpus=corpus, clips={"default": PLAN | {"tail": "keep", "clip_seconds": 3.0}}, **sections)


def take(terms: dict, project: Path) -> None:
    settled(project, terms)
    call(scan, "--name", "scan", "--corpus", "data/corpus", "--refused", "data/refused.parquet", section="corpus")


def prepare() -> None:
    for module, section, ports in STAGES:
        call(module, "--name", module.__name__.rpartition(".")[2], *ports, section=section)


def split() -> None:
    found = ("--duplicates", "data/duplicates.parquet", "--refused", "data/refused.parquet", "--splits", "data/splits.parquet")
    call(splits, *PORTS, *found)
    call_catalog()


def train(project: Path, name: str) -> dict[str, bytes]:
    """What is published of four steps on what is left: checkpoint, card and attribution, by path."""
    of_waves.train("diffwave", project / name, project / "data", ROWS["diffwave_none"].composed())
    (project / "data/catalog").mkdir(exist_ok=True)
    shutil.copy(project / "data/catalog.parquet", project / "data/catalog/default.parquet")
    model.publish(str(project / name / "model"), project / name / "it", project)
    return tree(project / name / "it")


@pytest.fixture
def corpus(project) -> Path:
    lay(project / "sounds", list(TRUTH))
    return project


def test_all_terms_are_found_and_none_is_invented(corpus):
    assert len(TRUTH) == 60
    take(TERMS, corpus)
    rows = table("data/corpus/recordings.parquet")
    found = {row["path"]: tuple(row[name] for name in ("licence", "creator", "source_url", "ai_terms")) for row in rows}
    wrong = {path: (found.get(path), truth) for path, truth in TRUTH.items() if found.get(path) != truth}
    assert not wrong
    nothing = {path for path, truth in TRUTH.items() if truth == NOTHING}
    assert {row["path"] for row in rows if not row["terms_found"]} == nothing
    where = {row["path"]: row["terms_found"] for row in rows}
    listed = "licence, creator: clotho/clotho_metadata_development.csv:5 (CC-BY-NC-4.0)"
    assert where["clotho/d.wav"] == f"{listed}; licence, creator: its tags (CC0-1.0)"
    copying, readme = "licensed/both/COPYING (CC-BY-SA-4.0)", "licensed/both/README.txt (CC0-1.0)"
    assert where["licensed/both/e.wav"] == f"licence: {copying}; licence: {readme}"
    metrics = json.loads(Path("data/metrics/scan.json").read_text())
    remarks = "\n".join(metrics["remarks"])
    for said in (
        "beside/c.json",
        "beside/d.json",
        "bare/huge.csv",
        "bare/null.csv",
        "licensed/two",
        "told/several",
        "3 texts about terms",
    ):
        assert said in remarks


@pytest.mark.slow(minutes=0.5)
def test_a_policy_leaves_what_a_corpus_gives_that_never_had_the_others(corpus):
    take(TERMS, corpus)
    prepare()
    before = Path("data/corpus/recordings.parquet").read_bytes()
    take(POLICY, corpus)
    assert Path("data/corpus/recordings.parquet").read_bytes() == before  # so no stage before `splits` runs again
    split()
    quarantined = {row["path"]: row for name in ("scan", "splits") for row in table(f"data/quarantine/{name}.parquet")}
    gone = {
        path
        for path, (licence, _, _, ai_terms) in TRUTH.items()
        if ai_terms == "refused" or (licence and not licence.startswith(("CC0-1.0", "CC-BY-3", "CC-BY-4")))
    }
    assert set(quarantined) == gone | set(COPIES)
    assert {row["reason"] for row in quarantined.values()} == {"terms"}
    assert quarantined["bare/copy of own a.wav"]["detail"].startswith("the same file as own/a.wav: use for AI refused")
    assert "is the same sound or video as" in quarantined["bare/softer hub b.ogg"]["detail"]
    assert "hub/b.wav: licence CC-BY-NC-ND-4.0" in quarantined["bare/softer hub b.ogg"]["detail"]
    left = {name: table(f"data/{name}.parquet") for name in ("splits", "catalog")}
    trained = train(corpus, "with them")
    credited = attribution.read(corpus / "with them/it/ATTRIBUTION.csv")
    assert {credit.recording for credit in credited} == {row["source"] for row in left["catalog"] if row["split"] == "train"}
    card = trained["README.md"].decode()
    assert "| CC0-1.0 |" in card
    assert "| label | hours |" in card
    assert not any(said in card for said in ("CC-BY-NC", "Sampling", "refused"))
    assert {row["source"] for row in left["catalog"]} == set(TRUTH) - set(quarantined)

    for path in quarantined:
        os.unlink(corpus / "sounds" / path)
    take(TERMS, corpus)
    prepare()
    split()
    assert {name: table(f"data/{name}.parquet") for name in left} == left
    assert train(corpus, "without them") == trained
    assert not table("data/quarantine/scan.parquet") + table("data/quarantine/splits.parquet")


@pytest.mark.slow(minutes=1)
def test_other_terms_rerun_only_splits_and_what_follows(root, tmp_path, alone):
    checkout = copy_project(root, tmp_path / "checkout")
    lay(
        tmp_path / "sounds",
        ["own/a.wav", "own/b.flac", "hub/a.wav", "hub/b.wav", "told/a.wav", "tags/a.wav", "bare/softer hub b.ogg"],
    )
    document = params.compose(root / "conf", ["corpus=folder", f"corpus.path={tmp_path / 'sounds'}", "corpus.shards=1"])

    def ran() -> set[str]:
        params.write_yaml(document | {"execution": execution()}, checkout / "params.yaml")
        done = dvc(checkout, "repro", "catalog@default")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return set(re.findall(r"Running stage '(\S+)'", done.stdout))

    before = {"segment@default", "resample@default", "duplicates", "quality@default", "zero_shot@default"}
    after = {"scan@folder", "splits", "catalog@default"}  # `scan` runs always
    assert ran() == before | after
    document["corpus"]["terms"]["ai_refused"] = "quarantine"
    assert ran() == after
    left = {row["source"] for row in pq.read_table(checkout / "data/catalog/default.parquet").to_pylist()}
    assert left == {"own/b.flac", "hub/a.wav", "told/a.wav", "tags/a.wav"}
    assert ran() == {"scan@folder"}
