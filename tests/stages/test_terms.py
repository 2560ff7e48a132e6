"""What a policy of terms leaves of a corpus: to the byte what a corpus gives that never had the others."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from soundmill import attribution, params
from soundmill.publishing import model
from stages import duplicates, quality, scan, splits
from tests.checkouts import copy_project, repro
from tests.corpora.test_sound_tags import info
from tests.prepared import PLAN, execution
from tests.stages import of_waves, test_quality
from tests.stages.families import ROWS
from tests.stages.handling import CATALOG, SPLITS, TERMS, call, call_catalog, cut_clips, external, settle, table, tree
from tests.stages.test_quality import PARAMS

RATE = 16_000
# Path of a recording → licence, use for AI; by the texts and tags below.
TRUTH: dict[str, tuple[str | None, str | None]] = {
    "own/a.wav": ("CC-BY-4.0", "refused"),
    "own/b.flac": ("CC0-1.0", None),
    "hub/a.wav": ("CC-BY-4.0", None),
    "hub/b.wav": ("CC-BY-NC-ND-4.0", "refused"),
    "licensed/a.wav": ("CC-BY-4.0", None),
    "licensed/odd/d.wav": ("unknown", None),  # all rights reserved: no licence
    "told/a.wav": ("CC0-1.0", None),
    "tags/a.wav": ("CC-BY-4.0", None),
    "tags/f.wav": ("All rights reserved, Eve", None),
    "bare/a.wav": (None, None),
    "bare/b.wav": (None, None),
    "bare/copy of own a.wav": (None, None),
    "bare/softer hub b.ogg": (None, None),
}
TEXTS = {
    "licences.csv": "glob,licence,creator,source_url,ai_terms\nown/*,CC0,,,\nown/a.wav,CC BY 4.0,Ann,https://a.org,refused\n",
    "hub/metadata.jsonl": '{"file_name": "a.wav", "license": "cc-by-4.0", "creator": "Ann", "url": "https://h.org/1"}\n'
    '{"file_name": "b.wav", "license": "cc-by-nc-nd-4.0", "ai_terms": "refused"}',
    "licensed/LICENSE.txt": "Creative Commons Attribution 4.0 International",
    "licensed/odd/LICENSE": "All rights reserved.",
    "told/README.md": "# Sounds\n\n## License\n\nhttps://creativecommons.org/publicdomain/zero/1.0/\n",
}
TAGS = {
    "tags/a.wav": info(ICOP="© 2020, CC BY 4.0".encode(), IART="Björk".encode()),
    "tags/f.wav": info(ICOP=b"All rights reserved, Eve"),
}
POLICY = TERMS | {"allow": ["CC0-1.0", "CC-BY-[0-9]*"], "ai_refused": "quarantine"}
COPIES = {"bare/copy of own a.wav": "own/a.wav", "bare/softer hub b.ogg": "hub/b.wav"}
PORTS = ("--corpus", "data/corpus", "--clips", "data/clips", "--quality", "data/quality.parquet")


def lay(root: Path, paths: list[str]) -> None:
    """The recordings at these paths, each of its own noise, and all texts."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(TRUTH).index(COPIES.get(path, path))).standard_normal(3 * RATE)
        if path in COPIES and path.endswith(".wav"):
            continue
        soundfile.write(file, (0.05 if path in COPIES else 0.1) * noise, RATE)
        data = file.read_bytes() + TAGS.get(path, b"")
        file.write_bytes(data if data[:4] != b"RIFF" else b"RIFF" + (len(data) - 8).to_bytes(4, "little") + data[8:])
    for path, original in COPIES.items():
        if path in paths and path.endswith(".wav"):
            shutil.copy(root / original, root / path)
    for path, text in TEXTS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def take(terms: dict, project: Path) -> None:
    sections = PARAMS | {"splits": SPLITS, "catalog": CATALOG}
    sections["quality"] = {**sections["quality"], "rules": dict.fromkeys(sections["quality"]["rules"])}
    sections["families"] = {"diffwave": {"clips": "default"}}  # by which the card finds labels
    corpus = external("sounds") | {"terms": terms}
    settle(project, corpus=corpus, clips={"default": PLAN | {"tail": "keep", "clip_seconds": 3.0}}, **sections)
    call(scan, "--name", "scan", "--corpus", "data/corpus", "--refused", "data/refused.parquet", section="corpus")


def prepare() -> None:
    cut_clips()
    for module in (duplicates, quality):
        test_quality.call(module)


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


@pytest.mark.slow(minutes=0.5)
def test_a_policy_leaves_what_a_corpus_gives_that_never_had_the_others(project):
    lay(project / "sounds", list(TRUTH))
    take(TERMS, project)
    found = {row["path"]: (row["licence"], row["ai_terms"]) for row in table("data/corpus/recordings.parquet")}
    assert found == TRUTH
    prepare()
    before = Path("data/corpus/recordings.parquet").read_bytes()
    take(POLICY, project)
    assert Path("data/corpus/recordings.parquet").read_bytes() == before  # so no stage before `splits` runs again
    split()
    quarantined = {row["path"]: row for name in ("scan", "splits") for row in table(f"data/quarantine/{name}.parquet")}
    gone = {
        path
        for path, (licence, ai_terms) in TRUTH.items()
        if ai_terms == "refused" or (licence and not licence.startswith(("CC0-1.0", "CC-BY-3", "CC-BY-4")))
    }
    assert set(quarantined) == gone | set(COPIES)
    assert {row["reason"] for row in quarantined.values()} == {"terms"}
    assert quarantined["bare/copy of own a.wav"]["detail"].startswith("the same file as own/a.wav: use for AI refused")
    assert "is the same sound or video as" in quarantined["bare/softer hub b.ogg"]["detail"]
    assert "hub/b.wav: licence CC-BY-NC-ND-4.0" in quarantined["bare/softer hub b.ogg"]["detail"]
    left = {name: table(f"data/{name}.parquet") for name in ("splits", "catalog")}
    trained = train(project, "with them")
    credited = attribution.read(project / "with them/it/ATTRIBUTION.csv")
    assert {credit.recording for credit in credited} == {row["source"] for row in left["catalog"] if row["split"] == "train"}
    card = trained["README.md"].decode()
    assert "| CC0-1.0 |" in card
    assert "| label | hours |" in card
    assert not any(said in card for said in ("CC-BY-NC", "Sampling", "refused"))
    assert {row["source"] for row in left["catalog"]} == set(TRUTH) - set(quarantined)

    for path in quarantined:
        os.unlink(project / "sounds" / path)
    take(TERMS, project)
    prepare()
    split()
    assert {name: table(f"data/{name}.parquet") for name in left} == left
    assert train(project, "without them") == trained
    assert not table("data/quarantine/scan.parquet") + table("data/quarantine/splits.parquet")


@pytest.mark.slow(minutes=1)
def test_other_terms_rerun_only_splits_and_what_follows(root, tmp_path, alone):
    checkout = copy_project(root, tmp_path / "checkout")
    paths = ["own/a.wav", "own/b.flac", "hub/a.wav", "hub/b.wav", "told/a.wav", "tags/a.wav", "bare/softer hub b.ogg"]
    lay(tmp_path / "sounds", paths)
    document = params.compose(root / "conf", ["corpus=folder", f"corpus.path={tmp_path / 'sounds'}", "corpus.shards=1"])

    def ran() -> set[str]:
        params.write_yaml(document | {"execution": execution()}, checkout / "params.yaml")
        return repro(checkout, "catalog@default")

    before = {"segment@default", "resample@default", "duplicates", "quality@default"}
    after = {"scan@folder", "splits", "catalog@default"}  # `scan` runs always
    assert ran() == before | after
    document["corpus"]["terms"]["ai_refused"] = "quarantine"
    assert ran() == after
    left = {row["source"] for row in pq.read_table(checkout / "data/catalog/default.parquet").to_pylist()}
    assert left == {"own/b.flac", "hub/a.wav", "told/a.wav", "tags/a.wav"}
    assert ran() == {"scan@folder"}
