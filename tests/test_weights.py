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

from spai import weights

CONTENT = b"PK" + bytes(range(256)) * 8
HTML = b"\n<!DOCTYPE html><html><body>Quota exceeded</body></html>"
GDOWN = weights._gdown
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def models(monkeypatch, tmp_path):
    """Two tiny models, a fresh home and working folder, and no way to the network."""
    spai = weights.REGISTRY["spai"]
    mfm = weights.REGISTRY["mfm"]
    tiny = {
        "spai": replace(spai, size=len(CONTENT), minimum_size=len(CONTENT), sha256=SHA256),
        "mfm": replace(mfm, minimum_size=1000),
    }
    monkeypatch.setattr(weights, "REGISTRY", tiny)
    monkeypatch.setattr(weights, "_gdown", lambda *_: pytest.fail("downloaded"))
    monkeypatch.setenv("SPAI_HOME", str(tmp_path / "home dir ü"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


class Host:
    """A stand-in for gdown: writes `content`, then raises `error`, and counts the calls."""

    def __init__(self, monkeypatch, content=CONTENT, error=None, partial=None):
        self.content, self.error, self.partial = content, error, partial
        self.calls = 0
        monkeypatch.setattr(weights, "_gdown", self)

    def __call__(self, drive_id, output, report):
        self.calls += 1
        part = output.with_name(f"{output.name}abcdefgh.part")
        if self.partial is not None:
            part.write_bytes(self.partial)
        if self.error is not None:
            raise self.error
        if self.content is not None:
            output.write_bytes(self.content)
            output.chmod(0o600)  # as gdown's temporary files
            report(len(self.content), len(self.content))
            part.unlink(missing_ok=True)


def put(folder, content=CONTENT, name="spai.pth"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path


def listing(folder):
    """Names in a folder, without the lock file, which may stay."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


# Where files are found


def test_registry_states_the_released_files(monkeypatch):
    monkeypatch.undo()
    spai, mfm = weights.REGISTRY["spai"], weights.REGISTRY["mfm"]
    assert (spai.file_name, spai.size) == ("spai.pth", 934865338)
    assert spai.sha256 == "24159f27d7c8c2cd0cb6c4019189eb89ad0874a0d9d15f8dc9afd39ca9648a55"
    assert "1vvXmZqs6TVJdj8iF1oJ4L_fcgdQrp_YI" in spai.url
    assert (mfm.file_name, mfm.sha256) == ("mfm_pretrain_vit_base.pth", None)
    assert mfm.minimum_size > 100e6
    assert "1qgMuODAxAapwXZXbH2Bgo5s5O_zc1bdl" in mfm.url


def test_home_is_the_user_cache_without_the_variable(monkeypatch):
    for value in (None, ""):
        monkeypatch.delenv("SPAI_HOME") if value is None else monkeypatch.setenv("SPAI_HOME", value)
        assert weights.home() == weights.platformdirs.user_cache_path("spai", appauthor=False)


def test_home_expands_the_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("SPAI_HOME", "~/models")
    assert weights.home() == tmp_path / "models"


def test_the_working_folder_wins_over_the_cache():
    cached = put(weights.home())
    assert weights.find_weights("spai") == weights.default_weights() == cached
    local = put(weights.LOCAL)
    assert weights.find_weights("spai") == weights.default_weights() == local


@pytest.mark.parametrize("find", [weights.default_weights, lambda: weights.find_weights("spai")])
def test_a_missing_model_names_command_url_and_both_places(find, tmp_path):
    with pytest.raises(ValueError) as caught:
        find()
    message = str(caught.value)
    assert "spai weights download spai" in message
    assert weights.REGISTRY["spai"].url in message
    assert str(tmp_path / "cwd" / "weights" / "spai.pth") in message
    assert str(weights.home() / "spai.pth") in message


def test_a_registered_name_is_not_the_file_of_that_name(tmp_path):
    own = put(tmp_path / "cwd", name="spai")
    with pytest.raises(ValueError, match="not on this computer"):
        weights.find_weights("spai")
    assert weights.find_weights("./spai").resolve() == own
    assert weights.find_weights(own) == own


def test_an_unregistered_bare_name_may_be_a_file(tmp_path):
    put(tmp_path / "cwd", name="mine")
    assert weights.find_weights("mine").is_file()


@pytest.mark.parametrize("name", ["spia", "folder/none.pth", "none.pth"])
def test_an_unknown_name_lists_the_known_ones(name):
    for function in (weights.find_weights, weights.verify, weights.download):
        with pytest.raises(ValueError, match=f"{name}: no such.*spai, mfm"):
            function(name)


def test_a_folder_is_not_a_model_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        weights.find_weights(tmp_path)


# Verification


def test_content_is_recognised_under_any_name(tmp_path):
    found = weights.verify(put(tmp_path, name="renamed.bin"))
    assert (found.name, found.size, found.sha256, found.ok) == ("spai", len(CONTENT), SHA256, True)


def test_an_unknown_file_is_neither_good_nor_bad(tmp_path):
    found = weights.verify(put(tmp_path, b"other", name="mine.pth"))
    assert (found.name, found.ok) == (None, None)


@pytest.mark.parametrize("content, what", [(CONTENT[:-1], "bytes"), (CONTENT[::-1], "SHA-256")])
def test_a_different_file_under_a_registered_name_is_bad(content, what):
    put(weights.LOCAL, content)
    found = weights.verify("spai")
    assert found.ok is False
    assert what in found.message


def test_a_file_longer_than_a_block_is_hashed_whole(tmp_path):
    content = os.urandom((1 << 20) * 2 + 17)
    expected = hashlib.sha256(content).hexdigest()
    assert weights.verify(put(tmp_path, content, name="big")).sha256 == expected


# Downloads


def test_a_download_gives_the_file_and_leaves_nothing_else(monkeypatch, capsys):
    host = Host(monkeypatch)
    path = weights.download("spai")
    assert path == weights.home() / "spai.pth" == weights.find_weights("spai")
    assert path.read_bytes() == CONTENT
    assert listing(path.parent) == ["spai.pth"]
    assert host.calls == 1
    assert capsys.readouterr().out == ""


def test_a_download_goes_where_it_is_told(monkeypatch, tmp_path):
    Host(monkeypatch)
    assert weights.download("spai", destination=tmp_path / "a" / "b") == tmp_path / "a/b/spai.pth"


def test_an_intact_file_is_not_downloaded_again(caplog):
    caplog.set_level(logging.INFO)
    path = put(weights.home())
    assert weights.download("spai") == path
    assert "already" in caplog.text


def test_a_different_file_in_the_way_is_kept_and_named():
    path = put(weights.home(), b"mine")
    with pytest.raises(ValueError, match="4 bytes, expected.*move it away") as caught:
        weights.download("spai")
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
        weights.download("spai")
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
        weights.download("spai")
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
            weights.download("spai")
        assert listing(weights.home()) == ["spai.pth.part"]
        assert weights._received(weights.home() / "spai.pth.part") == 99
    Host(monkeypatch)
    weights.download("spai")
    assert weights.verify("spai").ok


def test_an_interrupt_before_the_first_byte_leaves_nothing(monkeypatch):
    Host(monkeypatch, error=KeyboardInterrupt(), partial=b"")
    with pytest.raises(KeyboardInterrupt):
        weights.download("spai")
    assert listing(weights.home()) == []


def test_an_interrupt_after_the_last_byte_needs_no_second_download(monkeypatch):
    put(weights.home() / "spai.pth.part")
    assert weights.download("spai").read_bytes() == CONTENT
    assert listing(weights.home()) == ["spai.pth"]


def test_a_part_that_the_host_cannot_continue_is_started_afresh(monkeypatch):
    part = put(weights.home() / "spai.pth.part", b"stale", name="spai.pth12345678.part")
    calls = []

    def host(drive_id, output, report):
        calls.append(part.exists())
        if part.exists():
            raise DownloadError("Server did not honor the requested byte range")
        output.write_bytes(CONTENT)

    monkeypatch.setattr(weights, "_gdown", host)
    weights.download("spai")
    assert calls == [True, False]
    assert weights.verify("spai").ok


def test_a_full_disk_is_said_and_leaves_no_file(monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    Host(monkeypatch, error=full, partial=CONTENT[:10])
    with pytest.raises(RuntimeError, match="the disk is full") as caught:
        weights.download("spai")
    assert "spai.pth" in str(caught.value)
    assert listing(weights.home()) == ["spai.pth.part"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_named(monkeypatch, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(weights.Path, "mkdir", refuse)
    with pytest.raises(RuntimeError, match="SPAI_HOME") as caught:
        weights.download("spai")
    assert str(weights.home()) in str(caught.value)
    assert os.strerror(code) in str(caught.value)


def test_an_intact_file_in_a_read_only_folder_is_enough(monkeypatch):
    put(weights.home())

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(weights.Path, "mkdir", refuse)
    monkeypatch.setattr(weights.filelock.FileLock, "acquire", refuse)
    assert weights.download("spai").is_file()


def test_a_file_put_there_by_hand_meanwhile_is_kept(monkeypatch):
    def host(drive_id, output, report):
        output.write_bytes(CONTENT)
        put(weights.home(), b"mine")

    monkeypatch.setattr(weights, "_gdown", host)
    with pytest.raises(ValueError, match="move it away"):
        weights.download("spai")
    assert (weights.home() / "spai.pth").read_bytes() == b"mine"


def test_of_two_downloads_at_once_one_waits(monkeypatch):
    calls = []

    def host(drive_id, output, report):
        calls.append(drive_id)
        time.sleep(0.3)
        output.write_bytes(CONTENT)

    monkeypatch.setattr(weights, "_gdown", host)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(weights.download("spai"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [weights.home() / "spai.pth"] * 2
    assert len(calls) == 1


def test_the_file_can_be_read_by_others(monkeypatch):
    Host(monkeypatch)
    assert weights.download("spai").stat().st_mode & 0o044 == 0o044


def test_progress_is_a_log_line_where_there_is_no_terminal(monkeypatch, caplog, capsys):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(weights, "LOG_SECONDS", 0)
    Host(monkeypatch)
    weights.download("spai")
    assert "spai: 0 of 0 MB" in caplog.text
    caplog.clear()
    weights.verify("spai", progress=False)
    assert "MB" not in caplog.text
    assert capsys.readouterr() == ("", "")


# Files without a published checksum


def test_a_file_without_checksum_is_remembered_and_compared(monkeypatch):
    Host(monkeypatch)
    path = weights.download("mfm")
    sidecar = path.with_name(f"{path.name}.json")
    assert json.loads(sidecar.read_text())["sha256"] == SHA256
    assert weights.verify("mfm").ok is True
    path.write_bytes(CONTENT[::-1])
    assert weights.verify("mfm").ok is False
    with pytest.raises(ValueError, match="move it away"):
        weights.download("mfm")


def test_a_second_download_is_compared_with_the_first(monkeypatch):
    Host(monkeypatch)
    weights.download("mfm").unlink()
    Host(monkeypatch, CONTENT[::-1])
    with pytest.raises(RuntimeError, match=f"expected {SHA256}"):
        weights.download("mfm")
    assert not (weights.home() / "mfm_pretrain_vit_base.pth").exists()


def test_a_file_without_checksum_must_be_large_enough(monkeypatch):
    Host(monkeypatch, CONTENT[:999])
    with pytest.raises(RuntimeError, match="at least 1,000"):
        weights.download("mfm")
    assert listing(weights.home()) == []


def test_a_file_that_does_not_load_is_refused(monkeypatch):
    Host(monkeypatch)
    seen = []

    def check(path):
        seen.append((path.name, path.read_bytes()))
        raise ValueError("unexpected key 'x'")

    with pytest.raises(RuntimeError, match="does not load: unexpected key"):
        weights.download("mfm", check=check)
    assert seen == [("mfm_pretrain_vit_base.pth", CONTENT)]
    assert listing(weights.home()) == []
    put(weights.home(), name="mfm_pretrain_vit_base.pth")
    with pytest.raises(ValueError, match="move it away"):
        weights.download("mfm", check=check)


def test_a_published_checksum_needs_no_loading(monkeypatch):
    Host(monkeypatch)
    weights.download("spai", check=lambda path: pytest.fail("loaded"))


def test_a_file_put_there_by_hand_is_checked_once_and_remembered():
    put(weights.home(), name="mfm_pretrain_vit_base.pth")
    assert weights.verify("mfm").ok is None
    checked = []
    weights.download("mfm", check=checked.append)
    weights.download("mfm", check=checked.append)
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
    monkeypatch.setattr(weights, "_gdown", GDOWN)
    yield handler
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize("continues", [True, False])
def test_gdown_continues_or_starts_afresh_after_a_cut(server, continues):
    with pytest.raises(RuntimeError, match="download failed"):
        weights.download("spai")
    assert weights._received(weights.home() / "spai.pth.part") == 1 << 20
    server.end, server.continues = len(BODY), continues
    assert weights.download("spai").read_bytes() == BODY
    assert f"bytes={1 << 20}-" in server.ranges
    assert listing(weights.home()) == ["spai.pth"]
