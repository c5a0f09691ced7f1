"""M, memory: what a run allocates is no more than its plan says, whatever its options."""

from __future__ import annotations

import gc
import math
import tracemalloc
from dataclasses import replace
from unittest import mock

import dask
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tilework.graph.build import plan_of
from tilework.plan.memory import peak_bytes, room_bytes, seam_bytes
from tilework.writing import preparing, replan

# What Python, dask and zarr take beside samples: for the run, and for each block of a batch.
BESIDE, PER_BLOCK, BLOCKS = 3_000_000, 40_000, 512


@st.composite
def jobs(draw):
    dims = draw(st.sampled_from((2, 2, 3)))
    longest = {2: (700, 1024, 1500), 3: (96, 128, 160)}[dims]
    shape = tuple(draw(st.sampled_from(longest)) for _ in range(dims))
    crop = draw(st.sampled_from({2: (64, 128, 256, 300), 3: (24, 32, 48, 64)}[dims]))
    stride = int(crop * draw(st.sampled_from((0.5, 0.75, 1) if crop < 100 else (0.25, 0.5, 1))))
    blend = draw(st.sampled_from(("trim", "gaussian", "average", "max", "sum", "map")))
    options = {"edge": draw(st.sampled_from(("shift", "pad", "squeeze", "clip")))}
    options["reuse"] = draw(st.sampled_from(("auto", "share", "recompute")))
    scale = draw(st.sampled_from((1, 1, 2)))
    if blend == "trim":
        options["overlap"] = (crop - stride) // 2
    else:
        options |= {"stride": stride, "blend": weights([crop * scale] * dims) if blend == "map" else blend}
    options["chunks"] = draw(
        st.sampled_from(("auto", crop // 2, crop, 2 * crop) if crop > 100 else ("auto", 4 * crop))
    )
    options["batch_size"] = draw(st.sampled_from((None, None, 2, 4, 16, 32)))
    if draw(st.booleans()):
        part = draw(st.sampled_from((0.2, 0.9)))
        options["mask"] = np.random.default_rng(0).random([-(-n // 40) for n in shape]) < part
    options["skip"] = draw(st.sampled_from((None, None, bright)))
    return {
        "shape": shape,
        "crop": crop,
        "options": options,
        "dtype": draw(st.sampled_from(("uint8", "uint16", "float32", "float64"))),
        "result": draw(st.sampled_from(("uint8", "int16", "float32", "float64"))),
        "channels": draw(st.sampled_from((0, 0, 1, 3))),
        "scale": scale,
        "chunks": draw(st.sampled_from((None, 64, 100, 256))),
        "threads": draw(st.sampled_from((1, 2, 3))),
        "write": {"on_error": draw(st.sampled_from(("raise", "fill")))},
        "limit": draw(st.sampled_from((None, 10**8, 4 * 10**7))),
    }


def weights(shape):
    return np.random.default_rng(0).random(shape) + 0.1


def bright(crop):
    return crop.ravel()[0] > 150


def source_of(job, folder):
    image = np.random.default_rng(0).integers(0, 200, job["shape"], np.uint8).astype(job["dtype"])
    if job["chunks"] is None:
        return image
    chunks = tuple(min(job["chunks"], n) for n in image.shape)
    path = str(folder / f"{'x'.join(map(str, image.shape))}-{chunks[0]}-{image.dtype}")
    array = zarr.create_array(path, shape=image.shape, chunks=chunks, dtype=image.dtype, overwrite=True)
    array[...] = image
    return zarr.open_array(path, mode="r")


def function_of(job):
    lead, ndim = int(job["options"]["batch_size"] is not None), len(job["shape"])

    def fn(crop):
        found = crop.astype(job["result"])
        for axis in range(ndim):
            found = found if job["scale"] == 1 else np.repeat(found, job["scale"], axis=lead + axis)
        return np.stack([found] * job["channels"], axis=lead) if job["channels"] else found

    return fn


def allocated(out, target, **options):
    """Return the most bytes allocated while writing, the plan, and the bytes for encoding."""
    plans = []

    def noted(spec, members, *args):
        found = replan.replanned(spec, members, *args)
        plans.append((found.plan, found.plan.threads * replan._encoding(found, members)))
        return found

    gc.collect()
    tracemalloc.start(1)
    try:
        with mock.patch.object(preparing, "replanned", noted):
            before = tracemalloc.get_traced_memory()[0]
            tw.to_zarr(out, target, overwrite=True, progress=False, **options)
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        tw.clear_caches()
    return peak - before, *plans[-1]


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory):
    """What the first run imports is none of its memory."""
    image = np.zeros((64, 64), np.float32)
    out = tw.tiled_map(np.negative, image, 16, stride=8, blend="gaussian")
    with dask.config.set(scheduler="threads"):
        tw.to_zarr(out, tmp_path_factory.mktemp("first") / "out.zarr", progress=False)


def beside(plan):
    """Return the bytes that are no samples."""
    return BESIDE + PER_BLOCK * min(BLOCKS, math.prod(plan.blocks))


def inverted(crop):
    return ~crop


def doubled(crop):
    return crop.astype(np.float64)


def small(crop):
    return crop.astype(np.uint8)


# Each has one thing that takes most of the memory.
PARTS = {
    "products of weights": (inverted, np.uint8, 256, {"stride": 64, "blend": "gaussian", "chunks": 256}),
    "sums of a map": (inverted, np.uint8, 64, {"stride": 32, "blend": weights((64, 64)), "chunks": 1024}),
    "a batch": (small, np.float64, 256, {"overlap": 0, "batch_size": 64, "chunks": 2048}),
    "a batch that is never full": (small, np.float64, 256, {"overlap": 0, "batch_size": 64, "chunks": 512}),
    "gaps by a mask": (inverted, np.uint8, 64, {"stride": 32, "blend": "average", "mask": np.eye(16) == 0}),
    "gaps by skip": (inverted, np.uint8, 64, {"stride": 32, "blend": "average", "skip": bright}),
    "parts of owners": (
        doubled, np.uint8, 1024, {"stride": 128, "blend": "max", "chunks": 256, "reuse": "recompute"},
    ),
    "canvases and seams": (doubled, np.uint8, 256, {"stride": 64, "blend": "max", "chunks": 256}),
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_M1_what_takes_most_is_counted(part, tmp_path):
    fn, dtype, crop, options = PARTS[part]
    image = np.random.default_rng(0).integers(0, 200, (2048, 2048)).astype(dtype)
    with dask.config.set(scheduler="sync"):
        result = fn(np.zeros((1, 1), dtype)).dtype
        out = tw.tiled_map(fn, image, crop, dtype=result, **options)
        found, plan, encoding = allocated(out, tmp_path / "out.zarr")
    needed = peak_bytes(plan) + encoding
    assert needed / 3 <= found <= needed + beside(plan)


SPOTS = np.zeros((32, 32), bool)
SPOTS[3:5, 5:7] = SPOTS[20, 9] = SPOTS[12, 25:27] = True


@pytest.mark.parametrize("reuse", ["share", "recompute"])
@pytest.mark.parametrize(
    "tiling", [{"overlap": 16}, {"stride": 64, "blend": "gaussian"}], ids=["trim", "blend"]
)
def test_M1_a_mask_of_a_few_spots_needs_little_more_than_blocks(tiling, reuse, tmp_path):
    """The estimate was that of blocks in which all tiles run, five times as much."""
    image = np.random.default_rng(0).integers(0, 200, (2048, 2048)).astype(np.uint16)
    source = zarr.create_array(tmp_path / "in.zarr", shape=image.shape, chunks=(256, 256), dtype=image.dtype)
    source[...] = image
    with dask.config.set(scheduler="sync"):
        out = tw.tiled_map(
            doubled, source, 128, dtype="float64", mask=SPOTS, chunks=1024, reuse=reuse, **tiling
        )
        found, plan, encoding = allocated(out, tmp_path / "out.zarr")
    needed = peak_bytes(plan) + encoding
    assert needed / 3 <= found <= needed + beside(plan)
    assert 2 * needed <= room_bytes(plan) + encoding


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("shape", "stride", "axes"),
    [
        ((6, 1536, 1536), (64, 64), (1, 2)),
        ((2, 3, 1024, 2048), (64, 64), (2, 3)),
        ((2048, 1536), (256, 64), (0, 1)),
    ],
    ids=["each", "two of each", "an axis without overlap"],
)
def test_M1_seams_wait_for_blocks_along_axes_that_share_tiles_only(shape, stride, axes, threads, tmp_path):
    """Where blocks share no tiles along an axis, the seams of a whole plane waited, and were counted."""
    image = np.random.default_rng(0).integers(0, 200, shape).astype(np.uint8)
    options = {"stride": stride, "blend": "max", "dtype": "float64", "chunks": 256, "reuse": "share"}
    plane = tw.tiled_map(doubled, image[(0,) * (len(shape) - 2)], 256, **options)
    out = tw.tiled_map(doubled, image, 256, axes=axes, each=range(axes[0]), **options)
    with dask.config.set(scheduler="sync" if threads == 1 else "threads", num_workers=threads):
        found, plan, encoding = allocated(out, tmp_path / "out.zarr")
    assert len(plan.open_axes) == 2 - (stride[0] == 256)
    assert peak_bytes(plan) == peak_bytes(replace(plan_of(plane), threads=plan.threads))
    if stride[0] == 256:
        row = tw.plan_tiles((256, 1536), 256, output=tw.Output("float64"), **options | {"dtype": "uint8"})
        assert seam_bytes(plan) == seam_bytes(row)
    assert found <= peak_bytes(plan) + encoding + beside(plan)


@pytest.mark.parametrize("boundary", ["reflect", "wrap", "constant"])
@pytest.mark.parametrize("shape", [(1500, 1500), (3 * 10**6,)], ids=str)
def test_M1_padding_copies_an_image_in_memory(shape, boundary, tmp_path):
    """It was taken for a view; and along one axis, an index of all samples took 8 bytes for each."""
    image = np.ones(shape, np.float64 if len(shape) == 2 else np.uint8)
    with dask.config.set(scheduler="sync"):
        out = tw.tiled_map(
            small, image, 4000 if len(shape) == 1 else 60, overlap=10, edge="pad", boundary=boundary,
            chunks=shape, dtype="uint8",
        )  # fmt: skip
        found, plan, encoding = allocated(out, tmp_path / "out.zarr")
    needed = peak_bytes(plan) + encoding
    assert needed / 3 <= found <= needed + beside(plan)


@pytest.mark.filterwarnings("ignore::tilework.CostWarning")
@settings(max_examples=max(1, settings.default.max_examples // 4))
@given(job=jobs())
def test_M2_no_run_allocates_more_than_its_plan_says(job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    output = tw.Output(job["result"], channels=job["channels"] or None, scale=job["scale"])
    threads = {"scheduler": "threads", "num_workers": job["threads"]}
    with dask.config.set(**(threads if job["threads"] > 1 else {"scheduler": "sync"})):
        try:
            fn, source = function_of(job), source_of(job, folder)
            out = tw.tiled_map(fn, source, job["crop"], output=output, **job["options"])
            limit = {} if job["limit"] is None else {"memory_limit": job["limit"]}
            found, plan, encoding = allocated(out, folder / "out.zarr", **limit, **job["write"])
        except (tw.GridError, tw.MemoryBudgetError):
            return  # crops longer than the image, blocks that cannot share, or too little memory
    needed = peak_bytes(plan) + encoding
    assert limit.get("memory_limit", needed) >= needed
    # The function's own: its result is made in up to three steps, one of which is counted.
    sample = np.dtype(job["result"]).itemsize * max(1, job["channels"]) * job["scale"] ** len(job["shape"])
    crops = (plan.batch_size or 1) * job["crop"] ** len(job["shape"])
    own = 2 * plan.threads * crops * sample
    assert found <= needed + own + beside(plan)
