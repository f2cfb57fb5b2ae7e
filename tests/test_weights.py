import hashlib
import os

import pytest

from spai import downloads, weights
from tests.gdown_host import CONTENT, SHA256, put, tiny_registry  # noqa: F401

pytestmark = pytest.mark.usefixtures("tiny_registry")

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


def test_without_the_published_model_the_bundled_one_is_used_with_a_notice(caplog):
    found = weights.default_weights()
    assert found == weights.find_weights("mini") == weights.BUNDLED[0] / "spai-mini.safetensors"
    assert "spai weights download spai" in caplog.text
    assert "demonstration model, not the published detector" in caplog.text
    caplog.clear()
    put(weights.home())
    assert weights.default_weights() == weights.home() / "spai.pth"
    assert caplog.text == ""


def test_an_own_copy_of_the_bundled_model_comes_first():
    own = put(weights.LOCAL, name="spai-mini.safetensors")
    assert weights.find_weights("mini") == own


def test_a_bundled_model_that_is_missing_says_what_to_do(monkeypatch):
    monkeypatch.setattr(weights, "BUNDLED", ())
    with pytest.raises(ValueError, match="'mini' comes with the package and is missing"):
        weights.default_weights()


def test_the_bundled_model_is_not_downloaded():
    with pytest.raises(ValueError, match="mini: comes with the package"):
        downloads.download("mini")


def test_a_known_file_is_described_by_its_content():
    sha256 = weights.REGISTRY["mini"].sha256
    assert weights.describe(sha256).startswith("mini: a small demonstration model")
    assert weights.describe("0" * 64) is None


def test_a_missing_model_names_command_url_and_both_places(tmp_path):
    with pytest.raises(ValueError) as caught:
        weights.find_weights("spai")
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
    for function in (weights.find_weights, weights.verify, downloads.download):
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
