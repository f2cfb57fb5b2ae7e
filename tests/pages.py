"""What tests ask of an HTML page: its parts as a parser sees them, what it does in a browser."""

import json
import re
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

LOADING = ("src", "href", "xlink:href", "srcset", "action", "formaction", "data", "poster")
VOID = {"meta", "link", "img", "input", "br", "hr", "col", "source", "wbr"}


class Page(HTMLParser):
    """The elements of an HTML file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    @property
    def data(self) -> Any:
        """The JSON for the script."""
        (block,) = (text for text in self.texts["script"] if text.lstrip().startswith("{"))
        return json.loads(block)

    def text_of(self, *tags: str) -> str:
        return "\n".join(text for tag in tags for text in self.texts.get(tag, ()))

    def check_self_contained(self) -> None:
        """Assert that nothing is loaded, and that the policy of the page forbids it."""
        for tag, attributes in self.elements:
            for name in LOADING:
                value = attributes.get(name, "")
                assert value.startswith(("data:", "#")) or value == "", (tag, name, value[:80])
            assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        styles = self.text_of("style")
        assert "@import" not in styles and "url(" not in styles.replace("url(#", "")
        policy = next(a["content"] for t, a in self.elements if t == "meta" and "http-equiv" in a)
        assert "default-src 'none'" in policy and "img-src data:;" in policy

    def check_identifiers(self) -> None:
        """Assert that no identifier occurs twice and that references have a target."""
        ids = [a["id"] for _, a in self.elements if "id" in a]
        assert len(ids) == len(set(ids))
        used = re.findall(r"url\(#([^)]+)\)", self.source)
        used += [a["xlink:href"][1:] for _, a in self.elements if "xlink:href" in a]
        assert set(used) <= set(ids)


class Browser:
    """Headless Chromium."""

    def __init__(self) -> None:
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
        chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
        chromedriver = shutil.which("chromedriver")
        if chromium is None or chromedriver is None:
            pytest.skip("no chromium and chromedriver on this machine (make browser)")
        self._folder = tempfile.mkdtemp()
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for option in (
            *("headless", "no-sandbox", "disable-gpu", "no-first-run", "hide-scrollbars"),
            "disable-dev-shm-usage",
            *("disable-background-networking", "disable-component-update", "disable-sync"),
            f"user-data-dir={self._folder}",
        ):
            options.add_argument(f"--{option}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(chromedriver)
        self.driver = webdriver.Chrome(options=options, service=service)

    def open(self, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Show a page and wait until it is there."""
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # forget what other pages did
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(path.resolve().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function in the page; return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def names(self) -> list[str]:
        """Return the names of the images in the list."""
        return self.run("return [...document.querySelectorAll('td.name bdi')].map(e=>e.innerText)")

    def check_quiet(self) -> None:
        """Assert that since `open` nothing was complained of and nothing but the page loaded."""
        assert self.driver.get_log("browser") == []
        messages = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        requested = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        # The browser's own empty tab may still be loading its icons.
        loaded = [url for url in requested if not url.startswith(("data:", "chrome"))]
        assert loaded == [self.driver.current_url], loaded

    def check_width(self) -> None:
        """Assert that the page does not scroll sideways."""
        found = self.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert found[0] <= found[1], found

    def lowest_contrast(self, selector: str) -> float:
        """Return the lowest contrast of text and its ground (WCAG 2) among some elements."""
        return self.run(CONTRAST, selector)

    def quit(self) -> None:
        self.driver.quit()
        shutil.rmtree(self._folder, ignore_errors=True)


CONTRAST = """
const light = (text) => {
  const [r, g, b] = text.match(/[0-9.]+/g).map(Number).slice(0, 3).map((value) => {
    const v = value / 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  const colour = getComputedStyle(element).backgroundColor;
  const clear = colour.startsWith("rgba(0, 0, 0, 0") || colour.startsWith("color(");
  return clear ? (element.parentElement ? ground(element.parentElement) : "rgb(255, 255, 255)")
    : colour;
};
return Math.min(...[...document.querySelectorAll(arguments[0])].map((element) => {
  const pair = [light(getComputedStyle(element).color), light(ground(element))];
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}));
"""
