import pandas as pd
import pytest
from PIL import Image

from spai.report import plots
from spai.report.plots import save_training_curves


def write_epochs(folder, **columns):
    path = folder / "metrics.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def curves_of(path, monkeypatch):
    """Draw, and return {panel title: {curve label: values}}."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, png: figures.append(figure))
    save_training_curves(path, path.with_suffix(".png"))
    (figure,) = figures
    return {
        axis.get_title(): {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}
        for axis in figure.axes
    }


def test_curves_are_a_readable_picture(tmp_path):
    path = write_epochs(
        tmp_path, epoch=[0, 1, 2], train_loss=[0.7, 0.5, 0.4], val_loss=[0.7, 0.6, 0.5], val_auc=0.9
    )
    png = tmp_path / "curves.png"
    png.write_bytes(b"an older picture")
    save_training_curves(path, png)
    with Image.open(png) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curves.png", "metrics.csv"]


def test_loss_and_auc_columns_become_curves_and_others_do_not(tmp_path, monkeypatch):
    path = write_epochs(
        tmp_path, epoch=[0, 1], lr=[1, 2], train_loss=[3.0, 4], val_loss=[5.0, 6], val_auc=[0.5, 1]
    )
    assert curves_of(path, monkeypatch) == {
        "Loss": {"train_loss": [3, 4], "val_loss": [5, 6]},
        "AUC": {"val_auc": [0.5, 1]},
    }


def test_pretraining_without_auc_has_one_panel(tmp_path, monkeypatch):
    path = write_epochs(tmp_path, epoch=[0], train_loss=[1.0])
    assert curves_of(path, monkeypatch) == {"Loss": {"train_loss": [1.0]}}


def test_an_epoch_without_validation_is_drawn(tmp_path):
    path = write_epochs(tmp_path, epoch=[0, 1], train_loss=[1.0, 0.9], val_auc=[None, 0.8])
    save_training_curves(path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_failed_save_leaves_the_earlier_picture(tmp_path, monkeypatch):
    path = write_epochs(tmp_path, epoch=[0], train_loss=[1.0])
    png = tmp_path / "curves.png"
    png.write_bytes(b"an older picture")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(plots.Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_training_curves(path, png)
    assert png.read_bytes() == b"an older picture"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("epoch,train_loss\n", "needs a column epoch and a row"),
        ("step,train_loss\n1,2\n", "found step, train_loss"),
        ("epoch,lr\n1,2\n", "no column ends in loss or auc; found epoch, lr"),
    ],
)
def test_a_csv_without_curves_is_refused(tmp_path, text, message):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"metrics.csv: {message}|metrics.csv.*{message}"):
        save_training_curves(path, tmp_path / "curves.png")
