"""Terms in the tables, JSON files and lists that corpora bring, in the form that they are published in."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from soundmill.corpora import inventory
from soundmill.manifest import TERMS
from tests.corpora.tiny import filled

CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"
BY3 = "http://creativecommons.org/licenses/by/3.0/"


def found_in(files: inventory.Inventory, format: str = "auto") -> dict[str, tuple]:
    return {row["path"]: tuple(row[column] for column in TERMS) for row in filled(files, format).recordings}


def test_fsd50k(lay):
    sampling, table = "http://creativecommons.org/licenses/sampling+/1.0/", "FSD50K.metadata/dev_clips_info_FSD50K.json"
    clips = {
        "64760": {"title": "a", "description": "by x", "tags": ["t"], "license": BY3, "uploader": "ann"},
        "21914": {"title": "b", "license": sampling, "uploader": "bob"},
    }
    names = ("FSD50K.dev_audio/64760.wav", "FSD50K.dev_audio/21914.wav", "FSD50K.eval_audio/1.wav")
    assert found_in(lay(*names, **{table: clips})) == {
        names[1]: (sampling, "bob", None, None, f"{table}:21914"),
        names[0]: ("CC-BY-3.0", "ann", None, None, f"{table}:64760"),
        names[2]: (None, None, None, None, None),
    }


def test_clotho_has_files_of_one_name_in_two_splits(lay):
    head = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
    people = "https://freesound.org/people"
    texts = {
        "clotho_captions_development.csv": "file_name,caption_1\nRain &amp; wind.wav,rain\nb.wav,b\n",
        "clotho_captions_evaluation.csv": "file_name,caption_1\nRain &amp; wind.wav,other rain\n",
        "clotho_metadata_development.csv": head
        + f'Rain &amp; wind.wav,"rain;wind",1,{people}/ann/sounds/1,"[0, 9]",ann,{BY3}\n'
        + "b.wav,b,Not found,Not found,,Not found,Not found\n",
        "clotho_metadata_evaluation.csv": head + f"Rain &amp; wind.wav,rain,2,{people}/bob/sounds/2,,bob,{CC0}\n",
    }
    assert found_in(lay("development/Rain & wind.wav", "development/b.wav", "evaluation/Rain & wind.wav", **texts)) == {
        "development/Rain & wind.wav": ("CC-BY-3.0", "ann", f"{people}/ann/sounds/1", None, "clotho_metadata_development.csv:2"),
        "development/b.wav": (None,) * 5,
        "evaluation/Rain & wind.wav": ("CC0-1.0", "bob", f"{people}/bob/sounds/2", None, "clotho_metadata_evaluation.csv:2"),
    }


def test_wavcaps_has_numbers_of_two_sources_and_no_licence_of_its_card(lay):
    sounds = "https://freesound.org/people/Tempouser/sounds/180913/"
    free = {"id": "180913", "file_name": "UK Mello.wav", "href": "/people/Tempouser/sounds/180913/", "author": "Tempouser"}
    free |= {"download_link": f"{sounds}download/180913__tempouser__uk-mello.wav", "caption": "A ringtone.", "audio": "wav_path"}
    grab = "https://soundbible.com/grab.php?id=2219&type=wav"
    bible = {"id": "180913", "title": "Plane", "href": "2219-Airplane.html", "author": "Daniel Simion"}
    bible |= {"download_link": grab, "caption": "A plane lands."}
    files = lay(
        "FreeSound/180913.flac",
        "SoundBible/180913.flac",
        "AudioSet/Y--0w1YA1Hm4.flac",
        **{
            "README.md": "---\nlicense: cc-by-4.0\n---\n",
            "json_files/FreeSound/fsd_final.json": {"num_captions_per_audio": 1, "data": [free]},
            "json_files/SoundBible/sb_final.json": {"num_captions_per_audio": 1, "data": [bible]},
            "json_files/AudioSet/as_final.json": {"data": [{"id": "Y--0w1YA1Hm4.wav", "caption": "c", "audio": "wav_path"}]},
        },
    )
    assert found_in(files, "wavcaps") == {
        "AudioSet/Y--0w1YA1Hm4.flac": (None, None, "https://www.youtube.com/watch?v=--0w1YA1Hm4", None, "its YouTube id"),
        "FreeSound/180913.flac": (None, "Tempouser", sounds, None, "json_files/FreeSound/fsd_final.json:data[0]"),
        "SoundBible/180913.flac": (None, "Daniel Simion", grab, None, "json_files/SoundBible/sb_final.json:data[0]"),
    }


def test_audiocaps_has_addresses_and_not_the_licence_of_its_captions(lay):
    rows = "audiocap_id,youtube_id,start_time,caption\n1,rqfQRErjfk8,170,a crowd\n"
    files = lay("train/rqfQRErjfk8_170.wav", "train/Rain.wav", **{"train.csv": rows, "LICENSE": CC0})
    assert found_in(files, "audiocaps") == {
        "train/Rain.wav": ("CC0-1.0", None, None, None, "LICENSE"),
        "train/rqfQRErjfk8_170.wav": (None, None, "https://www.youtube.com/watch?v=rqfQRErjfk8", None, "its YouTube id"),
    }


def test_mtg_jamendo(lay):
    meta = "TRACK_ID\tARTIST_ID\tALBUM_ID\tTRACK_NAME\tARTIST_NAME\tALBUM_NAME\tRELEASEDATE\tURL\n"
    meta += "track_0000214\tartist_000014\talbum_000031\tYou, too\tAXL & ARTH\tMad\t2004-12-28\thttp://www.jamendo.com/track/214\n"
    meta += "track_0000215\tartist_000014\talbum_000031\tB\tAXL\tMad\t2004-12-28\thttp://www.jamendo.com/track/215\n"
    listed = (
        "14/214.mp3\nYou, too by AXL & ARTH from Jamendo: http://www.jamendo.com/track/214\n"
        "Available under a Creative Commons Attribution-NonCommercial license: http://creativecommons.org/licenses/by-nc/2.5/\n\n"
        "15/215.mp3\nB by AXL from Jamendo: http://www.jamendo.com/track/215\n"
        "Available under a Free Art License license: http://artlibre.org/licence/lal\n"
    )
    texts = {"data/raw.meta.tsv": meta, "audio_licenses.txt": listed}
    track, stated = "http://www.jamendo.com/track", "licence, source_url: audio_licenses.txt:{}; creator: data/raw.meta.tsv:{}"
    assert found_in(lay("audio/14/214.mp3", "audio/15/215.low.mp3", "audio/14/14.mp3", **texts)) == {
        "audio/14/14.mp3": (None,) * 5,
        "audio/14/214.mp3": ("CC-BY-NC-2.5", "AXL & ARTH", f"{track}/214", None, stated.format(1, 2)),
        "audio/15/215.low.mp3": ("http://artlibre.org/licence/lal", "AXL", f"{track}/215", None, stated.format(5, 3)),
    }


def test_nsynth_as_published_and_not_notes_of_ones_own(lay):
    notes = {name: {"instrument_family_str": "bass"} for name in ("bass_synthetic_033-022-050", "mine")}
    root = "nsynth-train"
    files = lay(*(f"{root}/audio/{name}.wav" for name in notes), **{f"{root}/examples.json": notes})
    licences = {path: found[0::4] for path, found in found_in(files, "nsynth").items()}
    assert licences == {
        f"{root}/audio/bass_synthetic_033-022-050.wav": ("CC-BY-4.0", "published with NSynth"),
        f"{root}/audio/mine.wav": (None, None),
    }


def test_freesound_pages_and_json_beside_recordings(lay):
    sound = {"id": 7, "name": "Dog.wav", "license": "Attribution NonCommercial", "username": "ann"}
    sound["url"] = "https://freesound.org/s/7/"
    own = {"id": "x", "uploader": "Bob", "webpage_url": "https://example.org/9", "license": "CC BY 4.0", "url": "javascript:1"}
    page = {"count": 2, "next": None, "results": [sound, {"id": 8, "license": CC0, "username": "eve"}]}
    files = lay("dog/7__ann__dog.wav", "dog/8.wav", "sub/y.wav", "y.wav", **{"page.json": page, "sub/y.info.json": own})
    assert found_in(files, "folder") == {
        "dog/7__ann__dog.wav": ("CC-BY-NC", "ann", "https://freesound.org/s/7/", None, "page.json:results[0]"),
        "dog/8.wav": ("CC0-1.0", "eve", None, None, "page.json:results[1]"),
        "sub/y.wav": ("CC-BY-4.0", "Bob", "https://example.org/9", None, "sub/y.info.json"),
        "y.wav": (None,) * 5,
    }


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_columns_of_hugging_face(lay, tmp_path, suffix):
    rows = [
        {"file_name": "a.wav", "text": "a", "license": "cc-by-nc-4.0", "creator": "Ann", "url": "https://a.org/1", "ai_terms": ""},
        {"file_name": "b.wav", "text": "b", "license": "cc0-1.0", "creator": "", "url": "", "ai_terms": "refused"},
    ]
    lay("a.wav", "b.wav", "c.wav", **{"README.md": "---\nlicense: mit\n---\n"})
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    elif suffix == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        (tmp_path / "metadata.csv").write_text("\n".join(lines))
    else:
        lay(**{"metadata.jsonl": "\n".join(str(row).replace("'", '"') for row in rows)})
    found = found_in(inventory.list_files(tmp_path), "audiofolder")
    assert {path: values[:4] for path, values in found.items()} == {
        "a.wav": ("CC-BY-NC-4.0", "Ann", "https://a.org/1", None),
        "b.wav": ("CC0-1.0", None, None, "refused"),
        "c.wav": ("mit", None, None, None),
    }


def test_each_column_has_the_place_that_states_it(lay):
    rows = "filename,uploader,url,license\na.wav,Ann,https://a.org,\nb.wav,Bob,https://b.org,CC BY 4.0\n"
    found = found_in(lay("sub/a.wav", "sub/b.wav", "sub/c.wav", **{"sub/LICENSE": "CC0 1.0", "sub/meta.csv": rows}), "folder")
    assert {path: values[-1] for path, values in found.items()} == {
        "sub/a.wav": "creator, source_url: sub/meta.csv:2; licence: sub/LICENSE",
        "sub/b.wav": "sub/meta.csv:3",
        "sub/c.wav": "sub/LICENSE",
    }


def test_rows_of_an_embedded_recording_and_the_stricter_of_two(tmp_path):
    names = ("one.wav", "one.wav", "two.wav")
    stated = ("cc-by-4.0", "cc-by-nc-4.0", None)
    rows = [
        {"audio": {"bytes": b"RIFF" + name.encode(), "path": name}, "text": str(number), "license": licence, "artist": ["Ann"]}
        for number, (name, licence) in enumerate(zip(names, stated, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    both = "licence, creator: train.parquet#0 (CC-BY-4.0); licence: train.parquet#1 (CC-BY-NC-4.0)"
    assert list(found_in(inventory.list_files(tmp_path)).values()) == [
        ("CC-BY-NC-4.0", "Ann", None, None, both),
        (None, "Ann", None, None, "train.parquet#2"),
    ]


@pytest.mark.parametrize(
    ("values", "terms"),
    [
        ({"ai_terms": "Refused"}, ("CC0-1.0", "refused")),
        ({"ai_terms": "no"}, ("CC0-1.0", None)),
        ({"ai_terms": ["allowed", "refused"]}, ("CC0-1.0", "refused")),
        ({"license": "other"}, ("unknown", None)),
        ({"license": "Unclear"}, ("unknown", None)),
        ({"license": "other", "license_name": "mine"}, ("mine", None)),
        ({"license": ["CC BY-NC 4.0", "CC BY 4.0"]}, ("CC-BY-NC-4.0", None)),
        ({"license": ["CC0", "other"]}, ("unknown", None)),
        ({"license": "x" * 5000}, ("unknown", None)),
        ({"copyright": "CC BY-NC 4.0, or CC BY 4.0"}, ("unknown", None)),
    ],
)
def test_what_is_stated_but_unclear_is_not_replaced_by_the_licence_of_the_folder(lay, values, terms):
    found = found_in(lay("a.wav", **{"LICENSE": "CC0 1.0", "list.json": [{"file": "a.wav", **values}]}), "folder")
    assert found["a.wav"][0::3] == terms


def test_terms_of_a_name_with_several_meanings_hold_back_each(lay):
    texts = {"LICENSE": "CC0 1.0", "l/t.csv": "file,license,ai_terms\na.wav,CC BY-NC,refused\n"}
    files = lay("rain/a.wav", "x/a.wav", "b.wav", **texts)
    tables = filled(files)
    unclear, clear = ("unknown", "refused"), ("CC0-1.0", None)
    found = {row["path"]: (row["licence"], row["ai_terms"]) for row in tables.recordings}
    assert found == {"b.wav": clear, "rain/a.wav": unclear, "x/a.wav": unclear}
    assert [remark for remark in tables.remarks if remark.startswith("1 names in rows with terms have several meanings")]


def test_tables_that_cannot_be_read_are_named_and_stop_nothing(lay):
    long = "x" * 5000
    texts = {"deep.json": "[" * 5000 + '"license": 1', "long.csv": f"filename,license,artist\na.wav,{long},Ann\n"}
    texts["huge.csv"] = f"filename,license\nb.wav,CC0\na.wav,{'x' * (1 << 20)}\n"
    files = lay("a.wav", "b.wav", **texts, **{"null.csv": b"filename,license\na.wav,CC\x000\n"})
    tables = filled(files)
    found = {row["path"]: (row["licence"], row["creator"]) for row in tables.recordings}
    assert found == {"a.wav": ("unknown", "Ann"), "b.wav": ("CC0-1.0", None)}
    remarks = "\n".join(tables.remarks)
    for named in ("deep.json", "huge.csv:3", "null.csv", "1 texts about terms have more than 4096 characters"):
        assert named in remarks
