"""report.html and figures/, as a parser and as a browser see them."""

import io
import json
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spai.data.names import printable
from spai.engine.metrics import bootstrap_samples, compute_metrics, sigmoid
from spai.report.results import write_results
from spai.report.robustness import RobustnessRow
from spai.report.tables import cross_intervals, ranked_pairs
from tests.pages import Page

HOSTILE = '</svg></title><script>hacked=1</script><img src=x onerror=hacked=1>$\\frac{1}$_{{7*7}}"'
ALL_FIGURES = ["datasets", "reliability", "robustness", "roc", "scores"]


def dataset(name, classes, seed=0, images=40):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) % 2) if classes == "both" else classes
    labels = np.broadcast_to(labels, images)
    logits = rng.normal(2.0 * labels - 1, 2)
    names = [f"{name}/{i}.png" for i in range(images)]
    table = pd.DataFrame({"dataset": name, "image": names, "class": labels, "logit": logits})
    return table.assign(score=sigmoid(logits), error="")


def degraded(*names):
    metrics = compute_metrics([0, 1, 0, 1], [-1, 1, 2, 3], bootstrap=0)
    levels = (("none", 0), ("jpeg", 85), ("jpeg", 50), ("scale", 0.5))
    return [RobustnessRow(name, *level, metrics) for name in names for level in levels]


def one_class(hostile=""):
    sets = [dataset(f"gen{i}{hostile}", 1, i) for i in range(3)]
    return pd.concat([*sets, dataset("coco", 0, 8), dataset("raise", 0, 9)], ignore_index=True)


def webp():
    file = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(file, format="WEBP")
    return file.getvalue()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return a folder with the results of five data sets of one class each."""
    table = one_class()
    table.loc[3, "error"] = "cannot be decoded: <cut off>"
    output = tmp_path_factory.mktemp("results")
    model = {"name": "ckpt_epoch_7.pth", "sha256": "ab" * 32, "device": "cpu"}
    run = {"command": "spai test", "model_file": "out/ckpt_epoch_7.pth", "seconds": 3.5}
    run |= {"model": model, "inputs": [{"file": "a.csv"}, {"file": "b.csv"}]}
    write_results(
        output,
        table,
        run,
        robustness=degraded("gen0", "gen1"),
        pictures=lambda places: {place: webp() for place in places if place % 2},
    )
    return output


def test_the_page_has_every_part(results):
    page = Page(results / "report.html")
    headings = page.text_of("h2")
    for part in (
        *("Metrics", "Cross table", "Figures", "Robustness", "Worst mistakes"),
        *("Images without a score", "What the metrics mean", "About this run"),
    ):
        assert part in headings
    text = page.text_of("td", "th", "dd", "dt", "p")
    for fact in ("ab" * 32, "3.5", "cannot be decoded: <cut off>", "Equal error rate", "Mean AUC"):
        assert fact in text, fact
    groups = [a for t, a in page.elements if t == "th" and a.get("scope") == "colgroup"]
    assert len(groups) == 3  # images, ranking, threshold: side by side
    page.check_self_contained()
    page.check_identifiers()
    assert page.count("script") == 0


def test_the_page_is_named_by_its_model_and_lists_all_settings(results):
    page = Page(results / "report.html")
    assert page.text_of("h1") == "Results of ckpt_epoch_7.pth"
    facts = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))
    assert facts["Device"] == facts["model.device"] == "cpu" and facts["Command"] == "spai test"
    assert facts["inputs.2.file"] == "b.csv"


def test_each_figure_is_in_the_page_and_in_two_files(results):
    assert sorted(path.name for path in (results / "figures").iterdir()) == sorted(
        f"{name}.{kind}" for name in ALL_FIGURES for kind in ("png", "svg")
    )
    for name in ALL_FIGURES:
        root = ET.parse(results / "figures" / f"{name}.svg").getroot()
        assert root.tag.endswith("svg") and len(list(root.iter())) > 30
        with Image.open(results / "figures" / f"{name}.png") as image:
            assert min(image.size) > 200
    assert Page(results / "report.html").count("svg") == len(ALL_FIGURES)


def test_results_give_the_same_bytes_again(results, tmp_path):
    def files(folder):
        paths = [folder / "report.html", *sorted((folder / "figures").iterdir())]
        return {path.name: path.read_bytes() for path in paths}

    for name in ("a", "b"):
        write_results(tmp_path / name, one_class(), {}, robustness=degraded("gen0"))
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_figures_that_this_run_lacks_are_removed(tmp_path):
    for table in (one_class(), dataset("fake", 1)):
        write_results(tmp_path, table, {})
    kept = {path.name for path in (tmp_path / "figures").iterdir()}
    assert kept == {f"{name}.{kind}" for name in ("datasets", "scores") for kind in ("svg", "png")}
    text = Page(tmp_path / "report.html").text_of("h2")
    assert "Cross table" not in text and "Robustness" not in text


def test_the_worst_mistakes_are_the_furthest_on_the_wrong_side(tmp_path):
    table = dataset("both", "both", images=200)
    table.loc[0, ["class", "logit", "score"]] = (0, 50.0, 1.0)
    table.loc[1, ["class", "logit", "score"]] = (0, 60.0, 1.0)
    table.loc[2, ["class", "logit", "score", "error"]] = (0, 70.0, 1.0, "gone")
    asked = []
    write_results(tmp_path, table, {}, pictures=lambda places: asked.append(places) or {})
    real, generated = asked
    assert real[:2] == [1, 0] and 2 not in real and len(real) == 12
    wrong = table[(table["class"] == 1) & (table["logit"] <= 0)].sort_values("logit")
    assert generated == wrong.index[:12].tolist()
    page = Page(tmp_path / "report.html")
    assert page.texts["bdi"][0] == "both/1.png" and page.count("img") == 0


def test_mistakes_show_the_pictures_that_there_are(results):
    pictures = [a["src"] for tag, a in Page(results / "report.html").elements if tag == "img"]
    assert 0 < len(pictures) < 24
    assert all(source.startswith("data:image/webp;base64,") for source in pictures)


def test_no_image_with_a_score_still_gives_a_page(tmp_path):
    table = dataset("a", 1).assign(error="gone", score=np.nan)
    write_results(tmp_path, table, {})
    page = Page(tmp_path / "report.html")
    assert "nothing to draw" in page.text_of("p") and page.count("svg") == 0


def test_robustness_is_in_every_file_of_results(results):
    record = json.loads((results / "metrics.json").read_text())["robustness"]
    assert [row["level"] for row in record[:4]] == [0, 85, 50, 0.5]
    assert record[0]["metrics"]["acc"] == 0.75
    assert "## Robustness" in (results / "report.md").read_text()


def test_generators_are_compared_with_all_real_images():
    table = one_class()
    pairs = ranked_pairs(pd.concat([table, dataset("both", "both", 3)], ignore_index=True))
    assert list(pairs) == ["gen0", "gen1", "gen2", "both"]
    assert len(pairs["gen0"][0]) == 80 and len(pairs["both"][0]) == 20


def test_intervals_of_generators_hold_their_means():
    table = one_class()
    mean = {}
    for name in ("gen0", "gen1", "gen2"):
        fakes = table[table["dataset"] == name]["logit"].to_numpy()
        aucs = [
            np.mean(fakes[:, None] > table[table["dataset"] == source]["logit"].to_numpy())
            for source in ("coco", "raise")
        ]
        mean[name] = np.mean(aucs)
    intervals = cross_intervals(table)
    assert list(intervals) == list(mean)
    assert all(low < mean[name] < high for name, (low, high) in intervals.items())


def test_with_one_source_the_interval_is_about_that_of_the_auc():
    table = pd.concat([dataset("gen", 1, 1, 300), dataset("coco", 0, 2, 300)], ignore_index=True)
    ((low, high),) = cross_intervals(table).values()
    logits = table["logit"].to_numpy()
    samples, _ = bootstrap_samples(
        np.sort(logits[300:]), np.sort(logits[:300]), resamples=1000, seed=1
    )
    np.testing.assert_allclose((low, high), np.quantile(samples, (0.025, 0.975)), atol=0.006)


def test_intervals_need_a_scored_image_of_every_source():
    table = one_class()
    table.loc[table["dataset"] == "coco", "error"] = "gone"
    assert cross_intervals(table) == {}


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(name=st.text(min_size=1, max_size=40), image=st.text(max_size=40))
def test_no_name_is_ever_markup(tmp_path_factory, name, image):
    def structure(name, image):
        table = dataset("x", "both", images=8).assign(dataset=name, image=image)
        table.loc[0, "error"] = f"error {image}"
        write_results(folder, table, {"command": f"spai {image}"})
        page = Page(folder / "report.html")
        page.check_self_contained()
        assert f"spai {printable(image)}" in page.texts["dd"]
        for svg in (folder / "figures").glob("*.svg"):
            ET.parse(svg)
        return page.count("script"), page.count("img"), page.count("dd"), page.count("svg")

    folder = tmp_path_factory.mktemp("page")
    assert structure(name, image) == structure("a", "b")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_readably_without_complaint(browser, results, width, dark):
    browser.open(results / "report.html", width=width, dark=dark)
    assert browser.run("return document.querySelectorAll('figure svg').length") == len(ALL_FIGURES)
    browser.check_width()
    assert browser.lowest_contrast("h1, p, td:not(.shade), th, dt, dd, figcaption, li span") >= 4.5
    ink = browser.run("return getComputedStyle(document.querySelector('svg text')).fill")
    assert ink == browser.run("return getComputedStyle(document.body).color")
    browser.check_quiet()


def test_hostile_names_do_nothing_in_a_browser(browser, tmp_path):
    table = one_class(HOSTILE).assign(image=HOSTILE)
    table.loc[3, "error"] = HOSTILE
    write_results(tmp_path, table, {HOSTILE: HOSTILE}, robustness=degraded("a" + HOSTILE))
    browser.open(tmp_path / "report.html", width=390)
    assert browser.run("return typeof hacked") == "undefined"
    assert browser.run("return document.scripts.length + document.images.length") == 0
    browser.check_width()
    browser.check_quiet()
