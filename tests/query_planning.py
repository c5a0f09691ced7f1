"""``python -m tests.query_planning``: results as expressions; "right" if all are.

It runs in a process of its own with dask's option "array.query-planning".
"""

from __future__ import annotations

import itertools
import pickle
import tempfile
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster
from scipy import ndimage

import tilework as tw

IMAGE = np.random.default_rng(3).random((96, 80)).astype("float32")
CALLS: list[int] = []


def smooth(crop: np.ndarray) -> np.ndarray:
    CALLS.append(1)
    return np.asarray(ndimage.uniform_filter(crop, 5))


def equal(got: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-5, atol=1e-6)


def one_result(image: Any, folder: Path, **options: Any) -> None:
    """Compute, slice, write and view a result of every kind."""
    expected = ndimage.uniform_filter(IMAGE, 5)
    out = tw.tiled_map(smooth, image, 32, dtype="float32", **options)
    again = tw.tiled_map(smooth, image, 32, dtype="float32", **options)
    assert out.name == again.name
    CALLS.clear()
    equal(out.compute(), expected)
    equal(out[3:50, 7].compute(), expected[3:50, 7])
    equal((out + 1).sum(axis=0).compute(), (expected + 1).sum(axis=0))
    equal(out.persist()[5].compute(), expected[5])
    equal(pickle.loads(cloudpickle.dumps(out)).compute(), expected)
    equal(tw.tiled_map(smooth, out, 32, 4, dtype="float32").compute(), ndimage.uniform_filter(expected, 5))
    equal(tw.view(out, verbose=False)[5:9, 60:], expected[5:9, 60:])
    assert "calls" in str(tw.explain(out))
    names = (folder / str(n) for n in itertools.count())
    for changed, factor in ((out, 1), (out.rechunk((32, 80)) * 2, 2)):
        where = next(n for n in names if not n.exists())
        equal(tw.to_zarr(changed, where, progress=False), factor * expected)


def several_results(image: Any, folder: Path) -> None:
    """Compute outputs of one call together: one call of the function for each tile."""

    def both(crop: np.ndarray) -> dict[str, np.ndarray]:
        return {"mean": smooth(crop), "same": crop}

    outputs = {"mean": tw.Output("float32"), "same": tw.Output("float32")}
    out = tw.tiled_map(both, image, 32, stride=16, blend="gaussian", rim=3, output=outputs, chunks=32)
    CALLS.clear()
    mean, same = dask.compute(out["mean"], out["same"])
    assert len(CALLS) == 20  # 5 x 4 tiles
    equal(mean, ndimage.uniform_filter(IMAGE, 5))
    equal(same, IMAGE)
    equal(out["same"][:5, 70:].compute(), IMAGE[:5, 70:])
    equal(tw.to_zarr(out, folder / "several", progress=False)["same"], IMAGE)


def nodata(image: Any, folder: Path) -> None:
    """Hide samples by a lazy mask, and by that of a masked array."""
    valid = IMAGE > 0.2
    expected = np.where(valid, ndimage.uniform_filter(IMAGE, 5), -1)
    for given, where in (
        (image, da.from_array(valid, chunks=40)),
        (da.from_array(np.ma.array(IMAGE, mask=~valid), chunks=40, asarray=False), None),
    ):
        out = tw.tiled_map(smooth, given, 32, 4, where=where, fill_value=-1, dtype="float32", chunks=32)
        equal(out.compute(), expected)
        equal(out[3:50, 7].compute(), expected[3:50, 7])
        equal(tw.to_zarr(out, Path(tempfile.mkdtemp(dir=folder)) / "out", progress=False), expected)


def main() -> None:
    """Try every kind of result and source, and the same on a cluster."""
    assert da.array_expr_enabled()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = tw.to_zarr(da.from_array(IMAGE, chunks=(32, 30)), folder / "image", progress=False)
        lazy = da.from_array(IMAGE[:, ::-1].copy(), chunks=(50, 33))[:, ::-1] + 0
        for image in (IMAGE, stored, folder / "image", lazy):
            one_result(image, folder, overlap=4)
            one_result(image, folder, stride=16, blend="gaussian", rim=3, chunks=32, reuse="share")
            one_result(image, folder, overlap=4, chunks=40, reuse="recompute")
            several_results(image, Path(tempfile.mkdtemp(dir=folder)))
            nodata(image, folder)
        with LocalCluster(n_workers=1, dashboard_address=":0", processes=False) as cluster, Client(cluster):
            for image in (IMAGE, lazy):
                one_result(image, folder, stride=16, blend="gaussian", rim=3, chunks=32, reuse="share")
    print("right")  # noqa: T201 -- the answer


if __name__ == "__main__":
    main()
