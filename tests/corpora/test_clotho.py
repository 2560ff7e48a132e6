"""Clotho as published: free-text names, five captions, a csv and a folder for each split."""

import pytest

from tests.corpora.tiny import captions, detected, put, recordings, scan, write

HEADER = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"


@pytest.fixture
def corpus(tmp_path):
    put(
        tmp_path,
        "development/Distorted AM Radio noise.wav",
        "development/rain, then 'wind'.wav",
        "development/door.wav",
        "validation/door.wav",
        "evaluation/Ünder water.wav",
    )
    write(
        tmp_path,
        "clotho_captions_development.csv",
        HEADER
        + "Distorted AM Radio noise.wav,Noise hums.,A radio hums,c,d,e\r\n"
        + '"rain, then &#39;wind&#39;.wav",Rain,"Rain, then wind",,,\r\n'
        + "door.wav,A door,a,b,c,d\r\ngone.wav,Lost,a,b,c,d\r\n",
    )
    write(tmp_path, "clotho_captions_validation.csv", HEADER + "door.wav,Another door,a,b,c,d\n")
    write(tmp_path, "clotho_captions_evaluation.csv", "\ufeff" + HEADER + "Ünder water.wav,Bubbles,a,b,c,d\n")
    return tmp_path


def test_captions_go_to_the_file_of_that_name_in_the_folder_of_the_split(corpus):
    assert detected(corpus) == "clotho"
    tables = scan(corpus)
    assert recordings(tables, "split") == {
        "development/Distorted AM Radio noise.wav": "train",
        "development/door.wav": "train",
        "development/rain, then 'wind'.wav": "train",
        "evaluation/Ünder water.wav": "test",
        "validation/door.wav": "valid",
    }
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
def test_the_freesound_original_is_the_group(corpus, number):
    latin = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
    rows = f'door.wav,door;wood,{number},https://freesound.org/people/Ren\xe9,"[0, 1]",Ren\xe9,CC0\nx.wav,,Not found,,,,\n'
    write(corpus, "clotho_metadata_development.csv", (latin + rows).encode("latin-1"))
    groups = recordings(scan(corpus), "group")
    assert groups["development/door.wav"] == "1234"
    assert groups["validation/door.wav"] is None


def test_lists_of_youtube_clips_with_the_same_columns_are_not_clotho(tmp_path):
    put(tmp_path, "Yr1nicOVtvkQ.wav")
    write(tmp_path, "captions.csv", HEADER + "Yr1nicOVtvkQ.wav,a,b,c,d,e\n")
    assert detected(tmp_path) != "clotho"


def test_splits_in_plain_words_are_kept_and_keep_files_of_one_name_apart(tmp_path):
    put(tmp_path, "train/x.wav", "test/x.wav", "train/rain in town.wav")
    write(tmp_path, "train.csv", HEADER + "x.wav,A dog,b,,,\nrain in town.wav,Rain,,,,\n")
    write(tmp_path, "test.csv", HEADER + "x.wav,A gun,d,,,\n")
    tables = scan(tmp_path)
    assert recordings(tables, "split") == {"test/x.wav": "test", "train/rain in town.wav": "train", "train/x.wav": "train"}
    assert captions(tables) == {"test/x.wav": ["A gun", "d"], "train/x.wav": ["A dog", "b"], "train/rain in town.wav": ["Rain"]}
    assert not tables.ambiguous


@pytest.mark.parametrize(("first", "meaning"), [("dev", "train"), ("train", "valid")])
def test_what_dev_is_follows_from_what_else_there_is(tmp_path, first, meaning):
    """Clotho's is for development; beside a training set it is to validate with. `eval` ends with `val`, and is not it."""
    names = dict.fromkeys([first, "dev", "val", "eval"])
    put(tmp_path, *(f"{name}/x.wav" for name in names))
    for name in names:
        write(tmp_path, f"{name}.csv", HEADER + f"x.wav,{name} sound,,,,\n")
    tables = scan(tmp_path)
    assert captions(tables) == {f"{name}/x.wav": [f"{name} sound"] for name in names}
    assert recordings(tables, "split") | {"dev/x.wav": meaning, "eval/x.wav": "test"} == recordings(tables, "split")


def test_what_no_csv_names_has_the_split_of_its_folder(corpus):
    """Clotho's test part has no captions; what is dealt out would be trained on."""
    put(corpus, "test/a.wav", "test_retrieval_audio/b.wav", "development/c.wav", "extra/d.wav", "e.wav")
    splits = recordings(scan(corpus), "split")
    assert {
        name: split for name, split in splits.items() if name.rpartition("/")[2] in ("a.wav", "b.wav", "c.wav", "d.wav", "e.wav")
    } == {
        "test/a.wav": "test",
        "test_retrieval_audio/b.wav": "test",
        "development/c.wav": "train",
        "extra/d.wav": None,
        "e.wav": None,
    }
