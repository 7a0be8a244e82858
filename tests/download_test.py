"""Downloads are verified, whole or not at all; tried against a server on this machine."""

import functools
import hashlib
import http.server
import io
import os
import re
import threading
import zipfile

import pytest

from metamf_jax.data import download, sources


def archive_bytes(folder="ml-100k", name="u.data", content="196\t242\t3\t881250949\n") -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(f"{folder}/{name}", content)
    return target.getvalue()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """The address of a server of the folder ``served``, and that folder."""
    served = tmp_path / "served"
    served.mkdir()
    handler = functools.partial(Quiet, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", served
        running.shutdown()
        thread.join()


@pytest.fixture
def offered(server, monkeypatch):
    """Offers bytes as ml100k under the right checksum, or under that of other bytes."""
    address, served = server

    def offer(content: bytes, expected: bytes | None = None):
        expected = content if expected is None else expected
        (served / "a.zip").write_bytes(content)
        archive = download.Archive(
            f"{address}/a.zip", len(expected), hashlib.sha256(expected).hexdigest(), "ml-100k"
        )
        monkeypatch.setitem(download.ARCHIVES, "ml100k", archive)

    return offer


def test_download_unpacks_what_the_loaders_read(offered, tmp_path, monkeypatch, capsys):
    offered(archive_bytes())
    data = tmp_path / "deep" / "data"
    assert download.download("ml100k", data) == data / "ml-100k"
    assert os.listdir(data) == ["ml-100k"]
    assert sources.load("ml100k", data).entries.values.tolist() == [3]
    # A second call keeps what is there, whatever the server has now.
    offered(b"junk")
    assert download.main(["ml100k", "--data_dir", str(data)]) == 0
    assert capsys.readouterr().out == f"{data / 'ml-100k'}\n"
    monkeypatch.setenv("METAMF_DATA_DIR", str(tmp_path / "other"))
    offered(archive_bytes())
    assert download.download("ml100k") == tmp_path / "other" / "ml-100k"


@pytest.mark.parametrize("change", ["altered", "cut", "longer"])
def test_another_archive_is_refused_and_not_kept(offered, tmp_path, change):
    good = archive_bytes()
    bad = {
        "altered": good[:40] + bytes([good[40] ^ 1]) + good[41:],
        "cut": good[:-1],
        "longer": good + b"x",
    }[change]
    offered(bad, expected=good)
    data = tmp_path / "data"
    sha = hashlib.sha256(good).hexdigest()
    with pytest.raises(
        ValueError, match=f"expected {len(good)} bytes with SHA-256 {sha}, got .*try"
    ):
        download.download("ml100k", data)
    assert os.listdir(data) == []


def test_an_archive_without_the_folder_is_refused(offered, tmp_path):
    offered(archive_bytes(folder="other"))
    with pytest.raises(ValueError, match="expected a folder ml-100k in the archive"):
        download.download("ml100k", tmp_path / "data")
    assert os.listdir(tmp_path / "data") == []


def test_members_cannot_leave_the_folder(offered, tmp_path):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("ml-100k/u.data", "1\t1\t1\t1\n")
        archive.writestr("../../escaped", "x")
    offered(target.getvalue())
    download.download("ml100k", tmp_path / "data")
    assert not [*tmp_path.rglob("escaped")]


def test_no_answer(server, tmp_path, monkeypatch):
    address, _ = server
    archive = download.Archive(f"{address}/none.zip", 1, "0" * 64, "ml-100k")
    monkeypatch.setitem(download.ARCHIVES, "ml100k", archive)
    with pytest.raises(ValueError, match=r"none\.zip: the download failed \(.*404.*try again, or"):
        download.download("ml100k", tmp_path)
    assert os.listdir(tmp_path) == ["served"]


def test_what_cannot_be_downloaded_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("METAMF_DATA_DIR", raising=False)
    with pytest.raises(ValueError, match=r"Excel workbook only; .*save it as jester-data-1.csv"):
        download.download("jester", tmp_path)
    with pytest.raises(ValueError, match="unknown data set 'x'; expected one of ml100k, ml1m, lat"):
        download.download("x", tmp_path)
    with pytest.raises(ValueError, match=r"no folder to download into; .*METAMF_DATA_DIR"):
        download.download("ml100k")
    assert download.main(["jester", "--data_dir", str(tmp_path)]) == 1
    assert "Excel workbook" in capsys.readouterr().err


def test_every_archive_has_a_checksum_over_https():
    for archive in download.ARCHIVES.values():
        assert archive.url.startswith("https://")
        assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
