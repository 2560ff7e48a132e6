"""Formats of csv: AudioCaps, Clotho, UrbanSound8K, MusicCaps and LJSpeech."""

import csv
import re
import shutil

import pytest

from soundmill.corpora import check, csv_rows, inventory, registry
from soundmill.corpora.resolver import looks_random
from soundmill.corpora.tables import split_of_file
from soundmill.errors import UserError
from tests.corpora.tiny import captions, detected, put, recordings, scan, write

HEADER = "audiocap_id,youtube_id,start_time,caption\n"
CLOTHO = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
DEVELOPMENT = [f"development/{name}.wav" for name in ("Distorted AM Radio noise", "rain, then 'wind'", "door")]
LINES = (
    "LJ001-0001|Printing, in the only sense|Printing, in the only sense\n"
    'LJ001-0002|says "20" times|says "twenty times\n'
    "LJ001-0003|only this|\n"
)
OF_TEST = ("test", None, "r1nicOVtvkQ")  # split, fold, group
WAVS = ("wavs/LJ001-0001.wav", "wavs/LJ001-0002.wav", "wavs/LJ001-0003.wav")


def audiocaps(root, files=(), **tables):
    put(root, *files)
    for name, text in tables.items():
        write(root, f"{name}.csv", text)
    return csv_rows.AUDIOCAPS.read(inventory.list_files(root), 8)


def captions_at(tables):
    return [(row["recording_id"], row["start_time"], row["caption"]) for row in tables.captions]


def test_windows_of_one_recording_and_of_two_stretches_of_a_video(tmp_path):
    rows = "1,r1nicOVtvkQ,30,a\n2,r1nicOVtvkQ,35,b\n3,r1nicOVtvkQ,120,c\n4,r1nicOVtvkQ,10,d\n5,AAAAAAAAAAA,0,e\n"
    labels = "youtube_id,start_time,labels\nr1nicOVtvkQ,30,dog; rain;\n"
    tables = audiocaps(tmp_path, ["noise.wav", "r1nicOVtvkQ_30.wav", "r1nicOVtvkQ_120.wav"], test=HEADER + rows, labels=labels)
    videos = {"r1nicOVtvkQ_120.wav": ("r1nicOVtvkQ_120", "test"), "r1nicOVtvkQ_30.wav": ("r1nicOVtvkQ_30", "test")}
    noise = recordings(tables, "recording_id")["noise.wav"]
    assert recordings(tables, "recording_id", "split") == {"noise.wav": (noise, None), **videos}
    assert [row["labels"] for row in tables.captions][:2] == [["dog", "rain"], []]
    assert tables.counts["without_id"] == 1
    found = [("r1nicOVtvkQ_30", 30.0, "a"), ("r1nicOVtvkQ_30", 35.0, "b"), ("r1nicOVtvkQ_120", 120.0, "c")]
    assert captions_at(tables) == [*found, ("r1nicOVtvkQ_10", 10.0, "d"), ("AAAAAAAAAAA_0", 0.0, "e")]
    assert tables.counts["captions_with_audio"] == 3
    assert tables.counts["captions_without_audio"] == 2


def test_bad_rows_are_quarantined_with_their_line(tmp_path):
    rows = "1,../x,0,a\n2,r1nicOVtvkQ,soon,b\n3,r1nicOVtvkQ,-1,c\n4,r1nicOVtvkQ,nan,d\n5,r1nicOVtvkQ,30, \n6,r1nicOVtvkQ,30,ok\n"
    tables = audiocaps(tmp_path, ["x.wav", "r1nicOVtvkQ_30.wav"], train=HEADER + rows)
    rejected = [(row["path"], row["reason"], row["detail"].split(":")[0]) for row in tables.rejected]
    reasons = ["bad id", *["bad start time"] * 3, "no caption or label"]
    assert rejected == [("train.csv", reason, f"line {number}") for number, reason in enumerate(reasons, 2)]
    assert captions_at(tables) == [("r1nicOVtvkQ", 30.0, "ok")]


@pytest.mark.parametrize(
    "header", ["youtube_id,start_time,caption", "\ufeffaudiocap_id,youtube_id,start_time,caption", "ytid,start_seconds,Caption"]
)
def test_headers_of_all_versions(tmp_path, header):
    cells = "1," * header.count("audiocap_id") + "r1nicOVtvkQ,30,a"
    tables = audiocaps(tmp_path, ["r1nicOVtvkQ_30.wav"], train=f"{header}\r\n{cells}\r\n")
    assert captions_at(tables) == [("r1nicOVtvkQ", 30.0, "a")]


def test_a_csv_that_lacks_a_column_or_no_csv_at_all_is_an_error_that_names_what_is_there(tmp_path):
    with pytest.raises(UserError, match=r"train\.csv.*youtube_id, start_time, caption; start_time missing"):
        audiocaps(tmp_path, ["a.wav"], train="audiocap_id,youtube_id,caption\n")
    with pytest.raises(UserError, match=r"no csv with the columns youtube_id, .*credits\.csv \(artist, title\)"):
        audiocaps(tmp_path / "other", ["a.wav"], credits="artist,title\n")
    tables = audiocaps(tmp_path / "other", train=HEADER)
    assert tables.counts["other_csv"] == 1


@pytest.mark.parametrize(
    ("name", "split"),
    [
        (b"train.csv", "train"),
        (b"x/audiocaps_val.csv", "valid"),
        (b"TEST.csv", "test"),
        (b"train_test.csv", None),
        (b"contest.csv", None),
    ],
)
def test_split_of_a_file(name, split):
    assert split_of_file(name) == split


def test_real_captions(shared, tmp_path):
    """All 57,188 rows are read, and recordings under each naming find theirs."""
    source = shared / "data" / "audiocaps"
    for name in ("train.csv", "val.csv", "test.csv"):
        shutil.copy(source / name, tmp_path / name)
    with (source / "test.csv").open(encoding="utf-8") as file:
        test = list(csv.DictReader(file))
    with (source / "train.csv").open(encoding="utf-8") as file:
        train = list(csv.DictReader(file))
    windows = {(row["youtube_id"], row["start_time"]) for row in test[:40]}
    windows |= {(row["youtube_id"], row["start_time"]) for row in train if row["youtube_id"].startswith("Y")}
    windows |= {(row["youtube_id"], row["start_time"]) for row in train if re.search(r"_\d*$", row["youtube_id"])}
    forms = ["{0}_{1}.wav", "Y{0}_{1}.wav", "{0}.flac", "sub/Y{0}.m4a"]
    (tmp_path / "sub").mkdir()
    for number, window in enumerate(sorted(windows)):
        (tmp_path / forms[number % 4].format(*window)).write_bytes(b"RIFF")

    tables = csv_rows.AUDIOCAPS.read(inventory.list_files(tmp_path), 16)
    assert [row["reason"] for row in tables.rejected] == ["no caption or label"] * 3  # `Not available`
    assert not tables.collisions
    assert len(tables.captions) == 49_838 + 2_475 + 4_875 - 3
    assert {(row["recording_id"], f"{row['start_time']:g}") for row in tables.recordings} == windows
    ids = {row["recording_id"] for row in tables.recordings}
    assert {row["recording_id"] for row in tables.captions} >= ids
    first = test[0]["youtube_id"]
    assert sum(row["recording_id"] == first for row in tables.captions) == 5
    assert sum(looks_random(row["youtube_id"]) for row in train) > 0.98 * len(train)


def test_a_list_of_failed_downloads_beside_captions_is_let_be_and_numbers_may_be_floats(tmp_path):
    text = HEADER + "91139.0,r1nicOVtvkQ,30,a dog\n"
    tables = audiocaps(tmp_path, ["audio/91139.wav"], train=text, failed="youtube_id,start_time,error\nEoBLlcMg_30,10,gone\n")
    assert [row[2] for row in captions_at(tables)] == ["a dog"]
    assert (tables.counts["other_csv"], tables.missing, len(tables.recordings)) == (1, [], 1)
    assert tables.recordings[0]["recording_id"] == "r1nicOVtvkQ"


@pytest.fixture
def clotho(tmp_path):
    put(tmp_path, *DEVELOPMENT, "validation/door.wav", "evaluation/Ünder water.wav")
    write(
        tmp_path,
        "clotho_captions_development.csv",
        CLOTHO
        + "Distorted AM Radio noise.wav,Noise hums.,A radio hums,c,d,e\r\n"
        + '"rain, then &#39;wind&#39;.wav",Rain,"Rain, then wind",,,\r\n'
        + "door.wav,A door,a,b,c,d\r\ngone.wav,Lost,a,b,c,d\r\n",
    )
    write(tmp_path, "clotho_captions_validation.csv", CLOTHO + "door.wav,Another door,a,b,c,d\n")
    write(tmp_path, "clotho_captions_evaluation.csv", "\ufeff" + CLOTHO + "Ünder water.wav,Bubbles,a,b,c,d\n")
    return tmp_path


def test_captions_go_to_the_file_of_that_name_in_the_folder_of_the_split(clotho):
    tables = scan(clotho)
    others = {"evaluation/Ünder water.wav": "test", "validation/door.wav": "valid"}
    assert recordings(tables, "split") == dict.fromkeys(DEVELOPMENT, "train") | others
    result = captions(tables)
    assert result["development/Distorted AM Radio noise.wav"] == ["Noise hums.", "A radio hums", "c", "d", "e"]
    assert result["development/rain, then 'wind'.wav"] == ["Rain", "Rain, then wind"]
    assert result["development/door.wav"][0] == "A door"
    assert result["validation/door.wav"][0] == "Another door"
    assert result["evaluation/Ünder water.wav"][0] == "Bubbles"
    assert [row["id"] for row in tables.missing] == ["gone.wav"]
    assert not tables.ambiguous
    assert not tables.orphans


@pytest.mark.parametrize("number", ["1234", "1234.0"])
def test_the_freesound_original_is_the_group(clotho, number):
    latin = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
    rows = f'door.wav,door;wood,{number},https://freesound.org/people/Ren\xe9,"[0, 1]",Ren\xe9,CC0\nx.wav,,Not found,,,,\n'
    write(clotho, "clotho_metadata_development.csv", (latin + rows).encode("latin-1"))
    groups = recordings(scan(clotho), "group")
    assert groups["development/door.wav"] == "1234"
    assert groups["validation/door.wav"] is None


@pytest.mark.parametrize(("first", "meaning"), [("dev", "train"), ("train", "valid")])
def test_what_dev_is_follows_from_what_else_there_is(tmp_path, first, meaning):
    """Clotho's is for development; beside a training set it is to validate with. `eval` ends with `val`, and is not it."""
    names = dict.fromkeys([first, "dev", "val", "eval"])
    put(tmp_path, *(f"{name}/x.wav" for name in names))
    for name in names:
        write(tmp_path, f"{name}.csv", CLOTHO + f"x.wav,{name} sound,,,,\n")
    tables = scan(tmp_path)
    assert captions(tables) == {f"{name}/x.wav": [f"{name} sound"] for name in names}
    assert not tables.ambiguous
    assert recordings(tables, "split") | {"dev/x.wav": meaning, "eval/x.wav": "test"} == recordings(tables, "split")


def test_what_no_csv_names_has_the_split_of_its_folder(clotho):
    """Clotho's test part has no captions; what is dealt out would be trained on."""
    put(clotho, "test/a.wav", "test_retrieval_audio/b.wav", "extra/d.wav", "e.wav")
    splits = recordings(scan(clotho), "split")
    assert splits | {"test/a.wav": "test", "test_retrieval_audio/b.wav": "test", "extra/d.wav": None, "e.wav": None} == splits


@pytest.mark.parametrize(
    ("name", "text", "outcome"),
    [
        ("test.csv", HEADER + "1,r1nicOVtvkQ,30,nan\n", OF_TEST),
        ("test.csv", HEADER + f"1,r1nicOVtvkQ,30,{'x' * 70_000}\n", OF_TEST),
        ("test.json", '{"location": "r1nicOVtvkQ_30.wav", "captions": [""]}', OF_TEST),
        ("m.csv", "ytid,start_s,caption,is_audioset_eval\nr1nicOVtvkQ,30,a song\nwith drums,True\n", OF_TEST),
        ("u.csv", "slice_file_name,fsID,fold,class\nr1nicOVtvkQ_30.wav,7,3,None\n", (None, 3, "7")),
        ("u.csv", "slice_file_name,fsID,fold,class\nx.wav,nan,3,dog\n", (None, 3, None)),
        ("esc50.csv", "filename,fold,category\n1-17-A-0.wav,2,\n", (None, 2, "17")),
    ],
)
def test_a_row_without_a_text_still_tells_the_split_the_fold_and_the_group(tmp_path, name, text, outcome):
    put(tmp_path, "fold3/r1nicOVtvkQ_30.wav", "fold3/x.wav", "1-17-A-0.wav")
    write(tmp_path, name, text)
    found = recordings(scan(tmp_path), "split", "fold", "group")
    named = next(path for path in found if path.removeprefix("fold3/")[:11] in text)
    assert found[named] == outcome


@pytest.mark.parametrize(
    ("header", "row"),
    [(HEADER, "1,{0},30,a dog\n"), ("fname,labels\n", "{0}_30,dog\n"), ("file_name,caption_1\n", "{0}_30.wav,a dog\n")],
)
def test_without_a_training_set_the_validation_set_is_for_training_and_the_test_is_kept(tmp_path, header, row):
    put(tmp_path, *(f"{name}_30.wav" for name in ("dev_audio/r1nicOVtvkQ", "eval_audio/AAaaAAAAAAA", "eval_audio/not listed")))
    write(tmp_path, "val.csv", header + row.format("r1nicOVtvkQ"))
    write(tmp_path, "eval.csv", header + row.format("AAaaAAAAAAA"))
    tables = scan(tmp_path)
    assert list(recordings(tables, "split").values()) == ["train", "test", "test"]
    assert "1 recordings of the validation set are for training" in str(tables.remarks)


SEGMENTS = "# Segments csv created Sun Mar  5\n# num_ytids=3\n# YTID, start_seconds, end_seconds, positive_labels\n"
CLASSES = 'index,mid,display_name\n0,/m/09x0r,Speech\n1,/t/dd00088,"Gush"\n2,/m/0cmf2,"Fixed-wing aircraft, airplane"\n'


@pytest.mark.parametrize("header", [SEGMENTS, "", "YTID,start_seconds,end_seconds,positive_labels\n"])
def test_audiosets_segments_have_their_labels(tmp_path, header):
    put(tmp_path, "eval/Y--PJHxphWEs.wav", "Ab1-CDEF_gH_30.wav", "balanced/aaaaBBBB-01.wav", "ABCDEFGHIJK.wav")
    balanced = '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\nAb1-CDEF_gH, 30.000, 40.000, "/m/0cmf2"\n'
    bad = 'nobody, 30.000, 40.000, "/m/0cmf2"\n' + "x" * 200_000 + "\nAb1-CDEF_gH, soon, 40.000, /m/0cmf2\n"
    write(tmp_path, "balanced_train_segments.csv", header + balanced + bad)
    write(tmp_path, "eval_segments.csv", header + "aaaaBBBB-01,0,10,/m/0cmf2,/m/none\nABCDEFGHIJK, 0.500, 10.000, /m/09x0r\n")
    write(tmp_path, "class_labels_indices.csv", CLASSES)
    assert detected(tmp_path) == "audioset"
    tables = scan(tmp_path)
    assert recordings(tables, "recording_id", "start_time", "labels", "split", "group") == {
        "ABCDEFGHIJK.wav": ("ABCDEFGHIJK", 0.5, ["Speech"], "test", "ABCDEFGHIJK"),
        "Ab1-CDEF_gH_30.wav": ("Ab1-CDEF_gH", 30.0, ["Fixed-wing aircraft, airplane"], "train", "Ab1-CDEF_gH"),
        "balanced/aaaaBBBB-01.wav": ("aaaaBBBB-01", 0.0, ["Fixed-wing aircraft, airplane"], "test", "aaaaBBBB-01"),
        "eval/Y--PJHxphWEs.wav": ("--PJHxphWEs", 30.0, ["Speech", "Gush"], "train", "--PJHxphWEs"),
    }
    assert [row["reason"] for row in tables.rejected] == ["bad id", "bad id", "bad start time"]


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (
            "file_name,text\ndog-bark 1.wav,a dog\nrain.flac,rain\n",
            "metadata.csv:2, 'dog-bark 1.wav'; nearest: a/dog_bark_1.wav, b/dog_bark_2.wav)",
        ),
        ("file_name,text\nxyz,a dog\nuvw,wind\n", "no name is near; one is a/dog_bark_1.wav"),
        ("file_name,text\nxyz,a dog\ndog_bark_2.wav,another\n", None),
    ],
)
def test_a_list_whose_names_match_no_file_names_the_nearest(tmp_path, table, named):
    put(tmp_path, "a/dog_bark_1.wav", "b/dog_bark_2.wav")
    write(tmp_path, "metadata.csv", table)
    remarks = [remark for remark in scan(tmp_path).remarks if "no row that names a file" in remark]
    assert [named in remark for remark in remarks] == ([True] if named else [])


def test_musiccaps(lay, tmp_path):
    musiccaps = "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval\n"
    musiccaps_rows = (
        '-0Gj8-vB1q4,30,40,"/m/0140xf,/m/02cjck","[\'low quality\', \'sad\']","A low voice,\nsings.",4,False,True\n'
        "-0vPFx-wRRI,30,40,/m/02cjck,\"['x']\",Drums.,4,False,False\n"
        "../../../ab,30,40,/m/02cjck,[],Bad.,4,False,False\n"
        "'-0vPFx-wRRJ,soon,40,/m/02cjck,[],Bad.,4,False,False\n"
    )
    classes = 'index,mid,display_name\n0,/m/02cjck,Song\n1,/m/0140xf,"Singing bowl"\n'
    result = lay(
        "-0Gj8-vB1q4.wav",
        "Y-0vPFx-wRRI_30.mp3",
        **{"musiccaps-public.csv": musiccaps + musiccaps_rows, "class_labels_indices.csv": classes},
    )
    tables = registry.read("auto", result, 4)
    assert captions(tables) == {"-0Gj8-vB1q4.wav": ["A low voice, sings."], "Y-0vPFx-wRRI_30.mp3": ["Drums."]}
    assert {row["recording_id"]: row["split"] for row in tables.recordings} == {"-0Gj8-vB1q4": "test", "-0vPFx-wRRI": "train"}
    assert [row["labels"] for row in tables.captions] == [["Singing bowl", "Song"], ["Song"]]
    assert [row["reason"] for row in tables.rejected] == ["bad id", "bad start time"]
    (tmp_path / "class_labels_indices.csv").unlink()
    tables = registry.read("musiccaps", inventory.list_files(tmp_path), 4)
    assert not any(row["labels"] for row in tables.captions + tables.recordings)
    assert any("machine ids of AudioSet classes" in remark for remark in tables.remarks)


def test_ljspeech(tmp_path):
    put(tmp_path, *WAVS, "wavs/LJ999-0001.wav")
    write(tmp_path, "metadata.csv", LINES + "LJ001-0004|gone|gone\n")
    write(tmp_path, "README", "The LJ Speech Dataset")
    tables = scan(tmp_path)
    texts = [["Printing, in the only sense"], ['says "twenty times'], ["only this"], ["gone"]]
    assert captions(tables) == dict(zip([*WAVS, None], texts, strict=True))
    assert [row["path"] for row in tables.orphans] == ["wavs/LJ999-0001.wav"]
    assert [(row["id"], row["origins"]) for row in tables.missing] == [("wavs/LJ001-0004", ["metadata.csv:4"])]
    assert (tables.rejected, tables.remarks) == ([], [])
    assert {(row["split"], row["fold"], row["group"]) for row in tables.recordings} == {(None, None, None)}


def test_ljspeech_in_a_folder_of_its_own_and_without_recordings(tmp_path):
    put(tmp_path / "whole", *(f"LJSpeech-1.1/{name}" for name in WAVS))
    write(tmp_path / "whole", "LJSpeech-1.1/metadata.csv", LINES)
    tables = scan(tmp_path / "whole")
    assert (tables.format, len(tables.matched), tables.missing) == ("ljspeech", 3, [])
    write(tmp_path / "bare", "metadata.csv", LINES)
    report = check.check(tmp_path / "bare")
    assert (report.tables.format, report.coverage, len(report.tables.missing)) == ("ljspeech", 0, 3)


def test_ljspeech_with_odd_lines(tmp_path):
    put(tmp_path, *WAVS, "secret.wav")
    lines = ["LJ001-0001|a|one", "LJ001-0001|a|another", "", "LJ001-0002|two cells"]
    lines += ["../secret|climbs out of wavs, and stays in the corpus|x", "../../../etc/passwd|x|x", "|x|x"]
    lines += ["LJ001-0003|a|b|c", "LJ001-0003", "LJ001-0003| | ", "LJ001-0003|café|café"]
    write(tmp_path, "metadata.csv", b"\xef\xbb\xbf" + "\r\n".join(lines).encode("cp1252"))
    tables = scan(tmp_path)
    assert tables.format == "ljspeech"
    found = {path: texts for path, texts in captions(tables).items() if path in WAVS}
    assert found == {WAVS[0]: ["one", "another"], WAVS[1]: ["two cells"], WAVS[2]: ["café"]}
    assert tables.collisions == [{"id": "wavs/LJ001-0001", "origins": ["metadata.csv:1", "metadata.csv:2"]}]
    found = [(row["reason"], row["detail"].partition(":")[0]) for row in tables.rejected]
    assert found == [("bad id", "line 7"), ("bad row", "line 8"), ("bad row", "line 9"), ("no caption or label", "line 10")]
    assert [row["id"] for row in tables.missing] == ["wavs/../../../etc/passwd"]
    assert any("line 11" in remark and "Windows-1252" in remark for remark in tables.remarks)


@pytest.mark.parametrize(
    "table",
    [
        "file_name|text\nLJ001-0001.wav|a\n",
        "audio_file|text|speaker_name\nwavs/LJ001-0001.wav|a|x\n",
        "other|a|b\nothers|a|b\n",
        "LJ001-0001,a,b\n",
    ],
)
def test_other_tables_of_that_name_are_no_ljspeech(tmp_path, table):
    put(tmp_path, *WAVS)
    write(tmp_path, "metadata.csv", table)
    assert detected(tmp_path) != "ljspeech"
