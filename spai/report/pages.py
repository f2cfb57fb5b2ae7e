"""HTML pages that need nothing else: one file, no network, whatever names are in it.

Templates, style and scripts lie in `templates/`. Jinja2 escapes all that it puts into a page; data
for a script are JSON in which no markup can begin; a content security policy lets nothing load and
no other script run.
"""

import base64
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from spai._version import __version__
from spai.data.names import printable
from spai.files import replacing_text
from spai.report.tables import MISSING

TEMPLATES = Path(__file__).parent / "templates"
COUNTS = {
    "rows": "rows",
    "scored": "scored",
    "errors": "without a score",
    "kept_from_earlier_run": "kept from an earlier run",
}


def write_page(path: Path, template: str, *, script: str | None = None, **context: Any) -> None:
    """Render a template into a file, which is replaced at once.

    Args:
        path: of the page.
        template: name of a file in `templates/` that extends `base.html`.
        script: name of the only script that may run on it; None for none.
        context: what the template shows.
    """
    code = "" if script is None else (TEMPLATES / script).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    page = _environment().get_template(template)
    with replacing_text(path) as file:
        file.writelines(
            page.generate(
                **context,
                style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
                script=Markup(code),
                script_source=f"'sha256-{digest}'" if code else "'none'",
                version=__version__,
            )
        )


def run_summary(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts that most people look for."""
    model = run.get("model", {})
    counts = run.get("counts", {})
    versions = run.get("versions", {})
    shown = ("spai", "torch", "python")
    facts = {
        "Model": model.get("name"),
        "Known as": model.get("description"),
        "SHA-256": model.get("sha256"),
        "Device": model.get("device"),
        "Precision": model.get("precision"),
        "Images": ", ".join(
            f"{counts[key]:,} {what}" for key, what in COUNTS.items() if key in counts
        ),
        "Versions": ", ".join(f"{name} {versions[name]}" for name in shown if name in versions),
        "Seconds": run.get("seconds"),
        "Command": run.get("command"),
    }
    return [(name, _fact_text(value)) for name, value in facts.items() if value not in (None, "")]


def run_facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts of a run as dotted names and texts, in their order."""
    return [(name, _fact_text(value)) for name, value in _leaves(run)]


def _fact_text(value: Any) -> str:
    """Return a fact as people read it."""
    if value is None or value == "" or value == []:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    return environment


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is in nested mappings and in lists of mappings."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
        for number, item in enumerate(value, 1):
            yield from _leaves(item, f"{name}.{number}")
    else:
        yield name, list(value) if isinstance(value, tuple) else value
