"""Every Python snippet of the pages in ``docs`` runs as it stands, page by page, in the order of the page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.md"))
# Letters that the column of a page shows; what is longer has to be scrolled to.
WIDTH = 88


def snippets(page: Path) -> list[str]:
    """Return the Python cells and snippets of a page, without the lines that only a notebook knows."""
    found = re.findall(r"```(?:python|\{code-cell\})\n(.*?)```", page.read_text(), re.DOTALL)
    return [re.sub(r"(?m)^%.*$", "", code) for code in found]


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_code_fits_the_column_that_shows_it(page):
    blocks = re.findall(r"```(?:python|sh|\{code-cell\})\n(.*?)```", page.read_text(), re.DOTALL)
    assert [line for block in blocks for line in block.splitlines() if len(line) > WIDTH] == []


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
