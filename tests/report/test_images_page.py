"""The page of `spai infer --report`, as a parser and as a browser see it."""

import base64
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spai.data.names import printable
from spai.data.scores import ScoreColumns, ScoreRow
from spai.report.images_page import PageImage, picture_sizes, write_images_page
from tests.pages import Page

HOSTILE = (
    "<script>alert(1)</script>.png",
    '"><img src=x onerror="hacked=1">.png',
    "</script><script>hacked=1</script>.png",
    "<!--<script>.png",
    "{{ 7 * 7 }}{% raw %}.png",
    "javascript:hacked=1//'&amp;.png",
    "line\nbreak\u2028\u2029.png",
    "right\u202eto-left.png",
    "\udcff not UTF-8.png",
)
COLUMNS = ScoreColumns("spai", ("spai_jpeg80", "spai_verdict", "spai_mask"))
RUN = {
    "model": {
        "name": "tiny.safetensors",
        "sha256": "ab" * 32,
        "device": "cpu",
        "precision": "fp32",
    },
    "command": "spai infer --input '<b>photos</b>'",
    "settings": {"configuration": {"MODEL.NAME": "<i>spai</i>"}, "split": "test"},
    "counts": {"rows": 6, "scored": 5, "errors": 1},
    "seconds": 1.25,
    "versions": {"spai": "0.1.0", "torch": "2.9", "python": "3.12"},
}


def webp(colour="red", size=(8, 6)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format="WEBP")
    return file.getvalue()


def image(row, name, score, verdict=None, **given):
    extras = (None if score is None else score / 2, verdict, given.pop("mask", None))
    error = given.pop("error", "" if score is not None else "cannot be decoded: cut off")
    return PageImage(ScoreRow(row, name, score, extras, error), **given)


def write(path, images, columns=COLUMNS, title="photos", run=RUN):
    write_images_page(path, images, columns, title=title, run=run)
    return path


@pytest.fixture
def page(tmp_path):
    """Return a page of six images, one of them an error, two with heat maps."""
    return write(
        tmp_path / "photos.html",
        [
            image(0, "img1.png", 0.9, "generated", thumbnail=webp(), label=1),
            image(1, "img2.png", 0.1, "real", thumbnail=webp("blue"), heat_map=webp(), mask="m/2"),
            image(2, "img10.png", 0.5, "inconclusive", thumbnail=webp("lime")),
            image(3, "broken.png", None),
            image(4, "Holiday/IMG_3.JPG", 0.99991, "generated", heat_map=webp(), mask="m/4.png"),
            image(5, "holiday/" + "x" * 300 + ".png", 1e-9, "real"),
        ],
    )


def test_each_image_is_there_with_what_is_known_of_it(page):
    rows = Page(page).data["rows"]
    assert [row["name"] for row in rows][:4] == ["img1.png", "img2.png", "img10.png", "broken.png"]
    first = rows[0]
    assert (first["score"], first["verdict"]) == (0.9, "generated")
    assert first["details"] == [["labelled", "generated"], ["jpeg80", 0.45]]
    assert base64.b64decode(first["thumb"]) == webp()
    assert rows[1]["mask"] == "m/2" and base64.b64decode(rows[1]["map"]) == webp()
    assert rows[3] == {"name": "broken.png", "error": "cannot be decoded: cut off"}


def test_the_page_says_what_a_score_is_and_what_was_run(page):
    text = Page(page).text_of("p", "strong", "dt", "dd", "span", "h1")
    for fact in ("photos", "5 images scored", "1 could not be", "evidence, not proof"):
        assert fact in text
    assert "where the model looked, not where an image was edited" in text
    assert "spreadsheet" in text  # of names that begin like formulas
    for fact in ("ab" * 32, "tiny.safetensors", "1.25", "torch 2.9", "5 scored", "<b>photos</b>"):
        assert fact in text, fact


def test_heat_maps_and_verdicts_are_spoken_of_only_where_there_are_some(tmp_path):
    path = write(tmp_path / "p.html", [image(0, "a.png", 0.5)])
    found = Page(path)
    assert "where the model looked" not in found.text_of("strong")
    assert "verdict" not in {attributes.get("id") for _, attributes in found.elements}


def test_the_page_needs_nothing_else(page):
    found = Page(page)
    found.check_self_contained()
    found.check_identifiers()


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.text(max_size=40), min_size=2, max_size=4), error=st.text(max_size=40))
def test_no_name_is_ever_markup(tmp_path_factory, names, error):
    def structure(names, error):
        failed = image(0, names[0], None, error=error)
        images = [failed, *(image(i, name, 0.5, "v") for i, name in enumerate(names[1:], 1))]
        run = {**RUN, "command": f"spai {error}"}
        found = Page(write(folder / "p.html", images, title=names[-1], run=run))
        found.check_self_contained()
        assert [row["name"] for row in found.data["rows"]] == list(map(printable, names))
        return [(tag, sorted(attributes)) for tag, attributes in found.elements]

    folder = tmp_path_factory.mktemp("page")
    assert structure(names, error) == structure(["a.png"] * len(names), "cut off")


def test_hostile_names_stay_in_the_data(tmp_path):
    images = [image(i, name, 0.5, name) for i, name in enumerate(HOSTILE)]
    found = Page(write(tmp_path / "p.html", images, title=HOSTILE[0]))
    assert [row["name"] for row in found.data["rows"]] == list(map(printable, HOSTILE))
    assert found.count("script") == 2
    found.check_self_contained()


def test_a_page_is_the_same_bytes_for_the_same_results(page, tmp_path):
    images = [image(0, "a.png", 0.5)]
    one, two = (write(tmp_path / name, images).read_bytes() for name in ("1.html", "2.html"))
    assert one == two


def test_pictures_shrink_and_then_go_as_images_become_many():
    sizes = [picture_sizes(images) for images in (1, 1_000, 1_001, 20_000, 20_001)]
    assert [size.thumbnail for size in sizes] == [192, 192, 96, 96, 0]
    assert all(size.heat_map >= size.thumbnail for size in sizes)


def test_a_browser_shows_it_without_complaint_or_request(browser, page):
    browser.open(page)
    assert browser.names()[:4] == ["img1.png", "img2.png", "img10.png", "broken.png"]
    assert browser.run("return document.querySelector('td.score .error').innerText").startswith(
        "cannot be decoded"
    )
    shown = browser.run("return [...document.querySelectorAll('.number')].map(e=>e.innerText)")
    assert shown == ["0.900", "0.100", "0.500", "> 0.999", "< 0.001"]
    loaded = "return document.querySelector('img.thumb').naturalWidth"
    assert browser.run(f"await document.querySelector('img.thumb').decode(); {loaded}") == 8
    browser.check_quiet()


def type_into(browser, field, text):
    browser.run(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', {bubbles: true}))",
        field,
        text,
    )


def test_filters_combine(browser, page):
    browser.open(page)
    type_into(browser, "text", "HOLIDAY")
    assert len(browser.names()) == 2
    type_into(browser, "low", "0.5")
    assert browser.names() == ["Holiday/IMG_3.JPG"]
    browser.run("document.querySelector('[type=reset]').click()")
    browser.run("return new Promise((done) => setTimeout(done, 20))")
    assert len(browser.names()) == 6
    type_into(browser, "verdict", "real")
    assert browser.names()[0] == "img2.png" and len(browser.names()) == 2
    type_into(browser, "verdict", "")
    type_into(browser, "high", "0.5")
    assert "broken.png" not in browser.names() and len(browser.names()) == 3
    type_into(browser, "high", "")
    browser.run("document.getElementById('errors').click()")
    assert browser.names() == ["broken.png"]
    assert browser.run("return document.getElementById('count').innerText") == "1 of 6 images"


def test_sorting_is_natural_and_leaves_errors_last(browser, page):
    browser.open(page)
    click = "document.querySelector(`[data-sort=${arguments[0]}]`).click()"
    state = "return document.querySelector('[data-sort=score]').closest('th').ariaSort"
    browser.run(click, "score")
    assert browser.names()[:2] == ["Holiday/IMG_3.JPG", "img1.png"]
    assert browser.names()[-1] == "broken.png" and browser.run(state) == "descending"
    browser.run(click, "score")
    assert browser.names()[1] == "img2.png"
    assert browser.names()[-1] == "broken.png" and browser.run(state) == "ascending"
    browser.run(click, "name")
    assert browser.names()[-3:] == ["img1.png", "img2.png", "img10.png"]
    type_into(browser, "sort", "order:1")
    assert browser.names()[0] == "img1.png" and browser.run(state) == "none"


def test_the_keyboard_is_enough(browser, page):
    from selenium.webdriver import Keys

    browser.open(page)
    active = "return document.activeElement.id || document.activeElement.dataset.sort"
    browser.press(Keys.TAB)
    assert browser.run(active) == "text"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.run(outline) == "solid"
    browser.press(*"img")
    assert len(browser.names()) == 4
    for _ in range(20):
        browser.press(Keys.TAB)
        if browser.run(active) == "score":
            break
    browser.press(Keys.ENTER)
    assert browser.names()[0] == "Holiday/IMG_3.JPG"
    browser.press(Keys.TAB, Keys.TAB, Keys.ENTER)  # over Verdict to the first picture
    viewer = "return document.getElementById('viewer').open"
    name = "return document.getElementById('viewer-name').innerText"
    assert browser.run(viewer) and browser.run(name) == "Holiday/IMG_3.JPG"
    browser.press(Keys.ARROW_RIGHT)
    assert browser.run(name) == "img1.png"
    browser.press(Keys.ESCAPE)
    assert not browser.run(viewer)
    assert browser.run("return document.activeElement.ariaLabel") == "Open img1.png"
    browser.check_quiet()


def test_a_heat_map_appears_on_focus_and_in_the_viewer(browser, page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    browser.open(page)
    opacity = "return getComputedStyle(document.querySelector('img.map')).opacity"
    settle = "await Promise.all(document.getAnimations().map((a) => a.finished));"
    assert browser.run(opacity) == "0"
    button = browser.driver.find_elements(By.CSS_SELECTOR, "button.open")[1]
    ActionChains(browser.driver).move_to_element(button).perform()
    assert browser.run(settle + opacity) == "1"
    button.click()
    assert browser.run("return document.getElementById('viewer-map').src").startswith("data:")
    assert browser.run("return !document.getElementById('viewer-hint').hidden")
    assert browser.run("return document.getElementById('viewer').scrollTop") == 0


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_names_do_nothing_in_a_browser(browser, tmp_path, width):
    images = [image(i, name, 0.5, name, thumbnail=webp()) for i, name in enumerate(HOSTILE)]
    images.append(image(len(images), HOSTILE[1], None, error=HOSTILE[2]))
    browser.open(write(tmp_path / "p.html", images, title=HOSTILE[2]), width=width)
    assert browser.names() == [*map(printable, HOSTILE), HOSTILE[1]]
    browser.run("document.querySelector('button.open').click()")
    assert browser.run("return typeof hacked") == "undefined"
    browser.check_width()
    browser.check_quiet()


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_by_day_and_by_night(browser, page, dark):
    browser.open(page, dark=dark)
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (json.loads(f"[{ground[4:-1]}]")[0] < 60) == dark
    texts = "h1, p, td.name bdi, .details, .number, .error, .chip, label, th button, dt, dd, input"
    assert browser.lowest_contrast(texts) >= 4.5


def test_a_phone_does_not_scroll_sideways(browser, page):
    browser.open(page, width=390)
    browser.check_width()
    browser.run("document.querySelector('button.open').click()")
    browser.check_width()


def test_ten_thousand_images_are_no_burden(browser, tmp_path):
    picture = webp("red", (96, 64))
    images = [
        image(i, f"img{i}.png", (i * 7919 % 10_007) / 10_007, "real", thumbnail=picture)
        for i in range(10_000)
    ]
    browser.open(write(tmp_path / "many.html", images))
    assert len(browser.names()) == 100
    begin = "const begun = performance.now();"
    click = "document.querySelector('[data-sort=score]').click();"
    assert browser.run(f"{begin} {click} return performance.now() - begun") < 2_000
    assert (
        browser.names()[0] == "img3789.png"
        or images[int(browser.names()[0][3:-4])].row.score > 0.9999
    )
    for _ in range(99):
        browser.run("document.getElementById('next').click()")
    assert browser.run("return document.getElementById('place').innerText") == "Page 100 of 100"
    assert browser.run("return document.getElementById('next').disabled")
    assert browser.run("return document.images.length") <= 102
    browser.check_quiet()
