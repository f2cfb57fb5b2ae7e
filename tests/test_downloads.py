import errno
import hashlib
import http.server
import json
import logging
import os
import threading
import time
from dataclasses import replace

import gdown
import pytest
from gdown.exceptions import DownloadError, FileURLRetrievalError

from spai import downloads, weights
from tests.gdown_host import CONTENT, HTML, SHA256, Host, listing, put, tiny_registry  # noqa: F401

pytestmark = pytest.mark.usefixtures("tiny_registry")

GDOWN = downloads._gdown

# Downloads


def test_a_download_gives_the_file_and_leaves_nothing_else(monkeypatch, capsys):
    host = Host(monkeypatch)
    path = downloads.download("spai")
    assert path == weights.home() / "spai.pth" == weights.find_weights("spai")
    assert path.read_bytes() == CONTENT
    assert listing(path.parent) == ["spai.pth"]
    assert host.calls == 1
    assert capsys.readouterr().out == ""


def test_a_download_goes_where_it_is_told(monkeypatch, tmp_path):
    Host(monkeypatch)
    assert downloads.download("spai", destination=tmp_path / "a" / "b") == tmp_path / "a/b/spai.pth"


def test_an_intact_file_is_not_downloaded_again(caplog):
    caplog.set_level(logging.INFO)
    path = put(weights.home())
    assert downloads.download("spai") == path
    assert "already" in caplog.text


def test_a_different_file_in_the_way_is_kept_and_named():
    path = put(weights.home(), b"mine")
    with pytest.raises(ValueError, match="4 bytes, expected.*move it away") as caught:
        downloads.download("spai")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "content, what",
    [
        (CONTENT[:-1], "bytes, expected"),
        (CONTENT[::-1], "SHA-256 is"),
        (HTML, "the host refused"),
        (b"", "sent nothing"),
        (None, "sent nothing"),
    ],
)
def test_a_wrong_file_is_refused_and_leaves_nothing(monkeypatch, content, what):
    Host(monkeypatch, content)
    with pytest.raises(RuntimeError, match=what) as caught:
        downloads.download("spai")
    assert weights.REGISTRY["spai"].url in str(caught.value)
    assert str(weights.home() / "spai.pth") in str(caught.value)
    assert listing(weights.home()) == []


@pytest.mark.parametrize(
    "error",
    [
        FileURLRetrievalError("Too many users have viewed or downloaded this file"),
        ConnectionError("Name or service not known"),
        KeyError("Content-Type"),
    ],
)
def test_a_failing_host_is_reported_with_the_way_by_hand(monkeypatch, error):
    Host(monkeypatch, error=error)
    with pytest.raises(RuntimeError, match="connection to drive.google.com") as caught:
        downloads.download("spai")
    assert str(error) in str(caught.value)
    assert weights.REGISTRY["spai"].url in str(caught.value)
    assert listing(weights.home()) == []


def offline():
    """What gdown raises after its retries without a connection."""
    error = DownloadError("Download failed after 3 retries")
    error.__cause__ = ConnectionError("Name or service not known")
    return error


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), ConnectionError("lost"), offline(), FileURLRetrievalError("quota")],
)
def test_what_was_received_is_kept_to_be_continued(monkeypatch, error):
    for partial in (CONTENT[:99], None):  # a second failure adds nothing and costs nothing
        Host(monkeypatch, error=error, partial=partial)
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            downloads.download("spai")
        assert listing(weights.home()) == ["spai.pth.part"]
        assert downloads._received(weights.home() / "spai.pth.part") == 99
    Host(monkeypatch)
    downloads.download("spai")
    assert weights.verify("spai").ok


def test_an_interrupt_before_the_first_byte_leaves_nothing(monkeypatch):
    Host(monkeypatch, error=KeyboardInterrupt(), partial=b"")
    with pytest.raises(KeyboardInterrupt):
        downloads.download("spai")
    assert listing(weights.home()) == []


def test_an_interrupt_after_the_last_byte_needs_no_second_download(monkeypatch):
    put(weights.home() / "spai.pth.part")
    assert downloads.download("spai").read_bytes() == CONTENT
    assert listing(weights.home()) == ["spai.pth"]


def test_a_part_that_the_host_cannot_continue_is_started_afresh(monkeypatch):
    part = put(weights.home() / "spai.pth.part", b"stale", name="spai.pth12345678.part")
    calls = []

    def host(drive_id, output, report):
        calls.append(part.exists())
        if part.exists():
            raise DownloadError("Server did not honor the requested byte range")
        output.write_bytes(CONTENT)

    monkeypatch.setattr(downloads, "_gdown", host)
    downloads.download("spai")
    assert calls == [True, False]
    assert weights.verify("spai").ok


def test_a_full_disk_is_said_and_leaves_no_file(monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    Host(monkeypatch, error=full, partial=CONTENT[:10])
    with pytest.raises(RuntimeError, match="the disk is full") as caught:
        downloads.download("spai")
    assert "spai.pth" in str(caught.value)
    assert listing(weights.home()) == ["spai.pth.part"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_named(monkeypatch, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(downloads.Path, "mkdir", refuse)
    with pytest.raises(RuntimeError, match="SPAI_HOME") as caught:
        downloads.download("spai")
    assert str(weights.home()) in str(caught.value)
    assert os.strerror(code) in str(caught.value)


def test_an_intact_file_in_a_read_only_folder_is_enough(monkeypatch):
    put(weights.home())

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(downloads.Path, "mkdir", refuse)
    monkeypatch.setattr(downloads.filelock.FileLock, "acquire", refuse)
    assert downloads.download("spai").is_file()


def test_a_file_put_there_by_hand_meanwhile_is_kept(monkeypatch):
    def host(drive_id, output, report):
        output.write_bytes(CONTENT)
        put(weights.home(), b"mine")

    monkeypatch.setattr(downloads, "_gdown", host)
    with pytest.raises(ValueError, match="move it away"):
        downloads.download("spai")
    assert (weights.home() / "spai.pth").read_bytes() == b"mine"


def test_of_two_downloads_at_once_one_waits(monkeypatch):
    calls = []

    def host(drive_id, output, report):
        calls.append(drive_id)
        time.sleep(0.3)
        output.write_bytes(CONTENT)

    monkeypatch.setattr(downloads, "_gdown", host)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(downloads.download("spai")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [weights.home() / "spai.pth"] * 2
    assert len(calls) == 1


def test_the_file_can_be_read_by_others(monkeypatch):
    Host(monkeypatch)
    assert downloads.download("spai").stat().st_mode & 0o044 == 0o044


def test_progress_is_a_log_line_where_there_is_no_terminal(monkeypatch, caplog, capsys):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(weights, "LOG_SECONDS", 0)
    Host(monkeypatch)
    downloads.download("spai")
    assert "spai: 0 of 0 MB" in caplog.text
    caplog.clear()
    weights.verify("spai", progress=False)
    assert "MB" not in caplog.text
    assert capsys.readouterr() == ("", "")


# Files without a published checksum


def test_a_file_without_checksum_is_remembered_and_compared(monkeypatch):
    Host(monkeypatch)
    path = downloads.download("mfm")
    sidecar = path.with_name(f"{path.name}.json")
    assert json.loads(sidecar.read_text())["sha256"] == SHA256
    assert weights.verify("mfm").ok is True
    path.write_bytes(CONTENT[::-1])
    assert weights.verify("mfm").ok is False
    with pytest.raises(ValueError, match="move it away"):
        downloads.download("mfm")


def test_a_second_download_is_compared_with_the_first(monkeypatch):
    Host(monkeypatch)
    downloads.download("mfm").unlink()
    Host(monkeypatch, CONTENT[::-1])
    with pytest.raises(RuntimeError, match=f"expected {SHA256}"):
        downloads.download("mfm")
    assert not (weights.home() / "mfm_pretrain_vit_base.pth").exists()


def test_a_file_without_checksum_must_be_large_enough(monkeypatch):
    Host(monkeypatch, CONTENT[:999])
    with pytest.raises(RuntimeError, match="at least 1,000"):
        downloads.download("mfm")
    assert listing(weights.home()) == []


def test_a_file_that_does_not_load_is_refused(monkeypatch):
    Host(monkeypatch)
    seen = []

    def check(path):
        seen.append((path.name, path.read_bytes()))
        raise ValueError("unexpected key 'x'")

    with pytest.raises(RuntimeError, match="does not load: unexpected key"):
        downloads.download("mfm", check=check)
    assert seen == [("mfm_pretrain_vit_base.pth", CONTENT)]
    assert listing(weights.home()) == []
    put(weights.home(), name="mfm_pretrain_vit_base.pth")
    with pytest.raises(ValueError, match="move it away"):
        downloads.download("mfm", check=check)


def test_a_published_checksum_needs_no_loading(monkeypatch):
    Host(monkeypatch)
    downloads.download("spai", check=lambda path: pytest.fail("loaded"))


def test_a_file_put_there_by_hand_is_checked_once_and_remembered():
    put(weights.home(), name="mfm_pretrain_vit_base.pth")
    assert weights.verify("mfm").ok is None
    checked = []
    downloads.download("mfm", check=checked.append)
    downloads.download("mfm", check=checked.append)
    assert len(checked) == 1
    assert weights.verify("mfm").ok is True


def test_a_damaged_memory_is_named():
    put(weights.home(), name="mfm_pretrain_vit_base.pth")
    put(weights.home(), b"[]", name="mfm_pretrain_vit_base.pth.json")
    with pytest.raises(ValueError, match="pth.json: is damaged"):
        weights.verify("mfm")


# gdown itself, against a server on this computer


BODY = bytes(range(256)) * 8192  # 2 MiB; gdown writes blocks of 512 KiB


class Server(http.server.BaseHTTPRequestHandler):
    ranges: list[str | None]
    end: int
    continues: bool

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.ranges.append(wanted)
        partial = wanted is not None and self.continues
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if partial else 0
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        self.wfile.write(BODY[start : self.end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """Let the real gdown fetch `BODY` from a local server; at first it hangs up after 1 MiB."""
    handler = type("Handler", (Server,), {"ranges": [], "end": 1 << 20, "continues": True})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    real = gdown.download

    def download(*, id, retries, **settings):
        return real(url=f"http://127.0.0.1:{httpd.server_port}/{id}", **settings)

    entry = replace(
        weights.REGISTRY["spai"],
        size=len(BODY),
        minimum_size=len(BODY),
        sha256=hashlib.sha256(BODY).hexdigest(),
    )
    monkeypatch.setitem(weights.REGISTRY, "spai", entry)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(gdown, "download", download)
    monkeypatch.setattr(downloads, "_gdown", GDOWN)
    yield handler
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize("continues", [True, False])
def test_gdown_continues_or_starts_afresh_after_a_cut(server, continues):
    with pytest.raises(RuntimeError, match="download failed"):
        downloads.download("spai")
    assert downloads._received(weights.home() / "spai.pth.part") == 1 << 20
    server.end, server.continues = len(BODY), continues
    assert downloads.download("spai").read_bytes() == BODY
    assert f"bytes={1 << 20}-" in server.ranges
    assert listing(weights.home()) == ["spai.pth"]
