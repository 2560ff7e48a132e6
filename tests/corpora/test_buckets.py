"""A corpus in a bucket is read as one in a folder, from a real server, which fails now and then."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from soundmill import exports
from soundmill.corpora import buckets, check, inventory, registry, survey
from soundmill.corpora.buckets import Bucket
from soundmill.corpora.sources import Sources
from soundmill.errors import UserError
from tests.buckets import Store, cut, ends_early, forbidden, loses_a_key, slow, unavailable
from tests.commands.running import works
from tests.corpora.test_round_trip import OTHERS
from tests.corpora.tiny import cell, put, sound, write, write_table
from tests.prepared import RATE, prepare

RECORDING = r"GET /[^ ?]+\.wav"
LISTING = r"list-type=2"


def of(root: Path | Bucket, **options) -> inventory.Inventory:
    return inventory.list_files(root, **options)


@pytest.mark.parametrize("name", sorted(set(exports.FORMATS) - OTHERS))
def test_every_format_reads_a_bucket_as_a_folder(tmp_path, bucket: Store, name):
    exports.export(prepare(tmp_path / "prepared"), name, tmp_path / "out", RATE)
    url = bucket.upload(tmp_path / "out", name.replace("_", "-"), "a prefix/of it")
    folder, remote = of(tmp_path / "out"), of(buckets.root_of(url, tmp_path))
    assert registry.detect(remote) == registry.detect(folder)
    expected, actual = registry.read("auto", folder, 4), registry.read("auto", remote, 4)
    assert actual.recordings
    assert asdict(actual) == asdict(expected)
    assert (remote.rejected, remote.ignored, remote.num_files) == (folder.rejected, folder.ignored, folder.num_files)


def test_odd_objects_are_ignored_or_refused_as_files_are(tmp_path, bucket):
    put(tmp_path, "a.wav", "Ü ?#%.wav", ".hidden/b.wav")
    write(tmp_path, "none.wav", b"")
    write(tmp_path, "noted", "only a text")
    write(tmp_path, "sound", sound(3))
    url = bucket.upload(tmp_path, "odd")
    for key in ("folder/", "two//slashes.wav", "x?versionId=1.wav"):
        bucket.put("odd", key, b"" if key.endswith("/") else b"RIFF")
    folder, remote = of(tmp_path), of(Bucket(url))
    assert remote.audio == folder.audio
    assert [file.path for file in remote.audio] == ["a.wav", "sound", "Ü ?#%.wav"]
    assert remote.ignored == {**folder.ignored, "folder markers": 1}
    unusable = {(row["path"], row["reason"]) for row in remote.rejected}
    assert unusable == {("none.wav", "empty"), ("two//slashes.wav", "unreadable"), ("x?versionId=1.wav", "unreadable")}


def test_a_prefix_is_a_folder_not_the_beginning_of_a_name(tmp_path, bucket):
    url = bucket.upload(put(tmp_path, "set/a.wav", "set2/b.wav"), "prefixes")
    assert [file.path for file in of(Bucket(f"{url}/set")).audio] == ["a.wav"]
    assert check.check(buckets.root_of(f"{url}/set/", tmp_path)).counts()["recordings"] == 1


def test_what_has_not_changed_is_listed_and_not_read_again(tmp_path, bucket):
    write(put(tmp_path, "a.wav", "b.wav"), "a.txt", "a dog")
    url, cache = bucket.upload(tmp_path, "again"), tmp_path / "digests.sqlite"
    before = of(Bucket(url), cache=cache)
    bucket.requests.clear()
    again = of(Bucket(url), cache=cache)
    assert (again.audio, again.metadata_digests(1)) == (before.audio, before.metadata_digests(1))
    assert all("list-type=2" in request for request in bucket.requests)
    bucket.put("again", "a.wav", sound(7))
    bucket.put("again", "a.txt", b"a cat")
    bucket.requests.clear()
    after = of(Bucket(url), cache=cache)
    assert [file.digest for file in after.audio] == [hashlib.sha256(sound(7)).hexdigest()[:32], before.audio[1].digest]
    assert after.metadata_digests(1) != before.metadata_digests(1)
    assert [request for request in bucket.requests if "list-type=2" not in request] == ["GET /again/a.wav bytes=0-4044"]


@pytest.mark.parametrize("fault", [ends_early, loses_a_key, cut, unavailable, slow])
def test_no_object_is_missing_from_a_listing_that_fails(tmp_path, bucket, monkeypatch, capsys, fault):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    url = bucket.upload(put(tmp_path, *(f"{number}.wav" for number in range(8))), fault.__name__.replace("_", "-"))
    bucket.fail(LISTING, fault, times=2)
    assert len(of(Bucket(url), digests=False).audio) == 8
    assert bucket.failures_left() == 0
    told = capsys.readouterr().err
    assert told.count("listing after") == {loses_a_key: 2, unavailable: 2}.get(fault, 0), told  # a cut one s3fs repeats


def test_a_listing_that_stays_incomplete_is_an_error_that_names_the_bucket_and_the_count(tmp_path, bucket):
    url = bucket.upload(put(tmp_path, "a.wav", "b.wav"), "incomplete")
    bucket.fail(LISTING, loses_a_key, times=100)
    with pytest.raises(UserError, match=r"s3://incomplete \(listing after ''\): failed 6 times, lastly:.*1 objects on a page of 2"):
        of(Bucket(url))


def test_a_server_that_stays_away_is_an_error_that_names_the_object(tmp_path, bucket):
    url = bucket.upload(put(tmp_path, "a.wav"), "away")
    bucket.fail(RECORDING, unavailable, times=100)
    with pytest.raises(UserError, match=r"s3://away/a.wav: failed 6 times, lastly: .*try later"):
        of(Bucket(url))


def test_an_object_that_changes_while_it_is_read_is_quarantined(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(buckets, "BLOCK_BYTES", 1000)
    url = bucket.upload(put(tmp_path, "a.wav", "b.wav", "c.wav", "d.wav"), "changing")
    longer = sound(9, seconds=0.5)

    def change(answer) -> None:
        for key, content in (("a.wav", sound(8)), ("b.wav", longer), ("c.wav", sound(8)[:500])):
            bucket.put("changing", key, content)
        bucket.client.delete_object(Bucket="changing", Key="d.wav")

    bucket.fail(LISTING, change)
    remote = of(Bucket(url))
    assert remote.audio == []
    assert {(row["path"], row["reason"]) for row in remote.rejected} == {(f"{name}.wav", "unreadable") for name in "abcd"}
    assert any("changed while" in row["detail"] for row in remote.rejected)


def test_a_bucket_that_is_not_there_or_not_allowed_is_named(tmp_path, bucket):
    with pytest.raises(UserError, match="s3://no-such-bucket: no such bucket or prefix"):
        of(Bucket("s3://no-such-bucket"))
    url = bucket.upload(put(tmp_path, "a.wav"), "forbidden")
    bucket.fail(LISTING, forbidden)
    with pytest.raises(UserError, match=r"s3://forbidden: cannot be listed: .*check your rights"):
        of(Bucket(url))
    bucket.fail(RECORDING, forbidden)
    assert [(row["path"], row["reason"]) for row in of(Bucket(url)).rejected] == [("a.wav", "unreadable")]
    with pytest.raises(UserError, match="no recording in s3://forbidden/nothing"):
        of(Bucket(f"{url}/nothing")).check_not_empty()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://KEY:hidden@bucket/x", "credentials in it"),
        ("ftp://bucket", "unknown; buckets are s3://, gs://, az://"),
        ("s3://", "not a bucket"),
        ("s3://bucket/x?part=1", "not a bucket"),
        ("s3://bucket/a/../b", "not a bucket"),
        ("s3://bucket//b", "not a bucket"),
    ],
)
def test_urls_that_cannot_be_read_are_refused_without_repeating_a_secret(tmp_path, url, said):
    with pytest.raises(UserError, match=said) as error:
        buckets.root_of(url, tmp_path)
    assert "corpus.path" in str(error.value)
    assert "hidden" not in str(error.value)


def test_recordings_inside_tables_are_read_by_range(tmp_path, bucket):
    write_table(tmp_path / "data.parquet", [cell(number) for number in range(12)], text=[f"sound {n}" for n in range(12)])
    url = bucket.upload(tmp_path, "tables")
    folder, remote = of(tmp_path, cache=tmp_path / "a.sqlite"), of(Bucket(url), cache=tmp_path / "b.sqlite")
    bucket.requests.clear()
    expected, actual = registry.read("auto", folder, 4), registry.read("auto", remote, 4)
    assert asdict(actual) == asdict(expected)
    assert len(bucket.requests) == 7  # the table is opened three times, and read once: pages are checked in what reading fetches
    sources = Sources({b"": url.encode()})
    for number, row in enumerate(actual.recordings):
        with sources.open(row["raw_path"], tmp_path) as path:
            assert Path(path.decode()).read_bytes() == sound(number)
    read = [request for request in bucket.requests if request.startswith("GET /tables/data.parquet")]
    assert read
    assert all(" bytes=" in request for request in read)


def test_small_texts_are_read_together(tmp_path, bucket, monkeypatch):
    """One by one, each would take a round trip."""
    for number in range(3):
        write(put(tmp_path, f"{number}.wav"), f"{number}.json", '{"prompt": "rain"}')
    remote, read, read_all = of(Bucket(bucket.upload(tmp_path, "together"))), [], buckets.read_all
    monkeypatch.setattr(buckets, "read_all", lambda places, most: read.append(len(places)) or read_all(places, most))
    assert len(registry.read("auto", remote, 4).captions) == 3
    assert read == [3]


def test_the_survey_of_a_bucket_is_that_of_a_folder(tmp_path, bucket):
    put(tmp_path / "sounds", *(f"{kind}/{number}.wav" for kind in ("dog", "rain") for number in range(3)))
    write(tmp_path / "sounds", "dog/1.txt", "a dog barks")
    url = bucket.upload(tmp_path / "sounds", "surveyed")
    expected, actual = survey.survey(tmp_path / "sounds"), survey.survey(Bucket(url))
    plain = [{**vars(one), "report": one.report.as_json() | {"path": ""}} for one in (expected, actual)]
    assert plain[0] == plain[1]
    actual.check_sound({"silence_dbfs": -90.0, "clip_seconds": 5.0})
    assert registry.read("folder", of(Bucket(url)), 4).recordings == registry.read("folder", of(tmp_path / "sounds"), 4).recordings


def test_commands_take_a_bucket_for_a_folder(tmp_path, bucket):
    url = bucket.upload(put(tmp_path / "sounds", "a.wav", "b.wav"), "commands")
    works("corpus", "check", url, "--json", "report.json", cwd=tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["path"] == url
