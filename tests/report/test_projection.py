"""Points become a CSV with every row and a picture, whatever data sets are called."""

import csv

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spai.report.projection import write_points

NAMES = ["real_coco", "_hidden", "$a_b$", 'x,"y"\n', "<b>", "n" * 300]


def points(names):
    rows = [
        {"dataset": name, "image": f"{name}/{n}.png", "class": n % 2, "patch": n, "x": n / 3}
        for name in names
        for n in range(4)
    ]
    return pd.DataFrame(rows).assign(y=0.5)


def test_the_csv_repeats_every_point(tmp_path):
    write_points(tmp_path / "new", "tsne_patch", "Patches", points(NAMES))
    with (tmp_path / "new" / "tsne_patch.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["dataset", "image", "class", "patch", "x", "y"]
    assert [row["dataset"] for row in rows[::4]] == NAMES
    assert rows[1] == {
        "dataset": "real_coco", "image": "real_coco/1.png", "class": "1", "patch": "1",
        "x": "0.333333333333", "y": "0.5",
    }  # fmt: skip


@pytest.mark.filterwarnings("error:constrained_layout")
@pytest.mark.parametrize("names", [NAMES, ["one"], [f"set {n}" for n in range(70)]])
def test_the_picture_shows_both_classes_in_colour(tmp_path, names):
    write_points(tmp_path, "tsne_image", "Images", points(names))
    with Image.open(tmp_path / "tsne_image.png") as image:
        colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tsne_image.csv", "tsne_image.png"]


@pytest.mark.filterwarnings("error")
def test_the_legend_names_every_data_set(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    legends = []
    original = Axes.legend

    def legend(axis, *arguments, **settings):
        legends.append(original(axis, *arguments, **settings))
        return legends[-1]

    monkeypatch.setattr(Axes, "legend", legend)
    write_points(tmp_path, "tsne_image", "Images", points(NAMES[:3]))
    by_class, by_dataset = ([text.get_text() for text in found.get_texts()] for found in legends)
    assert by_class == ["6 real", "6 generated"]
    assert by_dataset == ["4 real_coco", "4 _hidden", "4 $a_b$"]
    legends.clear()
    write_points(tmp_path, "tsne_image", "Images", points([f"set {n}" for n in range(30)]))
    *named, more = (text.get_text() for text in legends[1].get_texts())
    assert len(named) == 24 and more == "and 6 more"
