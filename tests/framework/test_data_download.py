"""Downloads, from a server on this machine: right, wrong hash, too large, cut off, not there."""

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from framework.data import DataError, RemoteFile, cache_folder, data_folder
from framework.data.download import download
from framework.data.files import fetch, locate

BODY = bytes(range(256)) * 3000  # three pieces
SIZE = len(BODY)
SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://example.com/file")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(SIZE))
        self.end_headers()
        self.wfile.write(BODY[:1000] if self.path == "/cut" else BODY)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FRAMEWORK_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")


def remote(server, *paths, size=SIZE, digest=SHA256):
    return RemoteFile("file.gz", size, digest, tuple(server.url + path for path in paths))


def left_behind():
    return [p for p in cache_folder().rglob("*") if p.is_file()] if cache_folder().exists() else []


@pytest.mark.parametrize("digest", [SHA256, MD5, SHA256.replace(SHA256[7:], SHA256[7:].upper())])
def test_a_file_is_downloaded_once(server, digest):
    file = remote(server, "/file", digest=digest)
    path = fetch("set", file)
    assert path == cache_folder() / "set" / "file.gz" and path.read_bytes() == BODY
    assert fetch("set", file) == path
    assert server.asked == ["/file"] and left_behind() == [path]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_download_is_flushed_and_has_the_usual_permissions(server, tmp_path, monkeypatch):
    flush, flushed = os.fsync, []

    def spy(handle):
        flush(handle)
        flushed.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fsync", spy)
    path = fetch("set", remote(server, "/file"))
    (tmp_path / "plain").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert flushed == [SIZE]


@pytest.mark.parametrize(
    ("path", "how", "reason"),
    [
        ("/file", {"digest": "sha256:" + "0" * 64}, "wrong sha256 .*, expected 0000"),
        ("/file", {"digest": "md5:" + "0" * 32}, "wrong md5"),
        ("/file", {"size": SIZE - 1}, f"more than the {SIZE - 1} bytes of file.gz"),
        ("/file", {"size": SIZE + 1}, f"ended after {SIZE} of {SIZE + 1} bytes"),
        ("/cut", {}, "ended after 1000 of 768000 bytes"),
        ("/missing", {}, "HTTP 404"),
        ("/elsewhere", {}, "http://example.com/file: not https"),
        ("/file", {"digest": "crc32:00"}, "digest is 'crc32:00', expected"),
    ],
)
def test_a_wrong_file_is_never_kept(server, path, how, reason):
    with pytest.raises(DataError, match=reason) as caught:
        fetch("set", remote(server, path, **how))
    message = str(caught.value)
    assert "file.gz could not be downloaded" in message and "\n" not in message
    assert "variable FRAMEWORK_DATA then has to name: FRAMEWORK_DATA=/path/to/data for" in message
    assert left_behind() == []


def test_the_next_url_is_tried(server):
    path = fetch("set", remote(server, "/missing", "/cut", "/file"))
    assert path.read_bytes() == BODY and server.asked == ["/missing", "/cut", "/file"]
    assert left_behind() == [path]


def test_an_older_file_survives_a_failed_download(server):
    target = cache_folder() / "set" / "file.gz"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"old")
    with pytest.raises(DataError, match="ended after"):
        download(server.url + "/cut", target, remote(server, "/cut"))
    assert target.read_bytes() == b"old" and left_behind() == [target]


@pytest.mark.parametrize(
    "url", ["http://example.com/a", "ftp://example.com/a", "file:///etc/hosts"]
)
def test_only_https_from_other_machines(url):
    with pytest.raises(DataError, match="not https"):
        fetch("set", RemoteFile("a", 1, SHA256, (url,)))


def test_no_server_is_one_line():
    with pytest.raises(DataError, match="could not be downloaded: http://127.0.0.1:9/a: "):
        fetch("set", RemoteFile("a", 1, SHA256, ("http://127.0.0.1:9/a",)))


def test_a_cache_that_cannot_be_written_is_one_line(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="could not be downloaded"):
        fetch("set", remote(server, "/file"))


def test_the_users_folder_comes_first_and_may_hold_unpacked_files(tmp_path, monkeypatch):
    cached = cache_folder() / "set" / "file.gz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"cached")
    assert locate("set", "file.gz") == cached
    own = tmp_path / "own" / "set" / "file"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"own")
    monkeypatch.setenv("FRAMEWORK_DATA", str(tmp_path / "own"))
    assert locate("set", "file.gz") == own
    assert locate("set", "other.gz") is None


def test_framework_data_must_be_a_folder(tmp_path, monkeypatch):
    assert data_folder() is None
    monkeypatch.setenv("FRAMEWORK_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="FRAMEWORK_DATA is .*nowhere', which is not a folder"):
        fetch("set", RemoteFile("a", 1, SHA256, ()))


def test_where_to_put_a_file_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("FRAMEWORK_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        fetch("set", RemoteFile("a", 1, SHA256, ("http://127.0.0.1:9/a",)))
    assert str(caught.value).endswith(f"put it into {tmp_path / 'set'}")
