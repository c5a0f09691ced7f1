"""Every Python snippet of the pages in ``docs`` runs as it stands, page by page, in the order of the page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def snippets(page: Path) -> list[str]:
    """Return the Python snippets of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if snippets(p)], ids=lambda p: p.stem)
def test_snippets_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for number, snippet in enumerate(snippets(page)):
        exec(compile(snippet, f"{page.name}, snippet {number}", "exec"), names)


def test_the_page_of_the_ancestors_has_its_bridges():
    text = "".join(snippets(ROOT / "docs" / "ancestors.md"))
    for name in ("Slicer(", "GridSampler(", "Aggregator(", "tw.tiled_map(", ".plan"):
        assert name in text
