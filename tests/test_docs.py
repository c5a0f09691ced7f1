"""Every Python snippet of the pages in ``docs`` runs as it stands, page by page, in the order of the page."""

import ast
import re
from pathlib import Path

import pytest

import tilework

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.md"))
# Letters that the column of a page shows; what is longer has to be scrolled to.
WIDTH = 88
# What a page needs that is installed with the networks only.
NEEDS = {"monai-and-nnunet": ("torch", "monai"), "networks": ("torch",)}


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
    for module in NEEDS.get(page.stem, ()):
        pytest.importorskip(module, reason=f"pip install {module}")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for number, snippet in enumerate(snippets(page)):
        # Another cluster of this machine may have the usual port.
        code = snippet.replace("LocalCluster()", 'LocalCluster(dashboard_address=":0")')
        exec(compile(code, f"{page.name}, snippet {number}", "exec"), names)


def test_the_page_of_the_ancestors_has_its_bridges():
    text = "".join(snippets(ROOT / "docs" / "ancestors.md"))
    for name in ("Slicer(", "GridSampler(", "Aggregator(", "tw.tiled_map(", ".plan"):
        assert name in text


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_code():
    """Each quoted piece of a heading is a piece of a message."""
    texts = []
    for path in Path(tilework.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    headings = re.findall(r"^## (.*\".*)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(headings) > 12
    for heading in headings:
        for quoted in re.findall(r'"([^"]+)"', heading):
            pieces = [p.strip() for p in re.split(r"\.\.\.|\*\w+\*|\d+|->|[():;]", quoted)]
            pieces = [p for p in pieces if len(p) > 8]
            assert pieces, heading
            for piece in pieces:
                assert any(piece in text for text in texts), (heading, piece)
