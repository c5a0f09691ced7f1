"""All cases: what is run, by whom, and what tilework has to reach."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import (
    graphs,
    labels,
    on_disk,
    pyramids,
    quantiles,
    scheduling,
    writing,
)  # fmt: skip
from benchmarks.cases_memory import DEVICE_CASES, MEMORY_CASES
from benchmarks.measure import Bar, Case, Contestant, Curves, contestants_of, faster

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.measure import Prepared


# ----------------------------------------------------------------------------------- Zarr to Zarr

SLICER = Case(
    name="slicer",
    why="The loop of Ryomen's README from Zarr to Zarr: crops overlap chunks of both sides.",
    workload=on_disk.Stored(shape=(384, 384, 384), chunk=128, crop=128, stride=64),
    contestants=contestants_of(
        "tilework writer",
        tilework_writer=on_disk.tilework_writer,
        tilework_slicer=on_disk.tilework_slicer,
        ryomen=on_disk.ryomen,
        limit_copy=on_disk.copy_pool,
    ),
    bars=(faster("ryomen", "tilework writer", 3), faster("ryomen", "tilework slicer", 1)),
    setup=on_disk.write_source,
)


def _promised(ours: str = "tilework*") -> tuple[Bar, Bar]:
    """Return bars on what a plan says of memory."""
    return (
        Bar("peak / estimate of the plan, at most", "over_estimate", ours, 1.0),
        Bar("peak / estimate of the plan, at least", "over_estimate", ours, 0.5, at_least=True),
    )


def _stored(name: str, why: str, work: on_disk.Stored) -> Case:
    """Return trimmed halos from store to store."""
    return Case(
        name=name,
        why=why,
        workload=work,
        contestants=contestants_of(
            "tilework",
            tilework=on_disk.tilework_trim,
            map_overlap=on_disk.map_overlap,
            cubed=on_disk.cubed,
            limit_copy_by_dask=on_disk.copy_dask,
            limit_copy=on_disk.copy_pool,
        ),
        bars=(
            Bar("wall / map_overlap", "wall_s", "tilework", 0.9, "map overlap"),
            Bar("CPU / map_overlap", "cpu_s", "tilework", 0.9, "map overlap"),
            Bar("peak / map_overlap", "peak_mb", "tilework", 0.5, "map overlap"),
            Bar("CPU / copy", "cpu_s", "tilework", 1.15, "limit copy"),
            faster("cubed", "tilework"),
            *_promised(),
        ),
        setup=on_disk.write_source,
        notes=("estimate_mb", "over_estimate"),
    )


ZARR_TRIM = _stored(
    "zarr_trim",
    "From disk to disk in chunks of 1024 with a halo of 64, which must cost neither decoding nor tasks.",
    on_disk.Stored(shape=(12288, 12288), chunk=1024, crop=1024 + 2 * 64, stride=1024),
)
ZARR_TRIM3D = _stored(
    "zarr_trim3d",
    "The same in three dimensions, in chunks of 128 with a halo of 16: a crop touches 27 chunks.",
    on_disk.Stored(shape=(512, 512, 512), chunk=128, crop=128 + 2 * 16, stride=128),
)


def _stored_blend(name: str, why: str, work: on_disk.Stored) -> Case:
    """Return blends from store to store."""
    floor = "limit copy and multiply-add"
    return Case(
        name=name,
        why=why,
        workload=work,
        contestants=contestants_of(
            "tilework",
            tilework=on_disk.tilework_blend,
            **{floor: on_disk.copy_and_add, "limit copy": on_disk.copy_pool},
        ),
        bars=(Bar("CPU / copy and multiply-add", "cpu_s", "tilework", 1.3, floor), *_promised()),
        tolerance=1e-4,
        setup=on_disk.write_source,
        notes=("estimate_mb", "over_estimate"),
    )


ZARR_BLEND = _stored_blend(
    "zarr_blend",
    "Gaussian weights from disk to disk, each sample in four crops.",
    on_disk.Stored(shape=(8192, 8192), chunk=1024, crop=512, stride=256),
)
ZARR_BLEND3D = _stored_blend(
    "zarr_blend3d",
    "The same in three dimensions, each sample in eight crops.",
    on_disk.Stored(shape=(384, 384, 384), chunk=128, crop=128, stride=64),
)
ZARR_BLEND_BLOSC = _stored_blend(
    "zarr_blend_blosc",
    "The same with Blosc, which takes longer for blended samples than for those of the source.",
    replace(ZARR_BLEND3D.workload, blosc=True),
)

# --------------------------------------------------------------------------------- many and large


GROWN = on_disk.Stored(shape=(30720, 30720), chunk=512, crop=512 + 2 * 32, stride=512)


def _grown(
    line: str,
    prepare: Callable[[on_disk.Stored, Path], Prepared],
    sizes: int = len(on_disk.FRACTIONS),
    **crops: int,
) -> tuple[Contestant, ...]:
    """Return a contestant for each of the smallest sizes of the image."""

    def sized(fraction: float) -> Contestant:
        times = round((fraction / on_disk.FRACTIONS[0]) ** 2)
        return Contestant(
            f"{line}, x{times}",
            lambda work, folder: prepare(replace(work.scaled(fraction), **crops), folder),
            line=line,
        )

    return tuple(map(sized, on_disk.FRACTIONS[:sizes]))


HALF = {"crop": 512, "stride": 256}

GROWTH = Case(
    name="growth",
    why="Images from 4 MB to 4 GB, Zarr to Zarr: time grows with the image, and memory should not.",
    workload=GROWN,
    contestants=(
        *_grown("tilework trim", on_disk.tilework_trim),
        *_grown("tilework blend", on_disk.tilework_blend, **HALF),
        *_grown("map_overlap trim", on_disk.map_overlap),
        *_grown("Patchly blend, in memory", on_disk.patchly, sizes=3, **HALF),
        *_grown("limit copy", on_disk.copy_pool),
    ),
    bars=(
        Bar("peak, trim, 900 times the image", "peak_mb", "tilework trim, x900", 1.1, "tilework trim, x9"),
        Bar("peak, blend, 900 times the image", "peak_mb", "tilework blend, x900", 1.1, "tilework blend, x9"),
        *_promised(),
    ),
    notes=("image_mb", "estimate_mb", "over_estimate"),
    tolerance=1e-4,
    turns=1,
    setup=on_disk.write_sources,
    curves=(
        Curves("image_mb", "wall_s", "image (MB)", "seconds", "Time, Zarr to Zarr, two threads"),
        Curves("image_mb", "peak_mb", "image (MB)", "MB", "Peak memory, Zarr to Zarr, two threads"),
    ),
)

TIMES = (1, 4, 16)

LENGTH = Case(
    name="length",
    why="A volume may be as long as it likes: memory is a matter of its face.",
    workload=writing.Long(length=1024, face=256, crop=64, stride=32, chunk=64),
    contestants=tuple(
        Contestant(
            f"tilework x{n}{way}",
            partial(writing.to_zarr, times=n, traced=way == ", traced", one_arena=way == ", one arena"),
            None if n == 1 or way == ", traced" else f"tilework x1{way}",
        )
        for way in ("", ", one arena", ", traced")
        for n in TIMES
    ),
    bars=(
        *(
            Bar(f"{what}, {n} times the length", figure, f"tilework x{n}{way}", 1.1, f"tilework x1{way}")
            for what, figure, way in (
                ("peak", "peak_mb", ""),
                ("peak, one arena", "peak_mb", ", one arena"),
                ("allocated", "allocated_mb", ", traced"),
            )
            for n in TIMES[1:]
        ),
        *_promised("tilework x*[0-9]"),
    ),
    tolerance=1e-2,
    notes=("estimate_mb", "over_estimate", "allocated_mb", "calls", "slabs"),
)

CLUSTER = Case(
    name="cluster",
    why="256 blocks on two worker processes: what the scheduler and the marks cost.",
    workload=writing.Blocks(count=256, side=256),
    contestants=(
        Contestant("tilework", partial(writing.on_cluster, who="tilework")),
        Contestant("tilework model", partial(writing.on_cluster, who="tilework model"), "tilework"),
        Contestant("map_blocks", partial(writing.on_cluster, who="map_blocks"), "tilework"),
    ),
    bars=(
        Bar("wall / map_blocks", "run_s", "tilework", 1.1, "map_blocks"),
        Bar("with a 52 MB model / without", "run_s", "tilework model", 1.2, "tilework"),
    ),
    tolerance=1e-6,
    rounds=3,
    notes=("run_s",),
)

CLUSTER_MEMORY = Case(
    name="cluster_memory",
    why="Workers give freed memory back to the system, as dask starts them, or keep it.",
    workload=writing.Long(length=1024, face=256, crop=64, stride=32, chunk=64),
    contestants=(
        Contestant("given back", partial(writing.blended_on_cluster, kept=False)),
        Contestant("kept", partial(writing.blended_on_cluster, kept=True), "given back"),
    ),
    bars=(
        Bar("kept / given back, wall", "run_s", "kept", 0.8, "given back"),
        Bar("kept / given back, CPU of the workers", "worker_cpu_s", "kept", 0.8, "given back"),
    ),
    tolerance=1e-4,
    rounds=3,
    notes=("run_s", "worker_cpu_s", "worker_mb"),
)

MILLION = Case(
    name="million",
    why="A million blocks: neither client nor scheduler may ever hold them.",
    workload=writing.Million(blocks=1_000_000, looked_at=30_000),
    contestants=tuple(
        Contestant(f"tilework {name}", partial(writing.submitted, blend=blend))
        for name, blend in (("trim", "trim"), ("blend", "gaussian"))
    ),
    bars=(
        Bar("tasks that the scheduler holds", "held", "tilework*", 25_000),
        Bar("ms of the client per block, trim", "ms_block", "tilework trim", 0.1),
        Bar("ms of the client per block, blend", "ms_block", "tilework blend", 0.1),
    ),
    tolerance=None,
    notes=("ms_block", "held", "bytes_block"),
)

# -------------------------------------------------------------------------------- before anything runs

DECADES = (3, 4, 5, 6)


def _built(
    name: str, ndim: int, decades: tuple[int, ...], prepare: Callable[..., Prepared]
) -> list[Contestant]:
    return [
        Contestant(
            f"{name} {ndim}-D, 10^{n} blocks",
            partial(prepare, given=graphs.grid(ndim, 10**n)),
            line=f"{name} {ndim}-D",
        )
        for n in decades
    ]


BUILD = Case(
    name="build",
    why="Blends of up to a million blocks: built, explained, drawn in a notebook, and cut to 10 000 samples. "
    "All but wall is CPU seconds.",
    workload=graphs.WHOLE,
    contestants=(
        *(c for ndim in graphs.CROPS for c in _built("tilework", ndim, DECADES, graphs.tilework_build)),
        *(c for ndim in (2, 3) for c in _built("map_overlap", ndim, DECADES[:2], graphs.map_overlap_build)),
        Contestant("tilework 10^6 x 10^6", graphs.tilework_build),
        Contestant(
            "tilework 10^6 x 10^6 of dask", partial(graphs.tilework_build, source="dask"), "dask 10^6 x 10^6"
        ),
        Contestant("dask 10^6 x 10^6", graphs.dask_source),
        *(
            Contestant(f"tilework, chosen: {name}", partial(graphs.chosen_build, **given))
            for name, given in graphs.CHOSEN.items()
        ),
    ),
    bars=(
        Bar("build, CPU s", "cpu_s", "tilework *-D*", 0.02),
        Bar("slice of 10 000 samples, CPU s", "slice_s", "tilework *-D*", 0.3),
        Bar("slice of 100 x 100 out of 10^6 x 10^6, CPU s", "slice_s", "tilework 10^6 x 10^6", 0.3),
        Bar("explain, CPU s", "explain_s", "tilework *", 0.05),
        Bar("picture of a notebook, CPU s", "html_s", "tilework *", 0.05),
        Bar("build on a dask source, CPU s", "cpu_s", "tilework 10^6 x 10^6 of dask", None),
        Bar("build with chosen blocks, CPU s", "cpu_s", "tilework, chosen*", 0.02),
        Bar("explain with chosen blocks, CPU s", "explain_s", "tilework, chosen*", 0.05),
    ),
    rounds=3,
    turns=1,
    notes=("blocks", "slice_s", "explain_s", "html_s"),
    curves=(
        Curves("blocks", "cpu_s", "blocks", "CPU seconds", "Build"),
        Curves("blocks", "slice_s", "blocks", "CPU seconds", "Slice of 10 000 samples, computed"),
        Curves("blocks", "peak_mb", "blocks", "MB", "Memory of the build"),
    ),
)

TASKS = Case(
    name="tasks",
    why="Making a task, against dask's bare construction of the same one.",
    workload=graphs.grid(2, 10_000),
    contestants=(
        Contestant("tilework trim", partial(graphs.tasks, options={"blend": "trim"})),
        Contestant("tilework blend", partial(graphs.tasks, options={})),
        *(
            Contestant(f"tilework {name}", partial(graphs.tasks, options=options, given=(grid, chunks)))
            for name, (grid, chunks, options) in graphs.OVER_DASK.items()
        ),
    ),
    bars=(Bar("a task / a bare task", "over_bare", "tilework*", 2.0),),
    tolerance=None,
    notes=("tasks", "task_us", "bare_us"),
)

SCHEDULER = Case(
    name="scheduler",
    why="The processor time of a scheduler in a process of its own, for each block that does nothing.",
    workload=scheduling.Scheduled(blocks=5000, crop=16),
    contestants=tuple(
        Contestant(f"tilework {name}", partial(scheduling.scheduled, blend=blend))
        for name, blend in (("trim", "trim"), ("blend", "gaussian"))
    ),
    bars=(Bar("CPU ms of the scheduler per block", "scheduler_ms_block", "tilework*", 3),),
    tolerance=None,
    rounds=1,
    notes=("blocks", "scheduler_ms_block"),
)

_EQUAL = Bar("filter alone / chunks alone: CPU", "cpu_s", "chunks alone", 1.0, "filter alone", at_least=True)
_LEVELS = (
    Bar("five levels / level 0 alone, wall", "over_wall", "tilework", 1.15),
    Bar("five levels / level 0 alone, CPU", "over_cpu", "tilework", 1.15),
    Bar("peak / level 0 alone", "peak_mb", "tilework", 1.35, "tilework level 0 alone"),
)

PYRAMID = Case(
    name="pyramid",
    why="An OME-Zarr image of five levels from a filter that takes at least as long as writing its result.",
    workload=on_disk.Stored(shape=(8192, 8192), chunk=512, crop=512, stride=512),
    contestants=contestants_of(
        "tilework",
        tilework=pyramids.tilework_levels,
        tilework_level_0_alone=pyramids.tilework_alone,
        ome_zarr=pyramids.ome_zarr,
        ngff_zarr=pyramids.ngff_zarr,
        filter_alone=pyramids.filter_alone,
        chunks_alone=pyramids.chunks_alone,
        wide_filter=partial(pyramids.tilework_levels, sigma=pyramids.WIDE),
    ),
    bars=(
        _EQUAL,
        *_LEVELS,
        Bar("wide filter: five levels / level 0 alone, wall", "over_wall", "wide filter", 1.15),
        faster("ome zarr", "tilework"),
        faster("ngff zarr", "tilework"),
    ),
    tolerance=1e-5,
    rounds=3,
    setup=on_disk.write_source,
    notes=("over_wall", "over_cpu"),
)
PYRAMID3D = Case(
    name="pyramid3d",
    why="The same of a volume, whose levels have a seventh of its chunks, and not a third.",
    workload=on_disk.Stored(shape=(256, 512, 512), chunk=64, crop=64, stride=64),
    contestants=contestants_of(
        "tilework",
        **{
            name: partial(way, sigma=pyramids.SIGMA_3D)
            for name, way in (
                ("tilework", pyramids.tilework_levels),
                ("tilework_level_0_alone", pyramids.tilework_alone),
                ("filter_alone", pyramids.filter_alone),
                ("chunks_alone", pyramids.chunks_alone),
            )
        },
    ),
    bars=(_EQUAL, *_LEVELS),
    tolerance=1e-5,
    rounds=3,
    setup=on_disk.write_source,
    notes=("over_wall", "over_cpu"),
)

# ------------------------------------------------------------------------------------------- labels


def _labels(name: str, why: str, work: labels.Cells) -> Case:
    """Return touching cells by everyone, and the rules of other tools for their results."""
    stored = "tilework to zarr"
    ways = {
        "tilework_compute": labels.tilework,
        "tilework_to_zarr": partial(labels.tilework, stored=True),
        "patchworks_touch": partial(labels.patchworks, stitch="touch"),
        "patchworks_iou": partial(labels.patchworks, stitch="iou"),
        "rule_none": partial(labels.rule, shrink=None),
        "rule_touch": partial(labels.rule, shrink=False),
        "rule_shrink": partial(labels.rule, shrink=True),
        "limit_calls_alone": labels.only_calls,
    }
    half = 0.5 if work.replayed else None
    bars = (
        Bar("share of exact objects", "exact", "tilework*", 1.0, at_least=True),
        *(
            Bar(f"{ours.removeprefix('tilework ')}: {figure} / {peer}", f"{figure}_s", ours, half, peer)
            for peer in ("patchworks touch", "patchworks iou")
            for ours in ("tilework compute", stored)
            for figure in ("wall", "cpu")
        ),
    )
    notes = ("objects", "exact", "merged", "split")
    contestants = contestants_of(stored, **ways)
    return Case(name, why, work, contestants, bars, tolerance=None, rounds=3, notes=notes)


LABELS = _labels(
    "labels",
    "A watershed of thousands of cells that touch: whose objects are those of the whole image.",
    labels.Cells(),
)
LABELS_ALONE = _labels(
    "labels_alone",
    "The same cells from a function that takes next to no time: what is left is the cost of tiling.",
    labels.Cells(replayed=True),
)

# --------------------------------------------------------------------------------------- statistics


def _quantiles(name: str, why: str, dtype: str) -> Case:
    """Return exact and approximate quantiles of an image in Zarr."""
    one, numpy = "tilework one thread", "numpy in memory"
    bars = (
        Bar("distance in rank", "rank_error", "tilework*", 0.0),
        Bar("CPU, ns a sample", "cpu_ns", one, 40.0),
        Bar("CPU / decoding once", "cpu_s", one, None, "limit decoding"),
        *(Bar(f"CPU / {peer}", "cpu_s", one, None, peer) for peer in (numpy, "dask percentile")),
    )
    contestants = contestants_of("tilework", **quantiles.WAYS)
    notes = ("rank_error", "cpu_ns")
    return Case(name, why, quantiles.Drift(dtype), contestants, bars, tolerance=None, rounds=3, notes=notes)


QUANTILES = _quantiles(
    "quantiles", "Five quantiles of float32 that drift over the chunks: what a normalisation needs.", "f4"
)
QUANTILES16 = _quantiles("quantiles16", "The same of uint16, as cameras give it.", "u2")

LABEL_CASES = (LABELS, LABELS_ALONE)
STORE_CASES = (
    ZARR_TRIM,
    ZARR_TRIM3D,
    ZARR_BLEND,
    ZARR_BLEND3D,
    ZARR_BLEND_BLOSC,
    PYRAMID,
    PYRAMID3D,
    SLICER,
    LENGTH,
    CLUSTER,
    CLUSTER_MEMORY,
)
STATISTICS_CASES = (QUANTILES, QUANTILES16)
OTHER_CASES = (BUILD, TASKS, MILLION, SCHEDULER, GROWTH)
CASES = {
    case.name: case
    for case in (
        *MEMORY_CASES, *STORE_CASES, *LABEL_CASES, *DEVICE_CASES, *STATISTICS_CASES, *OTHER_CASES,
    )
}  # fmt: skip
