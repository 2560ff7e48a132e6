"""Corpora told by folders and file names: any folder, ESC, Speech Commands."""

import re

import pytest

from soundmill.corpora import check, inventory, registry
from soundmill.corpora.folder import class_label
from soundmill.corpora.resolver import looks_random
from tests.corpora.tiny import captions, put, recordings, scan, write


def test_class_folders_become_labels(lay):
    tables = registry.read("folder", lay("001 - Dog bark/a.wav", "rain_drops/deep/b.ogg", "c.wav"), 4)
    found = recordings(tables, "labels")
    assert found == {"001 - Dog bark/a.wav": ["dog bark"], "rain_drops/deep/b.ogg": ["rain drops"], "c.wav": []}
    ids = [row["recording_id"] for row in tables.recordings]
    assert all(re.fullmatch(r"[0-9a-f]{12}", recording_id) for recording_id in ids)
    assert len(set(ids)) == 3
    assert all(0 <= row["shard"] < 4 and row["split"] is None and row["fold"] is None for row in tables.recordings)


@pytest.mark.parametrize(("folder", "label"), [("12.Rain", "rain"), ("music_wav", "music"), ("Café", "café"), ("_", "_")])
def test_labels_are_cleaned_names_and_never_empty(folder, label):
    assert class_label(folder.encode()) == label


@pytest.mark.parametrize("above", ["", "data/", "audio/", "clips/", "mycorpus/", "mycorpus/audio/"])
@pytest.mark.parametrize("beside", ["", "stray.wav", "unlabeled/x/u.wav", "data/u.wav", "train.wav"])
def test_split_folders_wherever_they_lie(lay, above, beside):
    split_tree = ("train/dog/a.wav", "train/cat/b.wav", "test/dog/c.wav")
    split_rows = {"train/dog/a.wav": ("train", ["dog"]), "train/cat/b.wav": ("train", ["cat"]), "test/dog/c.wav": ("test", ["dog"])}
    result = lay(*(above + name for name in split_tree), *filter(None, [beside]))
    tables = registry.read("folder", result, 1)
    expected = {above + name: outcome for name, outcome in split_rows.items()}
    assert recordings(tables, "split", "labels") == expected | ({beside: (None, [])} if beside else {})
    assert [remark.partition(" are")[0] for remark in tables.remarks] == ([f"1 recordings (first: {beside})"] if beside else [])


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("train/a.wav", "dog/b.wav", "cat/c.wav"), ["cat", "dog", "train"]),
        (("dev/a.wav", "test/b.wav", "cat/c.wav", "dog/d.wav"), ["cat", "dev", "dog", "test"]),
    ],
)
def test_folders_named_after_splits_among_classes_are_classes_and_reported(lay, names, labels):
    tables = registry.read("folder", lay(*names), 1)
    assert sorted(label for row in tables.recordings for label in row["labels"]) == labels
    assert {row["split"] for row in tables.recordings} == {None}
    (remark,) = tables.remarks
    assert "in folders named after splits that are not read as splits" in remark


@pytest.mark.parametrize(
    "told",
    [
        "x/fan/train=train,fan x/fan/test=test,fan x/bus/train=train,bus",
        "en/train/yes=train,yes de/train/yes=train,yes de/test/no=test,no",
    ],
)
def test_splits_below_classes_or_parts(lay, told):
    """As in DCASE's task 2: the machine, then the split."""
    outcome = {
        f"{place}/1.wav": (said.split(",")[0], said.split(",")[1:]) for place, said in (one.split("=") for one in told.split())
    }
    assert recordings(registry.read("folder", lay(*outcome), 1), "split", "labels") == outcome


@pytest.mark.parametrize(
    "splits",
    [
        *(
            "train=clean_trainset_28spk_wav train=noisy_trainset test=clean_testset_wav",
            "train=tr valid=cv test=tt",
            "train=trn test=tst",
        ),
        *("train=tr05_simu valid=dt05_simu test=et05_simu", "train=public_train test=private_test", "train=learn test=holdout"),
        *("train=train_splits valid=dev_splits_complete test=output_repeated_splits_test", "train=trainval test=evaluate"),
        *("train=train-100 train=train-360 valid=dev test=test", "train=train test=test_seen", "train=training-a valid=validation"),
        *(
            "train=development test=evaluation",
            "train=dev valid=val test=eval",
            "None=tr None=en None=te",
            "None=test_tone None=car",
        ),
    ],
)
def test_folders_with_words_for_splits_are_splits_if_all_beside_them_are(lay, splits):
    split_of = {f"{name}/dog/{name}.wav": split for split, name in (one.split("=") for one in splits.split())}
    assert {path: str(split) for path, split in recordings(registry.read("folder", lay(*split_of), 1), "split").items()} == split_of


@pytest.mark.parametrize(
    ("names", "labels", "remark"),
    [
        (["animals-master/dog/1.wav", "animals-master/cat/1.wav"], {"dog", "cat"}, "animals-master,"),
        (["Speech/v0.02/yes/1.wav", "Speech/v0.02/no/1.wav", "Speech/v0.02/no/deep/2.wav"], {"yes", "no"}, "Speech/v0.02,"),
        (["x-main/train/dog/1.wav", "x-main/test/dog/1.wav"], {"dog"}, "have the same, 'dog', from their folder"),
        (["x/train/set/dog/1.wav", "x/test/set/cat/1.wav"], {"dog", "cat"}, " set,"),
        *(([f"{name}/1.wav", f"{name}/2.wav"], set(), "like a whole data set") for name in ("public_dataset", "ALL", "audio_16k")),
        (["Actor-01/1.wav", "Actor-02/2.wav", "audio_actors/1.wav"], set(), "numbered names"),  # RAVDESS on Kaggle
        ([f"{name}/1.wav" for name in "09af"], set(), "numbered names"),  # MagnaTagATune
        ([f"{name}/1.wav" for name in "abcdf"], set("abcdf"), None),
        (["train/A - One/x.wav", "train/B - Two/x.wav", "test/C - Three/x.wav"], set(), "no split has those of another"),  # MUSDB18
        (["Actor-01/1.wav", "Actor-02/2.wav"], set(), "numbered names"),
        (["female1/1.wav", "female2/2.wav", "male1/3.wav", "male2/4.wav"], set(), "numbered names"),
        (["kick1/1.wav", "kick2/1.wav"], {"kick1", "kick2"}, None),
        (["1-dog/1.wav", "2-siren/1.wav", "other/1.wav"], {"dog", "siren", "other"}, None),  # a list
        (["09_dog/1.wav", "10_siren/1.wav"], {"dog", "siren"}, None),
        (["0.5x/1.wav", "1.25x/1.wav", "2x/1.wav"], {"0.5x", "1.25x", "2x"}, None),
        (["808 kick/1.wav", "909 snare/1.wav"], {"808 kick", "909 snare"}, None),
        (["90 BPM/1.wav", "120 BPM/1.wav"], {"90 bpm", "120 bpm"}, None),
        (["2-step/1.wav", "house/1.wav"], {"2-step", "house"}, None),
        (["dog/near/1.wav", "dog/far/1.wav", "dog/2.wav"], {"dog"}, "have the same"),
        (["audio/dog/1.wav", "audio/cat/1.wav"], {"dog", "cat"}, None),
        (["x/dog/1.wav", "x/cat/1.wav", "y/1.wav"], {"x", "y"}, None),
        (["audio/a.wav", "audio/b.wav"], set(), None),
        (["AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1002_IEO_HAP_HI.wav"], set(), None),  # CREMA-D
        (["wav48/dog/1.wav", "MP3/dog/2.mp3"], {"dog"}, "have the same"),
        (["IRMAS-TrainingData/cel/1.wav", "IRMAS-TestingData-Part1/Part1/2.wav"], {"cel"}, "have the same"),
        (["FSL10K/audio/wav/1_2.wav", "FSL10K/audio/wav/3_4.wav"], set(), "FSL10K, which is not used as a class"),
    ],
)
def test_the_folder_that_a_corpus_was_packed_into_is_no_class(tmp_path, names, labels, remark):
    put(tmp_path, *names)
    tables = scan(tmp_path)
    assert tables.format == "folder"
    assert {label for row in tables.recordings for label in row["labels"]} == labels
    assert [remark in text for text in tables.remarks] == ([True] if remark else [])


@pytest.mark.parametrize("folders", ["000 001 155", "00 14 48", "84/1241 103/1241", "2004 2008", "01 02", "10"])
def test_folders_of_years_ids_and_parts_are_no_classes(lay, folders):
    """As in FMA, MTG-Jamendo, LibriTTS, MAESTRO, AudioMNIST."""
    tables = registry.read("auto", lay(*(f"train/{folder}/{at}.wav" for at, folder in enumerate(folders.split()))), 1)
    assert [(row["labels"], row["split"]) for row in tables.recordings] == [([], "train")] * len(folders.split())
    assert "are in folders of numbers or of numbered names, not used as classes" in str(tables.remarks)


@pytest.mark.parametrize("numbers", [range(2), (3, 7), range(12), range(1, 11)])
def test_folders_that_number_classes_are_classes_but_reported(lay, numbers):
    tables = registry.read("auto", lay(*(f"{number}/a.wav" for number in numbers)), 1)
    assert recordings(tables, "labels") == {f"{number}/a.wav": [str(number)] for number in numbers}
    assert [f"{len(numbers)} labels are numbers (first: {min(numbers)})" in remark for remark in tables.remarks] == [True]


def test_folders_of_folds_are_folds(lay):
    tables = registry.read("auto", lay("x/fold1/dog/a.wav", "x/fold10/cat/b.wav", "x/fold10/c.wav"), 1)
    found = recordings(tables, "labels", "fold")
    assert found == {"x/fold1/dog/a.wav": (["dog"], 1), "x/fold10/cat/b.wav": (["cat"], 10), "x/fold10/c.wav": ([], 10)}


def test_texts_without_recording_are_missing(lay):
    texts = {"d/a.txt": "A dog", "d/b.txt": "A cat", "d/README.txt": "Free", "d/list.txt": "a\nb\n", "notes.txt": "x"}
    result = lay("d/a.wav", **texts)
    tables = registry.read("folder", result, 1)
    assert [(row["id"], row["captions"], row["origins"]) for row in tables.missing] == [("d/b", ["A cat"], ["d/b.txt:1"])]
    assert len(tables.matched) == 1
    _, remark = tables.remarks  # of the single label; of a list, and of a text in a folder without captions
    assert remark.startswith("2 tables, lists or texts not read, since they are not part of the format folder (first: d/list.txt)")


def test_texts_with_the_extension_of_their_recording_and_of_two_the_normalised(lay):
    texts = {"b.wav.txt": "A cat", "a.wav.txt": "A dog", "c.wav.txt": "A cow"}
    texts |= {"d.original.txt": "Mr. X", "d.normalized.txt": "Mister X"}
    tables = registry.read("folder", lay("a.wav", "b.wav", "d.wav", **texts), 1)
    assert [row["caption"] for row in tables.captions] == ["A dog", "A cat", "Mister X", "A cow"]
    assert ([row["id"] for row in tables.missing], len(tables.remarks)) == (["c.wav"], 1)  # of what is not read


def test_texts_that_are_labels_of_others(lay):
    """As in IRMAS."""
    texts = {"IRMAS-TestingData/1.txt": "gel\t\nvoi\t\n", "IRMAS-TestingData/2.txt": "a voice\n"}
    sounds = [f"IRMAS-TrainingData/{name}/0.wav" for name in ("gel", "voi")]
    tables = registry.read("auto", lay(*sounds, "IRMAS-TestingData/1.wav", "IRMAS-TestingData/2.wav", **texts), 1)
    assert list(recordings(tables, "labels").values()) == [["gel", "voi"], [], ["gel"], ["voi"]]
    assert captions(tables) == {"IRMAS-TestingData/2.wav": ["a voice"]}


def test_texts_in_a_folder_of_their_own(lay):
    texts = {"txt/p1/1.txt": "Please call", "txt/p1/3.txt": "Call it", "txt/p1/2.txt": "A dog barks\nand more"}
    texts |= {"txt/p2/1.txt": "Ask her", "txt/p3/3.txt": "Too far"}
    events = {"events/1.txt": "0.5\t1.5\tdog", "info/1.txt": '{"bpm": 120}', "info/2.txt": "en"}
    tables = registry.read("auto", lay("wav/p1/1.wav", "wav/p1/2.wav", "wav/p1/3.wav", "wav/p2/1.wav", **texts, **events), 1)
    assert captions(tables) == {"wav/p1/1.wav": ["Please call"], "wav/p1/3.wav": ["Call it"], "wav/p2/1.wav": ["Ask her"]}
    assert registry.read("auto", lay("audio/a.wav", **{"texts/a.txt": "A dog"}), 1).captions[0]["caption"] == "A dog"


def test_a_text_of_two_microphones_describes_both_and_keeps_them_together(lay):
    tables = registry.read("auto", lay("wav/p1/p1_1_mic1.wav", "wav/p1/p1_1_mic2.wav", **{"txt/p1/p1_1.txt": "Please call"}), 1)
    assert captions(tables) == {f"wav/p1/p1_1_mic{mic}.wav": ["Please call"] for mic in (1, 2)}
    assert set(recordings(tables, "group").values()) == {"wav/p1/p1_1"}  # not of another folder's files of that name


@pytest.mark.parametrize(
    ("text", "is_caption"),
    [
        *(("0.0\t0.5\tdog\n\n0.5\t1\tcat\n", False), ("0 46797 She had.", True), ("0.5,1.5,dog", False), ("3\n", False)),
        *(("Onset\tOffset\tPitch\n0.5\t1.5\t60\n", False), ("808 909 loop", True), ("3 dogs bark", True)),
        *(("0.5 s of rain", True), ("808\ta kick", True), ("1 2 beats\nof a drum", True)),
    ],
)
def test_times_of_events_are_no_captions(lay, text, is_caption):
    tables = registry.read("auto", lay("a.wav", **{"a.txt": text}), 1)
    reasons = [row["reason"] for row in tables.rejected]
    assert (len(tables.captions), reasons) == ((1, []) if is_caption else (0, ["times or numbers"]))


def test_sidecar_texts_are_captions(lay):
    texts = {"d/a.txt": "\ufeffA dog\n barks. ", "b.txt": " \n", "other.txt": "x", "c.txt": b"\xff\xfe\x00"}
    tables = registry.read("folder", lay("d/a.wav", "d/a.mp3", "b.wav", "c.wav", **texts), 1)
    ids = {row["path"]: row["recording_id"] for row in tables.recordings}
    assert {(row["recording_id"], row["caption"], row["start_time"], row["origin"]) for row in tables.captions} == {
        (ids["d/a.wav"], "A dog barks.", None, "d/a.txt"),
        (ids["d/a.mp3"], "A dog barks.", None, "d/a.txt"),
        ("missing:other", "x", None, "other.txt:1"),
    }
    assert {row["path"]: row["reason"] for row in tables.rejected} == {"b.txt": "empty caption", "c.txt": "unreadable caption"}


def test_youtube_names_in_a_plain_folder_keep_their_ids_and_words_taken_for_one_are_reported(lay, tmp_path):
    tables = registry.read("folder", lay("r1nicOVtvkQ_130.wav", "r1nicOVtvkQ_10.wav", "drum_kick_a_12.wav", "Drum_kicker_2.wav"), 1)
    result = recordings(tables, "recording_id", "start_time", "group")
    assert result["r1nicOVtvkQ_130.wav"] == ("r1nicOVtvkQ_130", 130.0, "r1nicOVtvkQ")
    assert result["r1nicOVtvkQ_10.wav"] == ("r1nicOVtvkQ_10", 10.0, "r1nicOVtvkQ")
    assert result["drum_kick_a_12.wav"][1:] == result["Drum_kicker_2.wav"][1:] == (0.0, None)
    assert not looks_random("kick_drum_a")
    assert registry.read("folder", inventory.list_files(tmp_path), 1).remarks == []
    (remark,) = registry.read("folder", lay("RainAtNight_1.wav", "RainAtNight_2.wav"), 1).remarks
    assert remark.startswith("2 recordings (first: RainAtNight_1.wav) are named like a clip of a YouTube video")


def test_esc10_folders_also_in_one_of_their_own(lay, tmp_path):
    names = ("001 - Dog bark/1-100032-A.ogg", "001 - Dog bark/3-9-B.ogg", "010 - Fire crackling/odd.ogg")
    tables = registry.read("esc", lay(*names), 1)
    assert recordings(tables, "labels", "fold", "group") == {
        "001 - Dog bark/1-100032-A.ogg": (["dog bark"], 1, "100032"),
        "001 - Dog bark/3-9-B.ogg": (["dog bark"], 3, "9"),
        "010 - Fire crackling/odd.ogg": (["fire crackling"], None, None),
    }
    (tmp_path / "inside").mkdir()
    for folder in ("001 - Dog bark", "010 - Fire crackling"):
        (tmp_path / folder).rename(tmp_path / "inside" / folder)
    inside = registry.read("auto", inventory.list_files(tmp_path), 1)
    assert (inside.format, [row["labels"] for row in inside.recordings]) == ("esc", [["dog bark"]] * 2 + [["fire crackling"]])


def test_esc50_table(lay):
    meta = (
        "filename,fold,target,category,esc10,src_file,take\n1-100032-A-0.wav,1,0,dog,True,100032,A\n"
        "5-9-A-14.wav,5,14,chirping_birds,False,9,A\n4-1-A-1.wav,4,1,rooster,True,1,A\n../x.wav,1,0,dog,,,\n1-2-A-0.wav,one,0,dog,,,\n"
    )
    result = lay("audio/1-100032-A-0.wav", "audio/5-9-A-14.wav", "audio/2-2-A-2.wav", **{"meta/esc50.csv": meta})
    tables = registry.read("esc", result, 1)
    assert recordings(tables, "labels", "fold") == {
        "audio/1-100032-A-0.wav": (["dog"], 1),
        "audio/2-2-A-2.wav": ([], 2),
        "audio/5-9-A-14.wav": (["chirping birds"], 5),
    }
    assert [row["path"] for row in tables.orphans] == ["audio/2-2-A-2.wav"]
    assert [(row["id"], row["origins"]) for row in tables.missing] == [("4-1-A-1.wav", ["meta/esc50.csv:4"])]
    assert [row["reason"] for row in tables.rejected] == ["bad file name", "bad fold"]


ESC50 = "filename,fold,target,category,esc10,src_file,take\n"


def test_esc50_twice_is_a_collision_and_one_folder_is_described(lay):
    """`2-…` sorts after `16000`, `1-…` before it: the first in the order of paths would be one of either folder."""
    names = ("1-1-A-0.wav", "2-2-A-1.wav", "dog.wav")
    meta = ESC50 + "1-1-A-0.wav,1,0,dog,,1,A\n2-2-A-1.wav,2,1,rooster,,2,A\ndog.wav,2,0,dog,,3,A\n"
    result = lay(*(f"audio/{folder}{name}" for folder in ("", "16000/") for name in names), **{"esc50.csv": meta})
    tables = registry.read("esc", result, 1)
    described = {"1-1-A-0.wav": (["dog"], 1, "1"), "2-2-A-1.wav": (["rooster"], 2, "2"), "dog.wav": (["dog"], 2, "dog.wav")}
    copies = {f"audio/16000/{name}": ([], *told) for name, (_, *told) in described.items()}
    assert recordings(tables, "labels", "fold", "group") == copies | {f"audio/{name}": told for name, told in described.items()}
    assert tables.collisions == [{"id": name, "paths": [f"audio/{name}", f"audio/16000/{name}"]} for name in names]
    assert (tables.missing, tables.orphans, tables.ambiguous, len(tables.matched)) == ([], [], [], 3)


FIRST, SECOND, THIRD = "0a7c2a8d", "1b4c9b89", "c1d39ce8"
WORDS = (f"yes/{FIRST}_nohash_0.wav", f"yes/{SECOND}_nohash_0.wav", f"zero/{FIRST}_nohash_1.wav")
WORDS += (f"zero/{THIRD}_nohash_0.wav", f"nine/{THIRD}_nohash_0.wav")
NOISE = "_background_noise_/running_tap.wav"


def commands(root, valid: str | bytes = f"yes/{SECOND}_nohash_0.wav\n", test: str = f"zero/{THIRD}_nohash_0.wav\n"):
    put(root, *WORDS, NOISE)
    write(root, "validation_list.txt", valid)
    write(root, "testing_list.txt", test)
    write(root, "LICENSE", "Attribution 4.0")
    return root


def test_speech_commands(tmp_path):
    commands(tmp_path, test=f"zero/{THIRD}_nohash_0.wav\nnine/{THIRD}_nohash_0.wav\n")
    tables = scan(tmp_path)
    words = [(["yes"], "train", FIRST), (["yes"], "valid", SECOND), (["zero"], "train", FIRST)]
    words += [(["zero"], "test", THIRD), (["nine"], "test", THIRD)]
    assert recordings(tables, "labels", "split", "group") == dict(zip(WORDS, words, strict=True))
    assert (tables.captions, tables.missing, tables.orphans, tables.collisions, tables.rejected) == ([], [], [], [], [])
    assert len(tables.matched) == len(WORDS)
    (remark,) = tables.remarks
    assert remark == f"1 recordings that are not words, as in `_background_noise_`, which are left out (first: {NOISE})"


def test_sc09_is_the_ten_digits_of_speech_commands_and_recognised_by_them_alone(tmp_path):
    tables = scan(commands(tmp_path, valid=f"yes/{SECOND}_nohash_0.wav\nyes/{SECOND}_nohash_9.wav\n"), "sc09")
    found = recordings(tables, "labels", "split")
    assert found == {WORDS[4]: (["nine"], "train"), WORDS[2]: (["zero"], "train"), WORDS[3]: (["zero"], "test")}
    assert tables.missing == []  # what the lists say of other words is no concern of it
    assert tables.remarks[1] == f"2 recordings of other words than those of sc09, which are left out (first: {WORDS[0]})"
    for format, names in (("sc09", WORDS[2:]), ("speech_commands", WORDS)):  # in whatever folder, as torchaudio has it
        tables = scan(put(tmp_path / format, *(f"SpeechCommands/speech_commands_v0.02/{name}" for name in names)))
        assert (tables.format, set(recordings(tables, "split").values())) == (format, {None})
        assert recordings(tables, "group") == {row["path"]: row["path"].split("/")[-1].split("_")[0] for row in tables.recordings}


@pytest.mark.parametrize("prefix", ["", "speech_commands_v0.02/"])
def test_lists_with_odd_lines(tmp_path, prefix):
    gone, twice, both = f"yes/{FIRST}_nohash_7.wav", f"yes/{SECOND}_nohash_0.wav", f"nine/{THIRD}_nohash_0.wav"
    lines = [twice, "", f"  {both} ", gone, twice, "../../../etc/passwd", f"{THIRD}_nohash_0.wav", "café/0_nohash_0.wav"]
    root = commands(tmp_path / prefix, valid=b"\xef\xbb\xbf" + "\r\n".join(lines).encode("cp1252"), test=f"{both}\n")
    tables = scan(tmp_path)
    assert tables.format == "speech_commands"
    splits = recordings(tables, "split")
    assert {name.removeprefix(prefix): split for name, split in splits.items()} == {
        WORDS[0]: "train",
        WORDS[1]: "valid",
        WORDS[2]: "train",
        WORDS[3]: "train",
        WORDS[4]: "test",  # in both lists: the more protected one
    }
    assert [row["id"] for row in tables.missing] == [gone, "../../../etc/passwd", "café/0_nohash_0.wav"]
    source = f"{prefix}validation_list.txt"
    assert tables.collisions == [
        {"id": both, "origins": [f"{prefix}testing_list.txt:1", f"{source}:3"]},
        {"id": twice, "origins": [f"{source}:1", f"{source}:5"]},
    ]
    assert [(row["reason"], row["detail"][:7]) for row in tables.rejected] == [("bad path", "line 7:")]
    assert [(entry["id"], entry["taken"]) for entry in tables.ambiguous] == [(both, "test")]
    assert any("not UTF-8, read as Windows-1252" in remark for remark in tables.remarks)
    assert check.check(root).coverage == 5 / 8


def test_a_speaker_of_one_word_is_not_taken_for_that_of_another_and_what_is_no_word_s_is_reported(tmp_path):
    """Names repeat in every word's folder: the list names that of a word whose recording is gone."""
    put(tmp_path, *WORDS)
    write(tmp_path, "testing_list.txt", f"nine/{FIRST}_nohash_0.wav\n")
    tables = scan(tmp_path)
    assert [row["id"] for row in tables.missing] == [f"nine/{FIRST}_nohash_0.wav"]
    assert set(recordings(tables, "split").values()) == {"train"}
    put(tmp_path, "yes/odd.wav", "stray.wav")
    tables = scan(tmp_path)
    assert recordings(tables, "labels", "group")["yes/odd.wav"] == (["yes"], None)
    assert "stray.wav" not in recordings(tables, "labels")
    assert "1 recordings that are not words" in tables.remarks[0]


def test_a_separate_test_set_of_words_is_for_testing(lay):
    names = {"a/yes/0a_nohash_0.wav": "train", "speech_commands_test_set_v2/yes/0b_nohash_0.wav": "test"}
    assert recordings(registry.read("auto", lay(*names), 1), "split") == names
