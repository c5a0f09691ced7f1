"""What importing the package costs and shows."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tilework as tw

BLOCKED = """
import sys
for name in ("dask", "distributed", "zarr", "h5py", "torch", "matplotlib"):
    sys.modules[name] = None
import tilework as tw
plan = tw.plan_tiles((100, 90), crop=32, overlap=4, output=tw.Output("uint8", channels=3))
assert len(plan) == sum(1 for _ in plan) and "tiles" in plan.explain()
assert tw.TilePlan.from_json(plan.to_json()) == plan

import numpy as np
image = np.arange(400.0).reshape(20, 20)
slices = tw.Slicer(image, 8, 2)
output = np.zeros_like(image)
with slices.writer(output) as out:
    for crop, source, destination in slices:
        out[destination] = crop[source]
assert (output == image).all() and "tiles" in slices.plan.explain()
sampler = tw.GridSampler(image, (20, 20), (8, 8), (4, 4), chunk_size=(10, 10), mode=tw.SamplingMode.PAD_EDGES)
aggregator = tw.Aggregator(sampler, output_size=(20, 20), weights="gaussian")
for item in sampler:
    aggregator.append(*item)
assert np.allclose(aggregator.get_output(), image) and "tiles" in sampler.plan.explain()
"""
BARE = """
import sys
before = set(sys.modules)
import tilework
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert "tilework" in new and not any(name.startswith("tilework.") for name in sys.modules), new
heavy = {"numpy", "dask", "distributed", "zarr", "matplotlib", "torch", "click", "tqdm"} & new
assert not heavy, heavy
"""
LIGHT = """
import sys, numpy, dask.array
import tilework as tw
tw.tiled_map(abs, numpy.zeros((8, 8)), 4, 1, dtype=float)  # dask itself imports distributed to compute
heavy = {"matplotlib", "torch", "distributed", "zarr", "skimage"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "script",
    [BARE, BLOCKED, LIGHT],
    ids=["nothing_at_first", "plan_without_dask", "map_without_extras"],
)
def test_import_is_light_and_clean(script):
    """Plans work without dask and Zarr, and a map in memory imports nothing that it does not use."""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=120)


def test_the_table_of_public_names_is_what_type_checkers_see():
    """Each name is imported from the module that defines it, at run time and for types alike."""
    [block] = [n for n in ast.parse(Path(tw.__file__).read_text()).body if isinstance(n, ast.If)]
    seen = {a.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == {name: f"tilework.{home}" for name, home in tw._HOMES.items()}
    assert sorted(seen) == list(tw.__all__)
    for name, module in seen.items():
        assert getattr(tw, name).__module__ == module, name


def test_every_exported_name_resolves_and_all_is_sorted():
    assert list(tw.__all__) == sorted(tw.__all__)
    assert all(getattr(tw, name) is not None for name in tw.__all__)
    assert set(tw.__all__) < set(dir(tw))
    assert tw.__version__
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tw.no_such_name
