"""Two tiny registered models and a stand-in for gdown."""

import hashlib
from dataclasses import replace

import pytest

from spai import downloads, weights

CONTENT = b"PK" + bytes(range(256)) * 8
HTML = b"\n<!DOCTYPE html><html><body>Quota exceeded</body></html>"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def tiny_registry(monkeypatch, tmp_path):
    """Two tiny models, a fresh home and working folder, and no way to the network."""
    spai = weights.REGISTRY["spai"]
    mfm = weights.REGISTRY["mfm"]
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    mini = replace(weights.REGISTRY["mini"], size=None, minimum_size=1)
    (bundled / mini.file_name).write_bytes(CONTENT[::-1])
    monkeypatch.setattr(weights, "BUNDLED", (bundled,))
    tiny = {
        "spai": replace(spai, size=len(CONTENT), minimum_size=len(CONTENT), sha256=SHA256),
        "mfm": replace(mfm, minimum_size=1000),
        "mini": replace(mini, sha256=hashlib.sha256(CONTENT[::-1]).hexdigest()),
    }
    monkeypatch.setattr(weights, "REGISTRY", tiny)
    monkeypatch.setattr(downloads, "_gdown", lambda *_: pytest.fail("downloaded"))
    monkeypatch.setenv("SPAI_HOME", str(tmp_path / "home dir ü"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


class Host:
    """A stand-in for gdown: writes `content`, then raises `error`, and counts the calls."""

    def __init__(self, monkeypatch, content=CONTENT, error=None, partial=None):
        self.content, self.error, self.partial = content, error, partial
        self.calls = 0
        monkeypatch.setattr(downloads, "_gdown", self)

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
