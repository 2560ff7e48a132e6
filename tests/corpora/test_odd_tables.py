"""Tables, lists and names as people and programs write them: the inputs of ../shared/cases, and their brothers."""

import json
import unicodedata
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from soundmill.corpora import inventory
from soundmill.errors import UserError
from tests.commands.running import soundmill_alone
from tests.corpora.tiny import captions, filled, put, recordings, scan, write

NFC, NFD = (unicodedata.normalize(form, "Vögel") for form in ("NFC", "NFD"))
HEADER = "file_name,text\n"


def captions_of(files: dict[str, str | bytes], tmp_path, *sounds: str) -> tuple[dict[str, list[str]], str]:
    """Captions by path, and all remarks, of a corpus of these sounds and texts."""
    put(tmp_path, *(sounds or ("a.wav", "b.wav")))
    for name, text in files.items():
        write(tmp_path, name, text)
    tables = scan(tmp_path)
    return {path: texts for path, texts in captions(tables).items() if path}, "\n".join(tables.remarks)


def test_an_unclosed_quote_of_a_large_table_ends_with_its_line(shared):
    tables = scan(shared / "cases" / "09-unclosed-quote")
    found = captions(tables)
    outcome = [text for number in range(4) for text in found[f"train/c{number}.wav"]]
    assert outcome == ["rain on a roof", "a dog barks twice", "wind in trees", "a train passes"]
    assert len(tables.captions) == 3004
    assert "(first: line 3)" in tables.remarks[0]


def test_a_class_in_two_unicode_forms_is_one(shared):
    tables = scan(shared / "cases" / "11-unicode-forms" / "11-nfd-nfc")
    assert {label for row in tables.recordings for label in row["labels"]} == {"vögel", "regen"}


def test_fsd50k_is_read_with_its_labels_and_splits(shared):
    tables = scan(shared / "cases" / "17-fsd50k" / "20k-fsd50k")
    assert recordings(tables, "labels", "split") == {
        "FSD50K.dev_audio/63.wav": (["Electric guitar", "Guitar", "Music"], "train"),
        "FSD50K.dev_audio/64.wav": (["Bark"], "valid"),
        "FSD50K.dev_audio/65.wav": (["Rain"], "train"),
        "FSD50K.eval_audio/70.wav": (["Bark"], "test"),
        "FSD50K.eval_audio/71.wav": (["Rain"], "test"),
    }


@pytest.mark.parametrize(
    ("rows", "found", "remark"),
    [
        ('a.wav,"a dog\nb.wav,wind\n', {"a.wav": ["a dog"], "b.wav": ["wind"]}, "(first: line 2)"),
        ('a.wav,"a dog\nb.wav,"wind, rain"\n', {"a.wav": ["a dog"], "b.wav": ["wind, rain"]}, "(first: line 2)"),
        ('a.wav,wind\nb.wav,"a dog', {"a.wav": ["wind"], "b.wav": ["a dog"]}, "(first: line 3)"),
        ('"a.wav,a dog\nb.wav,wind\n', {"a.wav": ["a dog"], "b.wav": ["wind"]}, "(first: line 2)"),
        ('a.wav,"a dog\nb.wav,wind\nc.wav,rain"\n', {"a.wav": ["a dog"], "b.wav": ["wind"]}, "(first: line 2)"),
        ('a.wav,"a dog\nb.wav, then a cat"\n', {"a.wav": ["a dog b.wav, then a cat"]}, ""),
        ('a.wav,"a\ndog, barking"\nb.wav,wind\n', {"a.wav": ["a dog, barking"], "b.wav": ["wind"]}, ""),
        ('a.wav,"hi" she said\nb.wav,wind\n', {"a.wav": ["hi she said"], "b.wav": ["wind"]}, ""),
        ('a.wav,"say "hi" 5"" up"\nb.wav,"a "5" drum", loud"\n', {"a.wav": ['say "hi" 5" up'], "b.wav": ['a "5" drum", loud']}, ""),
        ('a.wav, "a dog, barking"\nb.wav,  "the ""wind""" \n', {"a.wav": ["a dog, barking"], "b.wav": ['the "wind"']}, ""),
        ("a.wav,a dog\nbarks loud\nb.wav,wind\n", {"b.wav": ["wind"]}, "lines 2 and 3"),
        ("a.wav,a dog\nbarks\nloud\nb.wav,wind\n", {"b.wav": ["wind"]}, "lines 2 and 3"),
        ("b.wav,wind\na.wav,a dog\nbarks\n", {"b.wav": ["wind"]}, "lines 3 and 4"),
        ("a.wav,a dog\nbarks, loud\nand, long\nb.wav,wind\n", {"b.wav": ["wind"]}, "lines 2 and 3"),
        ("a.wav,rain, then a dog\nbarks\nb.wav,wind\n", {"b.wav": ["wind"]}, "lines 2 and 3"),
        ("b.wav,wind\nc.wav,x\na.wav,as in the\nmovie.mp4, loud\n", {"b.wav": ["wind"]}, "lines 4 and 5"),
        ("b.wav,wind\nc.wav,x\na.wav,as in the\nold film.wav, loud\n", {"b.wav": ["wind"]}, "lines 4 and 5"),
        ("b.wav, wind\na,a dog\nc.mp3,x\nd.mp3, x\n", {"b.wav": ["wind"], "a.wav": ["a dog"]}, ""),
        ("a.wav\nb.wav,wind\n", {"b.wav": ["wind"]}, ""),
        ("b.wav,wind\na.wav\n", {"b.wav": ["wind"]}, ""),
        ("a.wav,unknown\nb.wav,#DIV/0!\n", {}, "2 captions are words for a missing value"),
        ('a.wav,Not available.\nb.wav,"""None"""\n', {}, "2 captions are words for a missing value"),
        ("a.wav,\\N\nb.wav,…\n", {}, "2 captions are words for a missing value"),
        ("a.wav,<unk>\nb.wav,。！「+」\n", {}, "2 captions are words for a missing value"),
        ("a.wav,nan gwaan\nb.wav,none of it\n", {"a.wav": ["nan gwaan"], "b.wav": ["none of it"]}, ""),
        ("\n\na.wav,a dog\n", {"a.wav": ["a dog"]}, ""),
    ],
)
def test_rows_that_people_write(tmp_path, rows, found, remark):
    texts, remarks = captions_of({"metadata.csv": HEADER + rows}, tmp_path)
    assert texts == found
    assert remark in remarks if remark else not remarks


@pytest.mark.parametrize(
    ("table", "remark"),
    [
        ('sep=;\r\nfile;text\r\na.wav;"a ""loud"" dog, near"\r\nb.wav;wind\r\n', ""),
        ('file|text\na.wav|"a ""loud"" dog, near"\nb.wav|wind\n', ""),
        ('# ours\n# of 2026\nfile,text\na.wav,"a ""loud"" dog, near"\nb.wav,wind\n', ""),
        ('file,text\na.wav,"a \\"loud\\" dog, near"\nb.wav,wind\n', ""),
        ('file,text,path\n"a.wav","a \\"loud\\" dog, near","c"\n"b.wav","wind","c"\n', ""),
        ('dir,file,text\n"C:\\x\\","a.wav","a ""loud"" dog, near"\n"C:\\x\\" ,"b.wav","wind"\n', ""),
        ('file,text\na.wav,"a ""loud"" dog, near"\n\ufeffFile,Text\nb.wav,wind\n', "1 rows that repeat the header"),
        ('file,text\r\na.wav,"a ""loud"" dog, near"\r\nb.wav,wind\r\n\x1a' + 99 * "\0", ""),
    ],
)
def test_tables_that_programs_write(tmp_path, table, remark):
    texts, remarks = captions_of({"m.csv": table}, tmp_path)
    assert texts == {"a.wav": ['a "loud" dog, near'], "b.wav": ["wind"]}
    assert remark in remarks if remark else not remarks


@pytest.mark.parametrize(
    "table",
    [
        "text,file_name\nwind blows,b.wav\na dog barks\nand howls,a.wav\n",
        "text,file_name\nwind blows,b.wav\nx,c.wav\na dog, loud\nand howls,a.wav\n",
        "file_name\ttext\nb.wav\twind blows\na.wav\ta dog\nbarks\tand howls\n",
        "file_name,text,label\na.wav,a dog\nbarks, loud,dog\nb.wav,wind blows,wind\n",
        "file_name,start,text,fold\nb.wav,0,wind blows,1\na.wav,3,a dog\nbarks,2\n",
        'file_name,"text,label\nb.wav,wind blows,wind\n',
        'file_name,text,label\nb.wav,"wind blows,wind\n',
        "b.wav,wind blows\nc d.wav,rain falls\na.wav,a dog\nbarks loud\n",
        "bpm,file_name,text,licence\n120,c.wav,x,y\nunknown,b.wav,wind blows\n90,a.wav,a dog\nbarks, and howls,y,z\n",
    ],
)
def test_a_broken_text_in_any_column_gives_no_caption(tmp_path, table):
    assert captions_of({"metadata.csv": table}, tmp_path)[0] == {"b.wav": ["wind blows"]}


def test_a_line_break_in_a_transcript_costs_its_row(tmp_path):
    lines = "a|One two.|one two\nb|Three\nfour.|three four\nc|Five.|five\nsix\n"
    put(tmp_path, "wavs/a.wav", "wavs/b.wav", "wavs/c.wav")
    write(tmp_path, "metadata.csv", lines)
    tables = scan(tmp_path, "ljspeech")
    assert captions(tables) == {"wavs/a.wav": ["one two"]}
    assert [row["detail"].split(":")[0] for row in tables.rejected] == ["line 2", "line 3", "line 4", "line 5"]


ENTRIES = [{"file_name": "a.wav", "text": "rain"}, {"file_name": "b.wav", "text": "wind"}]
LINES = "\n".join(map(json.dumps, ENTRIES))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    "text",
    [
        LINES,
        "\n" + LINES,
        json.dumps(ENTRIES),
        json.dumps(ENTRIES, indent=2),
        json.dumps({"version": 1, "data": ENTRIES}, indent=2),
        "\n".join(json.dumps(entry, indent=2) for entry in ENTRIES),
    ],
    ids=["lines", "blank", "array", "indented", "data", "objects"],
)
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.json"])
def test_json_is_read_by_what_it_is_not_by_its_name(tmp_path, name, text, encoding):
    assert captions_of({name: text.encode(encoding)}, tmp_path)[0] == {"a.wav": ["rain"], "b.wav": ["wind"]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sb.jsonl", '{"id": "a", "caption": "rain"}\n{"id": "b", "caption": "wind"}\n'),
        ("test.json", '[{"location": "a.wav", "captions": "rain"}, {"location": "b.wav", "captions": ["wind"]}]'),
        ("x.json", '[{"Uid": "a", "Caption": "rain"},\n{"Uid": "b", "Caption": "wind"}]'),
        ("x.jsonl", '{"Uid": "a", "Caption": "rain"}\n{"Uid": "b", "Caption": "wind"}'),
    ],
)
def test_entries_of_every_format_may_be_lines_or_a_list(tmp_path, name, text):
    assert captions_of({name: text}, tmp_path)[0] == {"a.wav": ["rain"], "b.wav": ["wind"]}


BROKEN = ('[{"file_name": "a.wav"},\n{"file_name": }]', 2), ('{\n"file_name": "a.wav",\n"text" "b"}', 3), (LINES + "\n{", 3)
SPARSE = "file_name" + "".join(f",c{number}" for number in range(20_000)) + "\n" + "a.wav\n" * 20_000


@pytest.mark.parametrize(("name", "text", "line"), [*(("metadata.jsonl", *one) for one in BROKEN), ("metadata.csv", SPARSE, 19)])
def test_what_is_broken_or_would_take_far_longer_than_its_size_is_named_with_its_line(tmp_path, name, text, line):
    put(tmp_path, "a.wav")
    write(tmp_path, name, text)
    with pytest.raises(UserError, match=rf"{name}:{line}: (not readable as JSON|the rows up to here lack)"):
        scan(tmp_path, "audiofolder")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    ("name", "text"),
    [("a.txt", "café\r\n"), ("a.json", '{"prompt": "café"}'), ("metadata.csv", "file_name,text\r\na.wav,café\r\n")],
)
def test_texts_in_every_encoding(tmp_path, name, text, encoding):
    found, remarks = captions_of({name: text.encode(encoding)}, tmp_path)
    assert found == {"a.wav": ["café"]}
    assert ("Windows-1252" in remarks) == (encoding == "cp1252")


@pytest.mark.parametrize(
    ("encoding", "text"), [("cp1251", "лает собака"), ("gb18030", "一只狗在叫"), ("shift_jis", "犬が吠えている")]
)
def test_texts_in_codes_of_other_alphabets_are_no_captions(tmp_path, encoding, text):
    put(tmp_path, "a.wav")
    write(tmp_path, "a.txt", text.encode(encoding))
    assert [row["reason"] for row in scan(tmp_path).rejected] == ["unreadable caption"]
    write(tmp_path, "metadata.csv", f"file_name,text\na.wav,{text}\n".encode(encoding))
    with pytest.raises(UserError, match=r"metadata\.csv: neither UTF-8 nor Windows-1252"):
        scan(tmp_path)


@pytest.mark.parametrize(("of_sound", "of_text"), [(NFC, NFD), (NFD, NFC)])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("@/@.txt", "birds"),
        ("@/@.json", '{"prompt": "birds"}'),
        ("metadata.csv", "file_name,text\n@/@.wav,birds\n"),
        ("@/metadata.csv", "file_name,text\n@.wav,birds\n"),
        ("x.json", '[{"id": "@", "caption": "birds"}]'),
        ("clotho_captions_development.csv", "file_name,caption_1\n@.wav,birds\n"),
        ("metadata.csv", "@|Birds|birds\n"),
    ],
)
def test_captions_find_sounds_in_another_unicode_form(tmp_path, name, text, of_sound, of_text):
    folder = "wavs" if "|" in text else of_sound
    name = name.replace("@/", f"{of_sound}/").replace("@", of_text)  # on disk these would be two folders, so it is beside the sound
    files = {name: text.replace("@", of_text)}
    assert captions_of(files, tmp_path, f"{folder}/{of_sound}.wav")[0] == {f"{folder}/{of_sound}.wav": ["birds"]}


def test_names_are_utf_8_in_every_locale(tmp_path, monkeypatch):
    put(tmp_path, "ü/ö.wav")
    write(tmp_path, "metadata.csv", "file_name,text\nü/ö.wav,birds\n")
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    assert "matched     1" in soundmill_alone("corpus", "check", ".", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", f"file_name,label\na.wav,{NFC}\nb.wav,{NFD}\n"),
        ("metadata.jsonl", f'{{"file_name": "a.wav", "labels": ["{NFC}", "{NFD}"]}}\n{{"file_name": "b.wav", "label": "{NFD}"}}'),
        ("esc50.csv", f"filename,fold,target,category\na.wav,1,0,{NFC.lower()}\nb.wav,1,0,{NFD.lower()}\n"),
        ("list.csv", f"FileName,Class\na.wav,{NFC}\nb.wav,{NFD}\n"),
        ("list.csv", f"FileName,Class\na.wav,{NFC}\nb.wav,\ufeff\u202a{NFC}\u202c\u200b\n"),
        ("list.csv", "FileName,Class\na.wav,3\nb.wav,3.0\n"),
        ("metadata.parquet", {"label": pa.array(["3", "3.0"]).cast(pa.string_view())}),
        ("metadata.parquet", {"label": pa.array([Decimal("3.00"), Decimal(3)])}),
    ],
)
def test_labels_of_a_table_that_are_written_in_two_ways_are_one(tmp_path, name, text):
    put(tmp_path, "a.wav", "b.wav")
    if isinstance(text, dict):
        pq.write_table(pa.table({"file_name": ["a.wav", "b.wav"], **text}), tmp_path / name)
    else:
        write(tmp_path, name, text)
    labels = [[label.lower() for label in row["labels"]] for row in scan(tmp_path).recordings]
    assert labels in ([[NFC.lower()]] * 2, [["3"]] * 2)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("NaN", []),
        ("null", []),
        ('"3.0"', ["3"]),
        ("0.5", ["0.5"]),
        ("Infinity", []),
        ("1e999999", []),
        ("true", []),
        ('{"a": 1}', []),
        ("[3.0, NaN, 3]", ["3"]),
        ('["N/A", "NaT", "n.a.", "(null)", "\\\\N", "—"]', []),
        ('["nat", "missing", "undefined", "name", "c++", "n"]', ["nat", "missing", "undefined", "name", "c++", "n"]),
        ('["<NA>", "{}", "dog"]', ["dog"]),
        *((f'"{of_two}"', ["dog", "it's"]) for of_two in (r"['dog'\n \"it's\"]", r"{'dog', \"it's\"}", r"('dog', \"it's\",)")),
        ("\"('dog') barks\"", ["('dog') barks"]),
        ('"unknown"', ["unknown"]),
        (r'["\u3164", "\u115f \uffa0", "\u2800\u1160", "\u200b", "\u034f", "\ud83d\udd14"]', ["🔔"]),
    ],
)
def test_values_that_may_be_classes(tmp_path, label, expected):
    put(tmp_path, "a.wav")
    write(tmp_path, "metadata.jsonl", f'{{"file_name": "a.wav", "text": "x", "label": {label}}}')
    assert recordings(scan(tmp_path), "labels") == {"a.wav": expected}


def test_folders_may_be_called_as_words_for_nothing(tmp_path):
    names = ("none/a.wav", "nan/b.wav", "unknown/c.wav")
    assert recordings(scan(put(tmp_path, *names)), "labels") == {name: [name.split("/")[0]] for name in names}


@pytest.mark.parametrize("number", ["1e999999", "9" * 400, "-Infinity", "9" * 5000])
def test_a_start_that_no_recording_has_is_left_out_or_named(tmp_path, number):
    put(tmp_path, "r1nicOVtvkQ.wav")
    write(tmp_path, "metadata.jsonl", f'{{"file_name": "r1nicOVtvkQ.wav", "ytid": "r1nicOVtvkQ", "start": {number}, "text": "x"}}')
    if len(number) > 4300:  # what Python reads as a number
        with pytest.raises(UserError, match=r"metadata\.jsonl:1: not readable as JSON"):
            scan(tmp_path)
    else:
        assert recordings(scan(tmp_path), "start_time") == {"r1nicOVtvkQ.wav": 0.0}


def test_licences_name_paths_in_either_unicode_form(tmp_path):
    put(tmp_path, f"{NFD}.wav")
    write(tmp_path, "licences.csv", f"glob,licence,creator,source_url,ai_terms\n{NFC}.wav,CC0-1.0,,,\n")
    tables = filled(inventory.list_files(tmp_path), "auto")
    assert [row["licence"] for row in tables.recordings] == ["CC0-1.0"]
