"""Fetching of data files, from a server on this machine."""

import dataclasses
import hashlib
import http.server
import io
import re
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import datasets
from benchmarks.sources import ENVIRONMENT_VARIABLE, Source, data_folder, verified
from benchmarks.tables import TABLES

CONTENT = bytes(range(256)) * 1000


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` by path; answers begin where a range says. Sends no more than ``cut`` bytes of each answer."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cut, self.requests = files, None, []

    def source(self, path, content=CONTENT, member=None, sha256=None):
        sha256 = sha256 or hashlib.sha256(content).hexdigest()
        return Source(
            "set/data.bin", sha256, "https://example.org/home", f"http://127.0.0.1:{self.server_port}{path}", member
        )


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.server.files.get(self.path)
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.server.requests.append((self.path, start))
        if content is None or (start and start >= len(content)):
            self.send_error(404 if content is None else 416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server({"/data.bin": CONTENT}) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(**members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_a_file_is_fetched_once_and_kept(server, tmp_path):
    source = server.source("/data.bin")
    assert verified(source, tmp_path) == verified(source, tmp_path) == CONTENT
    assert server.requests == [("/data.bin", 0)]
    assert (tmp_path / source.path).read_bytes() == CONTENT
    assert files_in(tmp_path) == ["data.bin"]


def test_those_who_ask_at_the_same_time_share_one_transfer(server, tmp_path):
    source = server.source("/data.bin")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(verified, [source] * 4, [tmp_path] * 4)) == [CONTENT] * 4
    assert len(server.requests) == 1


def test_a_folder_that_holds_the_file_is_used_as_it_is(server, tmp_path, monkeypatch):
    source = server.source("/data.bin")
    (tmp_path / "set").mkdir()
    (tmp_path / source.path).write_bytes(CONTENT)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    assert verified(source) == CONTENT
    assert server.requests == []
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "set", tmp_path / source.path]
    assert data_folder("elsewhere").name == "elsewhere"
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    assert data_folder().name == "laplace-fiber"


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_members_of_an_archive_need_one_transfer(pack, server, tmp_path):
    server.files["/some+set.zip"] = pack(first=CONTENT, second=b"other")
    first = server.source("/some+set.zip", member="first")
    second = dataclasses.replace(server.source("/some+set.zip", b"other", "second"), path="set/other.bin")
    assert verified(first, tmp_path) == CONTENT
    assert verified(second, tmp_path) == b"other"
    assert len(server.requests) == 1
    assert files_in(tmp_path) == ["data.bin", "other.bin", "some+set.zip"]


def test_a_member_packed_with_compress_is_unpacked(server, tmp_path):
    text = b"1.25,-0.30,2\n"
    # Codes of nine bits, least significant first: of a short text, one literal each.
    bits = sum(byte << (9 * i) for i, byte in enumerate(text))
    packed = b"\x1f\x9d\x90" + bits.to_bytes((9 * len(text) + 7) // 8, "little")
    server.files["/wave.zip"] = zipped(**{"wave.data.Z": packed})
    assert verified(server.source("/wave.zip", text, "wave.data.Z"), tmp_path) == text


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    source = server.source("/data.bin", sha256="0" * 64)
    with pytest.raises(ValueError, match=r"data\.bin should have sha256 0+, but has .*example\.org/home"):
        verified(source, tmp_path)
    assert files_in(tmp_path) == []
    server.files["/set.zip"] = zipped(member=CONTENT)
    with pytest.raises(ValueError, match=r"set\.zip \(member\) should have sha256"):
        verified(server.source("/set.zip", member="member", sha256="0" * 64), tmp_path)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("content", [b"no archive", tarred(member=CONTENT)[:200], zipped(other=CONTENT)])
def test_an_archive_that_cannot_be_used_is_told_and_deleted(content, server, tmp_path):
    server.files["/set.zip"] = content
    with pytest.raises(FileNotFoundError, match="cannot be read or lacks the member"):
        verified(server.source("/set.zip", member="member"), tmp_path)
    assert files_in(tmp_path) == []


def test_an_interrupted_transfer_is_continued(server, tmp_path):
    source = server.source("/data.bin")
    server.cut = 100_000
    with pytest.raises(FileNotFoundError, match="ended after 100000 of 256000 bytes; run again"):
        verified(source, tmp_path)
    assert files_in(tmp_path) == ["data.bin.part"]
    server.cut = None
    assert verified(source, tmp_path) == CONTENT
    assert server.requests == [("/data.bin", 0), ("/data.bin", 100_000)]
    assert files_in(tmp_path) == ["data.bin"]


def test_what_was_begun_with_another_version_does_not_stay(server, tmp_path):
    part = tmp_path / "set" / "data.bin.part"
    part.parent.mkdir()
    for begun in (b"another version", b"x" * (len(CONTENT) + 1)):
        part.write_bytes(begun)
        with pytest.raises(ValueError, match="another version or damaged"):
            verified(server.source("/data.bin"), tmp_path)
        assert files_in(tmp_path) == []
    assert verified(server.source("/data.bin"), tmp_path) == CONTENT


def test_a_file_that_cannot_be_fetched_is_told_how_to_get(server, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set/data\.bin.*example\.org.*--data-dir.*404"):
        verified(server.source("/nothing"), tmp_path)
    without_server = dataclasses.replace(server.source("", member="inside"), address="http://127.0.0.1:9/set.zip")
    with pytest.raises(FileNotFoundError, match=r"member inside of an archive.*refused"):
        verified(without_server, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train_inputs.*snelson"):
        verified(datasets.SNELSON["train_inputs"], tmp_path)


def test_every_table_has_an_official_address():
    for table in TABLES.values():
        assert table.source.address.startswith("https://")
        assert len(table.source.sha256) == 64
