"""The cases: what is run, by whom, and what tilework has to reach."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import graph_size, in_memory, on_disk, scheduling, writing
from benchmarks.measure import Bar, Case, Contestant

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.measure import Prepared

QUARTER = Bar("peak over image and output / image", "over_image", "tilework store", 0.25)
# compute() keeps every block until the last one is there: one more image, whoever made the blocks.
WITH_BLOCKS = Bar("the same by compute()", "over_image", "tilework compute", None)


def _faster(times: float, ours: str) -> Bar:
    return Bar(f"faster than Patchly, {ours}", "wall_s", ours, times, "patchly", at_least=True)


def _blend(name: str, why: str, work: in_memory.Blend, times: float) -> Case:
    return Case(
        name=name,
        why=why,
        workload=work,
        contestants=(
            Contestant("tilework compute", in_memory.tilework_compute, "patchly"),
            Contestant("patchly", in_memory.patchly),
            Contestant("tilework store", in_memory.tilework_store, "patchly"),
            Contestant("numpy loop", in_memory.numpy_loop, "patchly"),
        ),
        bars=(
            _faster(times, "tilework compute"),
            _faster(times, "tilework store"),
            QUARTER,
            WITH_BLOCKS,
        ),
        tolerance=1e-5,
        notes=("over_mb",),
    )


BLEND2D = _blend(
    "blend2d",
    "A slide level that fits into memory, each sample in four crops: Patchly's own ground.",
    in_memory.Blend(shape=(8192, 8192), crop=512, stride=256),
    times=5,
)
BLEND3D = _blend(
    "blend3d",
    "A microscope volume, each sample in eight crops: most samples are read and added 8 times.",
    in_memory.Blend(shape=(512, 512, 512), crop=128, stride=64),
    times=4,
)


def _with_stride(name: str, prepare: Callable[[in_memory.Blend, Path], Prepared], stride: int) -> Contestant:
    """Return a contestant with crops that far apart: both overlaps are then one case."""
    return Contestant(
        f"{name} {stride}",
        lambda work, folder: prepare(replace(work, stride=stride), folder),
        f"monai {stride}" if name != "monai" else None,
    )


STRIDES = (192, 128)
"""MONAI's overlap of 0.25 and 0.5."""

MONAI2D = Case(
    name="monai2d",
    why="Small enough that the cost of starting counts, against the loop most networks run in.",
    workload=in_memory.Blend(shape=(2048, 2048), crop=256, stride=STRIDES[0]),
    contestants=tuple(
        _with_stride(name, prepare, stride)
        for stride in STRIDES
        for name, prepare in (("tilework", in_memory.tilework_compute), ("monai", in_memory.monai))
    ),
    bars=tuple(
        Bar(f"{what} / MONAI, stride {s}", figure, f"tilework {s}", limit, f"monai {s}")
        for s in STRIDES
        for what, figure, limit in (("wall", "wall_s", 1.0), ("CPU", "cpu_s", None))
    ),
    tolerance=1e-5,
    rounds=15,
    notes=("over_mb",),
)


def _loops(name: str, why: str, work: in_memory.Blend, chunk: int, times: float, **options: Any) -> Case:
    """Return the loop of Patchly's README with both packages, in the ways in which it can be run."""
    ways = {"gaussian": ("gaussian", None), "avg": ("avg", None), "chunks": ("gaussian", chunk)}
    contestants = tuple(
        Contestant(
            f"{package} {way}",
            partial(in_memory.sampled, package=package, weights=weights, chunk=size),
            f"patchly {way}",
        )
        for way, (weights, size) in ways.items()
        for package in ("tilework", "patchly")
    )
    faster = tuple(
        Bar(
            f"faster than Patchly, {way}", "wall_s", f"tilework {way}",
            times if way == "gaussian" else 1.0, f"patchly {way}", at_least=True,
        )
        for way in ways
    )  # fmt: skip
    peaks = tuple(
        Bar(
            f"peak / Patchly, {way}", "peak_mb", f"tilework {way}",
            0.5 if way == "gaussian" else None, f"patchly {way}",
        )
        for way in ways
    )  # fmt: skip
    return Case(
        name=name, why=why, workload=work, contestants=contestants, bars=faster + peaks, tolerance=1e-5,
        notes=("over_mb",), **options,
    )  # fmt: skip


LOOP2D = _loops(
    "loop2d",
    "GridSampler and Aggregator with only the import changed, on a slide level.",
    in_memory.Blend(shape=(8192, 8192), crop=512, stride=256),
    chunk=2048,
    times=3,
)
LOOP3D = _loops(
    "loop3d",
    "The same on a microscope volume.",
    in_memory.Blend(shape=(512, 512, 512), crop=128, stride=64),
    chunk=256,
    times=3,
)
LOOP_SMALL = _loops(
    "loop_small",
    "The same with 3969 patches of 32 x 32, where the cost of a patch counts and not that of its samples.",
    in_memory.Blend(shape=(1024, 1024), crop=32, stride=16),
    chunk=256,
    times=1,
    rounds=5,
)

SLICER = Case(
    name="slicer",
    why="Slicer from Zarr to Zarr: crops overlap chunks of both sides, and Ryomen touches each many times.",
    workload=on_disk.Slices(extent=512, chunk=128, crop=128, overlap=32),
    contestants=(
        Contestant("tilework writer", partial(on_disk.sliced, package="tilework", writer=True), "ryomen"),
        Contestant("tilework loop", partial(on_disk.sliced, package="tilework"), "ryomen"),
        Contestant("ryomen", partial(on_disk.sliced, package="ryomen")),
    ),
    bars=(
        Bar("faster than Ryomen", "wall_s", "tilework writer", 3.0, "ryomen", at_least=True),
        Bar("faster, only the import changed", "wall_s", "tilework loop", 1.0, "ryomen", at_least=True),
        Bar("times a source chunk is decoded", "decoded", "tilework*", 1.3),
        Bar("times a target chunk is written", "written", "tilework writer", 1.0),
    ),
    setup=on_disk.write_volume,
    notes=("decoded", "written"),
)

ZARR_TRIM = Case(
    name="zarr_trim",
    why="From disk to disk, 1 GiB in 256 chunks: a halo must cost neither decoding nor tasks.",
    workload=on_disk.Trim(extent=16384, chunk=1024, overlap=64),
    contestants=(
        Contestant("tilework", on_disk.tilework_to_zarr, "map_overlap"),
        Contestant("map_overlap", on_disk.map_overlap),
        Contestant("copy dask", on_disk.copy_dask, "map_overlap"),
        Contestant("copy pool", on_disk.copy_pool, "map_overlap"),
    ),
    bars=(
        Bar("CPU / map_overlap", "cpu_s", "tilework", 1.0, "map_overlap"),
        Bar("tasks / map_overlap", "tasks", "tilework", 0.1, "map_overlap"),
        Bar("peak / map_overlap", "peak_mb", "tilework", 0.5, "map_overlap"),
        Bar("wall / copy by dask", "wall_s", "tilework", 1.5, "copy dask"),
        Bar("CPU / copy by dask", "cpu_s", "tilework", 1.5, "copy dask"),
        Bar("wall / copy by a pool", "wall_s", "tilework", 1.5, "copy pool"),
        Bar("CPU / copy by a pool", "cpu_s", "tilework", 1.5, "copy pool"),
        Bar("bytes decoded / image", "decoded", "tilework", 1.5),
    ),
    setup=on_disk.write_source,
    notes=("tasks", "decoded"),
)

GRAPH = Case(
    name="graph",
    why="Huge images are many tasks: graphs must be built, pickled and sent without a wait.",
    workload=graph_size.Build(),
    contestants=(
        *(
            Contestant(f"tilework {n}-D", partial(graph_size.tilework_build, ndim=n))
            for n in graph_size.CROPS
        ),
        *(Contestant(f"map_overlap {n}-D", partial(graph_size.map_overlap_build, ndim=n)) for n in (2, 3)),
    ),
    bars=(
        Bar("tasks per block", "tasks_per_block", "tilework*", 3),
        Bar("build of 32 768 crops, s", "build_32k_s", "tilework*", 1),
        Bar("build of 100 000 crops, s", "build_100k_s", "tilework*", 3),
        Bar("bytes of a pickled task", "task_bytes", "tilework*", 4096),
        Bar("times fn is in the graph", "fn_copies", "tilework*", 1),
    ),
    tolerance=None,
    notes=("tasks_per_block", "build_32k_s", "build_100k_s", "build_s", "task_bytes", "spec_bytes"),
)

NETWORK = Case(
    name="network",
    why="A real denoiser, some 0.2 s a crop: tiling must vanish beside it.",
    workload=in_memory.Denoise(extent=1024, crop=256, overlap=6),
    contestants=(
        Contestant("tilework", in_memory.tilework_network, "plain loop"),
        Contestant("plain loop", in_memory.loop_network),
    ),
    # The call in the run sees the same load; the other two also show whether tiling slows the call
    # itself, but only on a quiet machine.
    bars=(
        Bar("wall / (tiles x one call alone)", "over_alone", "tilework", 1.05),
        Bar("wall / (tiles x median call in the run)", "over_median", "tilework", 1.05),
        Bar("wall / plain loop", "wall_s", "tilework", 1.05, "plain loop"),
    ),
    tolerance=1e-5,
    notes=("tiles", "alone_ms", "over_alone", "over_median", "over_sum"),
)

LENGTHS = (1, 2, 4, 8)

LENGTH = Case(
    name="length",
    why="A volume may be as long as it likes: memory is a matter of its face.",
    workload=writing.Long(length=256, face=256, crop=64, stride=32, chunk=64),
    contestants=tuple(
        Contestant(f"{n}x", partial(writing.to_zarr, times=n), None if n == 1 else "1x") for n in LENGTHS
    ),
    bars=(
        *(Bar(f"peak, {n} times the length", "peak_mb", f"{n}x", 1.1, "1x") for n in LENGTHS[1:]),
        Bar("estimate, MB", "estimate_mb", "8x", None),
    ),
    tolerance=1e-2,
    notes=("estimate_mb", "calls", "slabs"),
)

CLUSTER = Case(
    name="cluster",
    why="256 blocks on two worker processes: what the scheduler and the marks cost.",
    workload=writing.Blocks(count=256, side=256),
    contestants=(
        Contestant("tilework", partial(writing.on_cluster, who="tilework"), "map_blocks"),
        Contestant("tilework model", partial(writing.on_cluster, who="tilework model"), "tilework"),
        Contestant("map_blocks", partial(writing.on_cluster, who="map_blocks")),
    ),
    bars=(
        Bar("wall / map_blocks", "run_s", "tilework", 1.5, "map_blocks"),
        Bar("with a 52 MB model / without", "run_s", "tilework model", 1.2, "tilework"),
    ),
    tolerance=1e-6,
    rounds=3,
    notes=("run_s",),
)

MILLION = Case(
    name="million",
    why="A million blocks: neither client nor scheduler may ever hold them.",
    workload=writing.Million(blocks=1_000_000, looked_at=30_000),
    contestants=tuple(
        Contestant(name, partial(writing.submitted, blend=blend))
        for name, blend in (("trim", "trim"), ("blend", "gaussian"))
    ),
    bars=(
        Bar("tasks that the scheduler holds", "held", "*", 25_000),
        Bar("CPU ms of the client per block", "ms_block", "*", 0.1),
        Bar("tasks per block", "tasks_block", "*", 3),
    ),
    tolerance=None,
    notes=("held", "ms_block", "tasks_block", "bytes_block"),
)

SCHEDULER = Case(
    name="scheduler",
    why="The processor time of a scheduler in a process of its own, for each block that does nothing.",
    workload=scheduling.Scheduled(blocks=5000, crop=16),
    contestants=tuple(
        Contestant(name, partial(scheduling.scheduled, blend=blend))
        for name, blend in (("trim", "trim"), ("blend", "gaussian"))
    ),
    bars=(Bar("CPU ms of the scheduler per block", "scheduler_ms_block", "*", 3),),
    tolerance=None,
    rounds=1,
    notes=("blocks", "scheduler_ms_block"),
)

MEMORY_CASES = (BLEND2D, BLEND3D, LOOP2D, LOOP3D, LOOP_SMALL, MONAI2D, NETWORK)
STORE_CASES = (SLICER, ZARR_TRIM, LENGTH, CLUSTER)
CASES = {case.name: case for case in (*MEMORY_CASES, *STORE_CASES, GRAPH, MILLION, SCHEDULER)}
