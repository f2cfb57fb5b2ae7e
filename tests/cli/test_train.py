import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from spai.cli.pretrain import command as pretrain
from spai.cli.train import command as train
from spai.cli.training import training_precision
from spai.detectors import load_detector
from tests.engine.toy import TINY_OPTIONS, write_images

FAST = [*TINY_OPTIONS, "--opt", "TRAIN.EPOCHS", "1", "--opt", "TRAIN.WARMUP_EPOCHS", "0"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory, source):
    config = tmp_path_factory.mktemp("config") / "mfm.yaml"
    config.write_text("MODEL: {NAME: pretrain}\n")
    output = tmp_path_factory.mktemp("output")
    args = ["--cfg", config, "--data-path", source, "--output", output, *FAST]
    run(pretrain, *args)
    return output / "pretrain" / "default"


def run(command, *args, code=0):
    result = CliRunner().invoke(command, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output


def refuse(*args, command=train):
    """Return the one line that a user's mistake costs."""
    output = run(command, *args, code=2)
    assert "Traceback" not in output
    return output


def with_rows(folder, rows):
    csv = folder / "list.csv"
    pd.DataFrame(rows, columns=["image", "class", "split"]).to_csv(csv, index=False)
    return csv


def test_pretraining_leaves_a_backbone_and_pictures(stage_one):
    content = torch.load(stage_one / "ckpt_epoch_0.pth", weights_only=True)
    assert all(name.startswith(("encoder.", "decoder.0.")) for name in content["model"])
    assert Image.open(stage_one / "reconstruction_epoch_0.png").size == (3 * 34 + 2, 4 * 34 + 2)
    assert {"last.pt", "metrics.csv", "curves.png"} <= {path.name for path in stage_one.iterdir()}


def test_a_folder_can_be_pretrained_on(tmp_path, source, stage_one):
    config = tmp_path / "mfm.yaml"
    config.write_text("MODEL: {NAME: pretrain}\n")
    args = ["--cfg", config, "--data-path", source.parent, "--output", tmp_path, *FAST]
    run(pretrain, *args, "--max-steps", 1)
    assert (tmp_path / "pretrain/default/last.pt").exists()


def test_the_published_command_works_and_its_model_scores_images(tmp_path, source, stage_one):
    config = tmp_path / "spai.yaml"
    config.write_text("TRAIN: {LAYER_DECAY: 0.8}\n")
    args = f"""--cfg {config} --batch-size 8 --pretrained {stage_one}/ckpt_epoch_0.pth
      --output {tmp_path}/train --data-path {source} --tag spai --amp-opt-level O2
      --data-workers 2 --save-all --opt DATA.VAL_BATCH_SIZE 256
      --opt MODEL.FEATURE_EXTRACTION_BATCH 400 --opt DATA.TEST_PREFETCH_FACTOR 1""".split()
    tiny = dict(zip(FAST[1::3], FAST[2::3], strict=True))
    for key in ("DATA.BATCH_SIZE", "DATA.NUM_WORKERS"):
        tiny.pop(key)
    options = [part for key, value in tiny.items() for part in ("--opt", key, value)]
    run(train, *args, *options)
    model = tmp_path / "train/finetune/spai/ckpt_epoch_0.pth"
    scores = load_detector(model, device="cpu").score([source.parent / "0.png"])
    assert 0 <= scores.probabilities[0] <= 1
    assert (tmp_path / "train/finetune/spai/curves.png").stat().st_size > 0


def test_a_given_backbone_is_frozen_and_a_random_one_is_not(tmp_path, source, stage_one):
    args = ["--data-path", source, "--output", tmp_path, *FAST, "--max-steps", 2]
    backbone = ["--pretrained", stage_one / "ckpt_epoch_0.pth"]
    assert "is frozen" in run(train, *args, *backbone, "--tag", "frozen")
    assert "a random one is trained too" in run(train, *args, "--tag", "random")
    run(train, *args, *backbone, "--tag", "free", "--opt", "TRAIN.FREEZE_BACKBONE", "False")
    frozen = {
        tag: torch.load(tmp_path / f"finetune/{tag}/last.pt", weights_only=True)["frozen"]
        for tag in ("frozen", "random", "free")
    }
    assert frozen["random"] == frozen["free"] == []
    assert frozen["frozen"] and all(name.startswith("mfvit.vit.") for name in frozen["frozen"])


@pytest.mark.parametrize("loss", ["supcont", "triplet"])
def test_contrastive_training_validates_by_its_loss(tmp_path, source, loss):
    mode = ["--opt", "TRAIN.MODE", "contrastive", "--opt", "TRAIN.LOSS", loss]
    run(train, "--data-path", source, "--output", tmp_path, *FAST, *mode)
    table = pd.read_csv(tmp_path / "finetune/default/metrics.csv")
    assert list(table) == ["epoch", "train_loss", "lr", "val_loss"]


def test_fixed_resolution_trains(tmp_path, source):
    mode = ["--opt", "MODEL.RESOLUTION_MODE", "fixed"]
    run(train, "--data-path", source, "--output", tmp_path, *FAST, *mode)
    content = torch.load(tmp_path / "finetune/default/last.pt", weights_only=True)
    assert "vit.cls_token" in content["model"]


def test_test_sets_are_measured_and_never_choose(tmp_path, source):
    frame = pd.read_csv(source)
    frame["split"] = frame["split"].replace({"train": "test"})
    test_csv = source.parent / "other.csv"
    frame.to_csv(test_csv, index=False)
    args = ["--data-path", source, "--output", tmp_path, *FAST, "--test-csv", test_csv]
    run(train, *args)
    table = pd.read_csv(tmp_path / "finetune/default/metrics.csv")
    expected = [f"test_other_{name}" for name in ("loss", "acc", "ap", "auc")]
    assert list(table)[-4:] == expected
    state = torch.load(tmp_path / "finetune/default/last.pt", weights_only=True)
    assert state["progress"]["best_loss"] == table["val_loss"][0]


def test_resuming_with_another_configuration_names_the_keys(tmp_path, source):
    args = ["--data-path", source, "--output", tmp_path, *FAST, "--max-steps", 1]
    run(train, *args)
    changed = ["--learning-rate", 0.1, "--opt", "AUG.ROTATION_PROB", "0.1"]
    message = refuse(*args, "--resume", *changed)
    assert "AUG.ROTATION_PROB was 0.5, now 0.1" in message
    assert "TRAIN.BASE_LR was 0.0005, now 0.1" in message


def test_resuming_with_other_images_is_refused(tmp_path, source):
    args = ["--output", tmp_path, *FAST, "--max-steps", 1]
    run(train, *args, "--data-path", source)
    fewer = source.parent / "fewer.csv"
    pd.read_csv(source).iloc[2:].to_csv(fewer, index=False)
    assert "images was" in refuse(*args, "--data-path", fewer, "--resume")


def test_missing_images_are_all_named_before_training_unless_skipped(tmp_path, source):
    frame = pd.read_csv(source)
    gone = pd.DataFrame(
        [("gone a.png", 0, "train"), ("gone.png", 1, "train")], columns=frame.columns
    )
    csv = source.parent / "gone.csv"
    pd.concat([frame, gone]).to_csv(csv, index=False)
    args = ["--data-path", csv, "--output", tmp_path, *FAST]
    message = refuse(*args)
    assert "2 of 18 images are missing" in message and "gone a.png" in message
    assert not (tmp_path / "finetune").exists()
    run(train, *args, "--missing", "skip", "--max-steps", 1)


def test_images_of_one_class_are_refused(tmp_path, source):
    frame = pd.read_csv(source)
    csv = source.parent / "one.csv"
    frame[(frame["class"] == 1) | (frame["split"] == "val")].to_csv(csv, index=False)
    args = ["--data-path", csv, "--output", tmp_path, *FAST]
    assert "all 8 images are of class 1" in refuse(*args)


def test_a_batch_larger_than_the_data_set_is_refused(tmp_path, source):
    args = ["--data-path", source, "--output", tmp_path, *TINY_OPTIONS]
    message = refuse(*args, "--opt", "DATA.BATCH_SIZE", 17)
    assert "larger than the data set of 16" in message


def test_a_backbone_of_another_shape_is_refused(tmp_path, source, stage_one):
    args = ["--data-path", source, "--output", tmp_path, *FAST, "--opt", "MODEL.VIT.EMBED_DIM", 32]
    message = refuse(*args, "--pretrained", stage_one / "ckpt_epoch_0.pth")
    assert "ckpt_epoch_0.pth: does not fit" in message and "has shape" in message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--data-path: give a CSV"),
        (["--data-path", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--data-path", "nowhere.csv", "--opt", "TRAIN.LOSS", "supcont"], "do not go together"),
        (["--amp-opt-level", "O0", "--precision", "bf16"], "O0 contradicts --precision bf16"),
    ],
)
def test_mistakes_cost_one_line(args, message):
    assert message in refuse(*args)


def test_precision_follows_the_published_level():
    cpu = torch.device("cpu")
    assert training_precision(None, "", cpu) == "fp32"
    assert training_precision(None, "O0", cpu) == "fp32"
    assert training_precision(None, "O2", cpu) == training_precision("auto", "", cpu)
    assert training_precision("bf16", "O1", cpu) == "bf16"
    for level, precision in (("O0", "auto"), ("O0", "fp16"), ("O1", "fp32"), ("O2", "fp32")):
        with pytest.raises(ValueError, match="contradicts"):
            training_precision(precision, level, cpu)
