"""Tables of any name beside recordings, in the layouts of published corpora and of a user's own."""

import pytest

from tests.corpora.tiny import captions, put, recordings, scan, write

KAGGLE = {
    "meta/train_post_competition.csv": "fname,label,manually_verified\na.wav,Hi-hat,1\n",
    "meta/test_post_competition.csv": "fname,label,usage\nb.wav,Bass_drum,Private\n",
}
COMMON_VOICE = {
    "en/train.tsv": "client_id\tpath\tsentence\n1\ta.mp3\tHello there\n",
    "en/test.tsv": "client_id\tpath\tsentence\n2\tb.mp3\tAndrea, is here\n",
    "en/validated.tsv": "client_id\tpath\tsentence\n1\ta.mp3\tHello there\n2\tb.mp3\tAndrea, is here\n",
}
MAESTRO = "composer,split,year,midi_filename,audio_filename\nBach,train,2004,2004/a.midi,2004/a.wav\nBach,test,2008,,2008/b.wav\n"
SCENES = {
    "meta.csv": "filename\tscene_label\tidentifier\naudio/a.wav\tairport\tx\naudio/b.wav\tmetro_station\ty\n",
    "setup/fold1_train.csv": "filename\tscene_label\naudio/a.wav\tairport\n",
    "setup/fold1_test.csv": "filename\naudio/b.wav\n",
}
SPLITS = ((0, "train", "00/1.mp3"), (0, "test", "01/2.mp3"), (1, "train", "01/2.mp3"), (1, "test", "00/1.mp3"))
INSTRUMENTS = {
    "Metadata_Train.csv": "FileName,Class\nx.wav,Sound_Bass_Drum\nc.wav,\n",
    "Metadata_Test.csv": "FileName,Class\n9.wav,Sound_Violin\n",
}
BBC = {"x.csv": "location,description,category,CDNumber\n1.wav,An engine,Engines: Petrol,EC1\nb/2.wav,Rain,,EC1\n"}
URBAN = {"train/train.csv": "ID,Class\n0,siren\n1,dog_bark\n2,siren\n", "test/test.csv": "ID\n5\n7\n"}
SPACED = {"V1 m.csv": "Source File Name,Dataset File Name,Class Name\n7__A.wav,1_1.wav,Fire\n8__B.wav,2_1.wav,Rain\n"}
VOCAL = {f"{name}.csv": f"wav,labels\n/x/1{name}.wav,Cough\n" for name in ("tr", "val", "te")}
MACS = """files:
- annotations:
  - {annotator_id: 49, sentence: people talk, tags: [adults_talking, footsteps]}
  - {annotator_id: 50, sentence: people talk, tags: [footsteps]}
  filename: a.wav
"""
HEARTS = {"set_a.csv": "dataset,fname,label\na,set_a/1.wav,murmur\na,set_a/2.wav,\n"}
BIRDS = {"train_metadata.csv": "primary_label,common_name,filename\nab1,Bare Thrush,ab1/X.ogg\nsw,Swallow,sw/Y.ogg\n"}
MTT = {"a.csv": "clip_id\tno voice\tb\tc\td\te\tmp3_path\n2\t1\t0\t0\t0\t1\tf/x-0-29.mp3\n3\t0\t0\t0\t0\t0\t0/y-29-58.mp3\n"}
JAMENDO = {"all.tsv": "ID\tPATH\tDURATION\tTAGS\n1\t00/1.mp3\t9\tgenre---rock\tmood---sad\n2\t01/2.mp3\t9\tgenre---pop\n"}
JAMENDO |= {f"{at}/x-{name}.tsv": f"ID\tPATH\tX\tTAGS\n1\t{path}\t9\tgenre---rock\n" for at, name, path in SPLITS}
KALDI = {f"data/{name}/text": f"BAC{at} HELLO THERE {at}\n" for at, name in enumerate(("train", "test"))}
SONYC = "split,audio_filename,annotator_id,1-1_small-engine_presence,2_drill_presence,7-X_other_presence,1-1_small-engine_proximity"
SONYC += "\ntrain,a.wav,1,1,0,0,near\ntrain,a.wav,2,0,1,-1,-1\nvalidate,b.wav,0,0,0,0,-1\n"
EVENTS = {"weak.tsv": "filename\tevent_labels\na.wav\tdog,speech\nb.wav\train\n"}


@pytest.mark.parametrize(
    ("sounds", "texts", "outcome"),
    [
        ("x.audio_train/a.wav x.audio_test/b.wav", KAGGLE, [(["Hi-hat"], "train"), (["Bass drum"], "test")]),
        ("en/clips/a.mp3 en/clips/b.mp3", COMMON_VOICE, [([], "train"), ([], "test")]),
        ("2004/a.wav 2008/b.wav", {"maestro.csv": MAESTRO}, [([], "train"), ([], "test")]),
        ("audio/a.wav audio/b.wav", SCENES, [(["airport"], "train"), (["metro station"], "test")]),
        ("Train/x.wav Test_submission/9.wav", INSTRUMENTS, [(["Bass Drum"], "train"), (["Violin"], "test")]),
        ("1.wav b/2.wav", BBC, [(["Engines: Petrol"], None), ([], None)]),
        (
            "train/Train/0.wav train/Train/1.wav test/Test/5.wav",
            URBAN,
            [(["siren"], "train"), (["dog bark"], "train"), ([], "test")],
        ),
        ("x/A1.0/1_1.wav x/A1.0/2_1.wav", SPACED, [(["Fire"], None), (["Rain"], None)]),  # FSC22
        ("1tr.wav 1val.wav 1te.wav", VOCAL, [(["Cough"], "train"), (["Cough"], "valid"), (["Cough"], "test")]),
        ("a.wav", {"MACS.yaml": MACS}, [(["adults talking", "footsteps"], None)]),
        ("set_a/1.wav set_a/2.wav set_b/3.wav", HEARTS, [(["murmur"], None), ([], None), ([], None)]),
        ("train_audio/ab1/X.ogg train_audio/sw/Y.ogg", BIRDS, [(["Bare Thrush"], None), (["Swallow"], None)]),
        ("f/x-0-29.mp3 0/y-29-58.mp3", MTT, [(["no voice", "e"], None), ([], None)]),  # MagnaTagATune
        ("00/1.low.mp3 01/2.low.mp3", JAMENDO, [(["rock", "sad"], "train"), (["rock", "pop"], "test")]),
        ("wav/BAC0.wav wav/BAC1.wav", KALDI, [([], "train"), ([], "test")]),
        ("a.wav b.wav", {"annotations.csv": SONYC}, [(["small engine", "drill"], "train"), ([], "valid")]),
        ("a.wav b.wav", EVENTS, [(["dog", "speech"], None), (["rain"], None)]),
        ("1.wav 2.wav", {"x.json": '[{"File": "1.wav", "label": "dog"}, {"File": "2"}]'}, [(["dog"], None), ([], None)]),
        ("1.wav 2.wav", {"x.json": '{"1.wav": ["dog", "rain"], "2.wav": ["dog", "rain"]}'}, [(["dog", "rain"], None)] * 2),
        ("1.wav 2.wav", {"x.json": '{"1.wav": {"Label": "dog", "split": "test"}, "2.wav": {}}'}, [(["dog"], "test"), ([], None)]),
        ("1.wav 2.wav", {"x.json": '{"train": ["1.wav"], "Val": [], "test": ["2.wav"]}'}, [([], "train"), ([], "test")]),
        (
            "1.wav 2.wav",
            {"x.json": '[{"audio": {"path": "1.wav"}, "label": "dog"}, {"audio": "2"}]'},
            [(["dog"], None), ([], None)],
        ),
        ("1.wav 2.wav", {"x.csv": "1.wav,dog\n2.wav,dog\n"}, [(["dog"], None)] * 2),
        ("1.wav 2.wav", {"x.txt": "1.wav\ttrain\n2.wav\ttest\n"}, [([], "train"), ([], "test")]),
        ("1.wav 2.wav", {"train.txt": "1.wav\n3.wav\n", "test.txt": "2.wav\n4.wav\n"}, [([], "train"), ([], "test")]),
    ],
)
def test_tables_describe_the_recordings_that_they_name(sounds, texts, outcome, tmp_path):
    put(tmp_path, *sounds.split())
    for name, text in texts.items():
        write(tmp_path, name, text)
    tables = scan(tmp_path)
    assert tables.format == "table"
    assert recordings(tables, "labels", "split") == dict(zip(sounds.split(), outcome, strict=True))
    assert all(len(set(texts)) == 1 for texts in captions(tables).values())


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("file,rain,wind,dog\n1.wav,True,False,False\n2.wav,False,True,False\n", ["rain", "wind"]),
        ("file,id,rain,wind,dog\n1.wav,x,1.0,0.0,0.0\n2.wav,y,0.0,0.0,1.0\n", ["rain", "dog"]),  # each row has one
        ("file,id,rain,wind,dog\n1.wav,x,1,1,0\n2.wav,y,0,0,1\n", None),
        ("file,is_valid,verified,train,test\n1.wav,1,0,1,0\n2.wav,0,1,0,1\n", None),
        ("file,rain,wind\n1.wav,1,0\n2.wav,0,1\n", None),
        ("file,a,b,c,d,e\n1.wav,0,0,0,0,0\n2.wav,0,0,0,0,0\n", None),  # to fill in
        ("file,a,b,c,d,e\n1.wav,1,0,0,0.5,0\n2.wav,0,2,0,0,0\n", None),
        ("id,label\n1,dog\n2,cat\n", None),  # which class a number means
        ("sample_key,instrument,relevance\n1,flute,0.0\n2,drums,1.0\n", None),  # OpenMIC
    ],
)
def test_columns_of_classes_and_what_looks_like_them(text, labels, tmp_path):
    write(put(tmp_path, "1.wav", "2.wav"), "x.csv", text)
    found = [label for row in scan(tmp_path).recordings for label in row["labels"]]
    assert found == (labels or [])
    write(tmp_path, "metadata.csv", text.replace("file,", "file_name,"))
    assert [label for row in scan(tmp_path, "auto").recordings for label in row["labels"]] == found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.json", '{"1-1.wav": "A dog, and rain", "2-2.wav": ["It rains"], "\\ud83d.wav": "Wind blows"}'),
        ("x.json", '{"1-\\u0031.wav": "A dog, and rain", "\\u0032-2.wav": "It rains", "v\\u00f6.wav": "' + "so " * 30_000 + 'on"}'),
        ("x.csv", '1-1.wav,"A dog, and rain"\n2-2.wav,"It rains"\n'),
        ("x.csv", "1-1.wav,A dog, and rain\n2-2.wav,It rains\n"),
        ("x.txt", "1-1.wav|A dog, and rain\n2-2.wav|It rains\n3.wav|Not here"),
        *(("x.txt", "1-1.wav: A dog, and rain\n2-2.wav: It rains\n"), ("x.txt", "1-1.wav A dog, and rain\n2-2.wav It rains\n")),
        *(("1-2.trans.txt", "1-1 A dog, and rain\n2-2 It rains\n"), ("data/train/text", "1-1 A dog, and rain\n2-2 It rains\n")),
    ],
)
def test_captions_without_a_header(name, text, tmp_path):
    put(tmp_path, "a/1-1.wav", "a/2-2.wav")
    write(tmp_path, name, text)
    found = captions(scan(tmp_path))
    assert [found[file] for file in ("a/1-1.wav", "a/2-2.wav")] == [["A dog, and rain"], ["It rains"]]


@pytest.mark.parametrize(
    "text", ["1.wav|狗在叫\n2.wav|下雨了\n", "1.wav:狗在叫\n2.wav:下雨了\n", '{"1.wav": "狗在叫", "2.wav": "下雨了"}']
)
def test_captions_without_spaces_between_words(text, tmp_path):
    write(put(tmp_path, "1.wav", "2.wav"), "x.json" if text[0] == "{" else "x.txt", text)
    assert captions(scan(tmp_path)) == {"1.wav": ["狗在叫"], "2.wav": ["下雨了"]}


def test_a_part_of_urbansound8k(tmp_path):
    """Most of its table is not here; of a name, none is made up."""
    put(tmp_path, "audio/fold5/100032-3-0-0.wav", "audio/fold10/7061-6-0-0.wav", "audio/fold1/9-1-0-0.wav")
    rows = (
        "slice_file_name,fsID,start,end,fold,class\n100032-3-0-0.wav,100032.0,0,1,5,dog_bark\n7061-6-0-0.wav,7061,1,2,10,gun_shot\n"
    )
    write(tmp_path, "UrbanSound8K.csv", rows + "".join(f"{number}-1-0-0.wav,{number},0,1,2,siren\n" for number in range(20, 40)))
    tables = scan(tmp_path)
    found = {"audio/fold5/100032-3-0-0.wav": (["dog bark"], 5, "100032"), "audio/fold10/7061-6-0-0.wav": (["gun shot"], 10, "7061")}
    assert recordings(tables, "labels", "fold", "group") == found | {"audio/fold1/9-1-0-0.wav": ([], None, None)}
    assert ([row["path"] for row in tables.orphans], len(tables.missing)) == (["audio/fold1/9-1-0-0.wav"], 20)


def test_excerpts_are_found_by_the_name_of_the_whole(tmp_path):
    put(tmp_path, "5/1.2min.mp3", "5/2.low.mp3", "5/kick.low.mp3")  # Song Describer, MTG-Jamendo
    write(tmp_path, "x.csv", "caption,path\nA calm piano,5/1.mp3\nDrums,5/2.mp3\nA kick,5/kick.mp3\n")
    assert captions(scan(tmp_path)) == {"5/1.2min.mp3": ["A calm piano"], "5/2.low.mp3": ["Drums"], None: ["A kick"]}
    put(tmp_path, "5/b-0-29.mp3", "5/b-29-58.mp3", "5/1-11.mp3")  # MagnaTagATune
    assert [row["group"] for row in scan(tmp_path).recordings] == [None, "5/1", "5/2", "5/b", "5/b", None]


@pytest.mark.parametrize(
    "text",
    [
        *("1.wav,0.5\n2.wav,0.25\n", "1.wav,0,5,dog\n2.wav,5,9,dog\n", "1.wav\t0.5\t1.5\tdog barks\n2.wav\t1\t2\tdog barks\n"),
        *("1.wav,dog,0.93\n2.wav,dog,0.4\n", "1.wav,John Smith,CC BY\n2.wav,Ann Lee,CC BY\n", "1.wav,a/1.wav\n2.wav,a/2.wav\n"),
        *("1.wav http://x.org/1\n2.wav http://x.org/2\n", "0 dog barking\n1 cat crying\n", "dog barks in the rain\ncat cries\n"),
        *("a word\n", "other.wav,dog\n1.wav,dog\n3.wav,dog\n", "1.wav\n2.wav\n", "1.wav,A single line is a note\n"),
        *("1.wav a/1.wav 5dB\n2.wav a/2.wav 5dB\n", "1.wav, dog, 0.93\n2.wav, dog, 0.5\n", "1.wav,dog\n2.wav,dog,cat\n"),
        *('{"1.wav": ["dog", 0.93], "2.wav": ["dog", 0.5]}', '{"1.wav": "dog", "2.wav": 3}', "\n", "1" * 60_000),
        *("{}", '{"1": "dog barking", "2": "cat crying"}', '{"1.wav": [[0, 1, "dog"]], "2.wav": null}', '{"1.wav": 1, "2.wav": 2}'),
        *(
            '{"train": ["1.wav"], "files": ["2.wav"]}',
            '{"1.wav": {"bpm": 120}, "2.wav": "A dog barks"}',
            '[{"1.wav": "A dog barks"}]',
        ),
        *('{"1.wav": "A dog"}\n{"2.wav": "It rains"}\n', '{"1.wav": "A dog", "2.wav": "It', '{"name": "x", "dog.wav": "A dog"}'),
    ],
)
def test_a_list_that_is_unclear_is_not_read(text, tmp_path):
    put(tmp_path, "1.wav", "2.wav", "dog.wav", "cat.wav")
    write(tmp_path, "x.json" if text[0] in "[{" else "x.txt", text)
    tables = scan(tmp_path)
    assert ("not read" in str(tables.remarks), tables.format, tables.captions) == (True, "folder", [])


def lists(**names: str) -> dict[str, str]:
    """Tables of the files that are named by one letter each: `{"train_1": "ab"}` is `train_1.csv` with `a.wav` and `b.wav`."""
    return {f"{name}.csv": "file,label\n" + "".join(f"{one}.wav,x\n" for one in ones) for name, ones in names.items()}


@pytest.mark.parametrize(
    ("texts", "splits"),
    [
        (lists(dev="abc", eval="d"), ["train", "train", "train", "test"]),
        (lists(everything="abcd", dev="c", test="d"), [None, None, "valid", "test"]),
        (lists(train="abc", test="d", evaluation_notes="abcd"), ["train", "train", "train", "test"]),
        (lists(train="abc", test="d") | {"test_scores.csv": "file,score\na.wav,1\nb.wav,1\n"}, ["train", "train", "train", "test"]),
        (lists(train="abcd", test="d"), ["train", "train", "train", "test"]),  # the more protected split
        (lists(train_1="a", test_1="bcd", train_2="bcd", test_2="a"), ["train", "test", "test", "test"]),  # folds
        (lists(train_1="a", train_2="b", test_2="cd"), ["train", "train", "test", "test"]),
        (lists(train_1="bc", valid_1="a", train_2="ac", valid_2="b", test="d"), ["valid", "valid", "train", "test"]),
        ({"train.txt": "a\nb\n", "val.txt": "c\n", "test.txt": "d.wav\n"}, ["train", "train", "valid", "test"]),
        ({"train_filtered.txt": "a.wav\nb.wav\n", "test_filtered.txt": "d.wav\n"}, ["train", "train", None, "test"]),
        ({"x.csv": "file,label\na,x\nb,y\n", "y.csv": "file,set\na,tr\nb,tt\n"}, ["train", "test", None, None]),
        (lists(train_station="ab", test_tone="cd"), [None] * 4),  # one table a class
        ({"m.csv": "file,split\na.wav,train\nb.wav,unseen\nc.wav,Test Set\n"}, ["train", None, "test", None]),
        (lists(train="abcd") | {"m.csv": "file,set\na.wav,dev\n"}, ["valid", None, None, None]),
    ],
)
def test_splits_of_lists(texts, splits, tmp_path):
    put(tmp_path, *(f"{one}.wav" for one in "abcd"))
    for name, text in texts.items():
        write(tmp_path, name, text)
    assert [row["split"] for row in scan(tmp_path).recordings] == splits


@pytest.mark.parametrize(
    ("column", "cells", "splits"),
    [
        *(
            (column, "train valid test", "train valid test")
            for column in "data_split dataset usage phase train_test type fold Set".split()
        ),
        *(("split", "tr va te", "train valid test"), ("subset", "trainset devset testset", "train valid test")),
        *(("split", "dev val eval", "train valid test"), ("type", "train bus car", "None None None")),
        *(("stage", "train valid test", "None None None"), ("split", "train-clean tune test-a", "train valid test")),
    ],
)
def test_a_column_of_words_for_splits(column, cells, splits, tmp_path):
    put(tmp_path, "0.wav", "1.wav", "2.wav")
    write(
        tmp_path,
        "x.csv",
        f",file,label,{column}\n" + "".join(f"{at},{at}.wav,dog,{cell}\n" for at, cell in enumerate(cells.split())),
    )
    tables = scan(tmp_path)
    assert " ".join(f"{row['split']}" for row in tables.recordings) == splits
    assert ("call the one of the splits `split`" in str(tables.remarks)) == (column == "stage")


def test_a_table_of_other_names_is_remarked_with_the_nearest(tmp_path):
    put(tmp_path, "dog_bark.wav", "rain.wav")
    write(tmp_path, "x.csv", "file,label\ndogbark.wav,dog\nrains.wav,rain\n")
    tables = scan(tmp_path)
    assert tables.format == "folder"
    assert tables.remarks == ["x.csv: no row names a recording here (first: 'dogbark.wav'; nearest: dog_bark.wav)"]


@pytest.mark.parametrize("of_train", ["file,label\n1.wav,x\n2.wav,y\n", "file,label,split\n1.wav,x,train\n2.wav,y,train\n"])
def test_a_name_in_two_folders_is_two_recordings(of_train, tmp_path):
    put(tmp_path, "test/1.wav", "test/2.wav", "train/1.wav", "train/2.wav")
    write(tmp_path, "train/labels.csv", of_train)
    write(tmp_path, "test/labels.csv", "file,label\n1.wav,x\n2.wav,y\n")
    found = [(row["path"], row["split"], row["labels"]) for row in scan(tmp_path).recordings]
    assert found == [(f"{part}/{name}.wav", part, [label]) for part in ("test", "train") for name, label in ("1x", "2y")]


@pytest.mark.parametrize("lines", [3, 2500])  # within what detection reads, and beyond
def test_a_damaged_table_hides_no_recording(lines, tmp_path):
    put(tmp_path, "dog/a.wav", "cat/b.wav")
    write(tmp_path, "log.jsonl", '{"file": "a.wav", "label": "x"}\n' * lines + '{"file": "c.w')
    tables = scan(tmp_path)
    assert recordings(tables, "labels") == {"dog/a.wav": ["dog"], "cat/b.wav": ["cat"]}
    assert f"log.jsonl:{lines + 1}" in str(tables.remarks + tables.rejected)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("file,label\ndog/a.wav,cat\ncat/b.wav,dog\n", (["cat"], ["dog"])),  # the table wins
        ("file,label\ndog/a.wav,good\ncat/b.wav,bad\n", (["good"], ["bad"])),
        ("file,num_captions,labelled,class_id\ndog/a.wav,5,yes,1\n", None),  # no column of descriptions
        ("file,caption\nelsewhere/x.wav,rain\n", None),
        ("file,path,label,class_name\na.wav,dog/a.wav,1,dog\nb.wav,cat/b.wav,0,wolf\n", (["dog"], ["wolf"])),
        ("file,label\n1.wav,x\ndog/a.wav,y\nz.wav,z\n", None),  # of another corpus, most of whose names are not here
        ("clean_file,noisy_file,label\ndog/a.wav,cat/b.wav,1\n", None),
        ("file,author,description\ndog/a.wav,me,my old dog\n", None),
        ("file,text,start,end\ndog/a.wav,so it begins,0.0,0.1\n", None),
        ('file,caption\ndog/a.wav,"' + "x" * 200_000 + '"\n', None),  # damaged
    ],
)
def test_classes_of_folders_stay(text, labels, tmp_path):
    put(tmp_path, "dog/a.wav", "cat/b.wav")
    write(tmp_path, "guesses.csv", text)
    tables = scan(tmp_path)
    assert tables.format == ("table" if labels else "folder")
    assert recordings(tables, "labels") == dict(zip(("dog/a.wav", "cat/b.wav"), labels or (["dog"], ["cat"]), strict=True))
    assert ("other labels in a table than their folder" in str(tables.remarks)) == (labels == (["cat"], ["dog"]))
    assert labels or "guesses.csv" in "\n".join(tables.remarks)


def test_places_containers_and_sample_submissions_describe_nothing(tmp_path):
    put(tmp_path, "train_short_audio/1.wav", "train_short_audio/2.wav", "more_samples/3.wav")
    write(tmp_path, "train.csv", "filename,species,location,description\n1.wav,owl,Ohio,a bird\n2.wav,crow,Ohio,a bird\n")
    write(tmp_path, "sample_submission.csv", "filename,label\n3.wav,dog\n")
    assert list(recordings(scan(tmp_path), "labels").values()) == [[], ["owl"], ["crow"]]


def test_texts_and_folders_say_what_no_table_does(tmp_path):
    put(tmp_path, "train/dog/a.wav", "test/dog/b.wav")
    write(tmp_path, "train/dog/a.txt", "a dog")
    write(tmp_path, "train/dog/a.csv", "file,caption\na.wav,of one recording\n")
    write(tmp_path, "x.csv", "path,caption\nb.wav,another dog\nlost.wav,rain\n,wind\n")
    tables = scan(tmp_path)
    assert captions(tables) == {"train/dog/a.wav": ["a dog"], "test/dog/b.wav": ["another dog"], None: ["rain"]}
    assert recordings(tables, "split") == {"train/dog/a.wav": "train", "test/dog/b.wav": "test"}
    assert [(row["path"], row["detail"]) for row in tables.rejected] == [("x.csv", "line 4: no `path`")]


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train-clean-100", "dev-clean"), ("train", "valid")),
        (("x/train_data", "x/test_data"), ("train", "test")),
        (("dev", "eval"), ("train", "test")),
        (("dev", "train"), ("valid", "train")),
        (("train_station", "train_horn"), (None, None)),
    ],
)
def test_words_for_splits_in_all_folders_give_splits(folders, splits, tmp_path):
    put(tmp_path, *(f"{folder}/{at}.wav" for at, folder in enumerate(folders)))
    tables = scan(tmp_path, "folder")
    assert tuple(row["split"] for row in sorted(tables.recordings, key=lambda row: row["path"][-5])) == splits


def test_a_published_list_without_header(tmp_path):
    put(tmp_path, "audio/---g-f_I2yQ_000001.wav", "audio/--56QUhyDQM_000185.wav")
    write(
        tmp_path,
        "vggsound.csv",
        '---g-f_I2yQ,1,"people marching",test\n--56QUhyDQM,185,"playing tennis, hard",train\n--5OkAjCI7g,40,x\n',
    )
    tables = scan(tmp_path)
    assert tables.format == "vggsound"
    assert [(row["labels"], row["split"]) for row in tables.recordings] == [
        (["people marching"], "test"),
        (["playing tennis, hard"], "train"),
    ]
    assert len(tables.rejected) == 1
    write(tmp_path, "vggsound.csv", "id,take,label,split\n---g-f_I2yQ,1,people,test\n--56QUhyDQM,2,tennis,train\n")
    assert scan(tmp_path).format == "table"  # with columns


def test_other_lists_of_fsd50k_have_neither_its_labels_nor_its_splits(tmp_path):
    put(tmp_path, "FSD50K.dev_audio/1.wav")
    write(tmp_path, "FSD50K.ground_truth/dev.csv", 'fname,labels,mids,split\n1,"Bark,Dog",/m/1,train\n')
    write(tmp_path, "FSD50K.metadata/collection/collection_dev.csv", "fname,labels,mids\n1,Yip,/m/1\n")
    assert recordings(scan(tmp_path), "labels", "split") == {"FSD50K.dev_audio/1.wav": (["Bark", "Dog"], "train")}
