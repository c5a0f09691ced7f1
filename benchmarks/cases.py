"""The cases: what is run, by whom, and what tilework has to reach."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import (
    devices,
    graphs,
    in_memory,
    labels,
    on_disk,
    peers,
    pyramids,
    quantiles,
    scheduling,
    writing,
)  # fmt: skip
from benchmarks.measure import Bar, Case, Contestant, Curves

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.measure import Prepared


def _contestants(peer: str, **ways: Callable[[Any, Path], Prepared]) -> tuple[Contestant, ...]:
    """Return a contestant for each way, whose name has spaces for underscores."""
    names = {name: name.replace("_", " ") for name in ways}
    return tuple(Contestant(names[n], ways[n], None if names[n] == peer else peer) for n in ways)


def _faster(peer: str, ours: str, times: float | None = 1.0) -> Bar:
    """Return a bar on wall time: how many times faster than the peer."""
    return Bar(f"{ours}: faster than {peer}", "wall_s", ours, times, peer, at_least=True)


# ------------------------------------------------------------------------------- blends in memory


def _blend(name: str, why: str, work: in_memory.Blend, times: float, chunk: int) -> Case:
    """Return the identity on crops, blended by a Gaussian where the contestant has one."""
    loop, numpy = in_memory.sampled, "limit multiply-add"
    compute, place, given = "tilework compute", "tilework.compute", "tilework into a given array"
    short = f"{given}, within a quarter of it"
    ours = {
        compute: in_memory.tilework_compute,
        f"{compute}, one thread": partial(in_memory.tilework_compute, threads=1),
        place: in_memory.tilework_in_place,
        f"{place}, one thread": partial(in_memory.tilework_in_place, threads=1),
        given: in_memory.tilework_store,
        f"{given}, one thread": partial(in_memory.tilework_store, threads=1),
        short: partial(in_memory.tilework_store, memory=0.25),
        "tilework loop": partial(loop, package="tilework"),
    }
    ways = {
        **{name: in_memory.beside(in_memory.multiply_add, way) for name, way in ours.items()},
        "tilework loop, chunks": partial(loop, package="tilework", chunk=chunk),
        "patchly": partial(loop, package="patchly"),
        "patchly, chunks": partial(loop, package="patchly", chunk=chunk),
        "monai": peers.monai,
        "tiler": peers.tiler,
        "torchio": peers.torchio,
        numpy: in_memory.multiply_add,
        "limit tiles x call": in_memory.only_calls,
        "limit memcpy": in_memory.memcpy,
    }
    bars = (
        Bar("loop / multiply-add, CPU", "over_cpu", "tilework loop", 1.15),
        *(
            Bar(f"{way}, one thread / multiply-add, CPU", "over_cpu", f"{way}, one thread", limit)
            for way, limit in ((given, 1.3), (compute, 1.4), (place, 1.4))
        ),
        Bar(f"{given}, two threads / multiply-add, wall", "over_wall", given, 1.3),
        Bar(f"{short}, two threads / multiply-add, wall", "over_wall", short, None),
        *(
            Bar(f"{way}, two threads / one, wall", "over_wall", way, 0.8, f"{way}, one thread")
            for way in (compute, place, given)
        ),
        _faster("patchly", "tilework compute", times),
        _faster("patchly", "tilework loop", times),
        _faster("patchly, chunks", "tilework loop, chunks"),
        *(_faster(peer, "tilework compute") for peer in ("monai", "tiler", "torchio")),
        # compute() keeps every block until the last one is there: one more image, whoever made the blocks.
        Bar(f"{short}: peak over image and output / image", "over_image", short, 0.25),
    )
    contestants, notes = _contestants(compute, **ways), ("over_mb", "over_wall", "over_cpu")
    # The first round is for memory, and nine are for time.
    return Case(name, why, work, contestants, bars, tolerance=1e-5, rounds=10, notes=notes)


BLEND2D = _blend(
    "blend2d",
    "A level of a slide that fits into memory, each sample in four crops: Patchly's own ground.",
    in_memory.Blend(shape=(8192, 8192), crop=512, stride=256),
    times=4.5,
    chunk=2048,
)
BLEND3D = _blend(
    "blend3d",
    "A volume of a microscope, each sample in eight crops: most samples are read and added 8 times.",
    in_memory.Blend(shape=(512, 512, 512), crop=128, stride=64),
    times=4,
    chunk=256,
)

STRIDES = (192, 128)
"""MONAI's overlap of 0.25 and 0.5."""


def _with_stride(name: str, prepare: Callable[[in_memory.Blend, Path], Prepared], stride: int) -> Contestant:
    """Return a contestant with crops that far apart: both overlaps are then one case."""
    return Contestant(
        f"{name} {stride}",
        lambda work, folder: prepare(replace(work, stride=stride), folder),
        f"tilework {stride}" if name != "tilework" else None,
    )


SMALL = Case(
    name="small",
    why="An image so small that the cost of starting counts, against the loop that most networks run in.",
    workload=in_memory.Blend(shape=(2048, 2048), crop=256, stride=STRIDES[0]),
    contestants=tuple(
        _with_stride(name, prepare, stride)
        for stride in STRIDES
        for name, prepare in (
            ("tilework", in_memory.tilework_compute),
            ("tilework beside monai", in_memory.beside(peers.monai, in_memory.tilework_compute)),
            ("tilework.compute beside monai", in_memory.beside(peers.monai, in_memory.tilework_in_place)),
            ("tilework into a given array", in_memory.tilework_store),
            ("tilework.monai", peers.monai_face),
            ("monai", peers.monai),
        )
    ),
    bars=tuple(
        Bar(f"{name} / MONAI, stride {s}: {what}", figure, f"{name} beside monai {s}", limit)
        for s in STRIDES
        for name in ("tilework", "tilework.compute")
        for what, figure, limit in (("wall", "over_wall", 1.0), ("CPU", "over_cpu", None))
    ),
    tolerance=1e-5,
    rounds=15,
    notes=("over_mb", "over_wall", "over_cpu"),
)


def _small_patches() -> Case:
    """Return the loop of Patchly's README with both packages, in the ways in which it can be run."""
    ways = {"gaussian": ("gaussian", None), "avg": ("avg", None), "chunks": ("gaussian", 256)}
    return Case(
        name="patches",
        why="3969 patches of 32 x 32, where the cost of a patch counts and not that of its samples.",
        workload=in_memory.Blend(shape=(1024, 1024), crop=32, stride=16),
        contestants=(
            Contestant("tilework compute", in_memory.tilework_compute, "tilework gaussian"),
            *(
                Contestant(
                    f"{package} {way}",
                    partial(in_memory.sampled, package=package, weights=weights, chunk=size),
                    None if package == "tilework" else f"tilework {way}",
                )
                for way, (weights, size) in ways.items()
                for package in ("tilework", "patchly")
            ),
        ),
        bars=tuple(_faster(f"patchly {way}", f"tilework {way}") for way in ways),
        tolerance=1e-5,
        rounds=5,
    )


PATCHES = _small_patches()

# -------------------------------------------------------------------------------- trims in memory

TRIM = Case(
    name="trim",
    why="Chunks with a halo that is trimmed off, in memory: dask's own ground.",
    workload=in_memory.Trim(shape=(8192, 8192), chunk=1024, depth=32),
    contestants=_contestants(
        "tilework",
        tilework=in_memory.tilework_trim,
        map_overlap=peers.map_overlap,
        apply_parallel=peers.apply_parallel,
        ryomen=peers.ryomen,
        cubed=peers.cubed,
        **{"limit copy and paste": in_memory.paste, "limit memcpy": in_memory.memcpy},
    ),
    bars=tuple(_faster(peer, "tilework") for peer in ("map overlap", "apply parallel", "ryomen", "cubed")),
    rounds=5,
    notes=("over_mb",),
)

NETWORK = Case(
    name="network",
    why="A network with the layers of a denoiser: tiling must vanish beside it.",
    workload=in_memory.Denoise(extent=1024, crop=256, overlap=6),
    contestants=(
        Contestant("tilework", in_memory.tilework_network),
        Contestant("plain loop", in_memory.loop_network, "tilework"),
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

# --------------------------------------------------------------------------------------- a device

LANES = Case(
    name="lanes",
    why="Reading, the call and writing wait as long as each other, and calls follow one another: a device.",
    workload=devices.Waiting(tiles=40, seconds=0.05),
    contestants=(
        Contestant("tilework", devices.tilework_lanes, "limit longest sum"),
        Contestant("tilework two lanes", partial(devices.tilework_lanes, lanes=2), "limit longest sum"),
        Contestant("limit longest sum", devices.longest_sum),
    ),
    bars=(Bar("wall / longest sum", "wall_s", "tilework", 1.2, "limit longest sum"),),
    rounds=3,
)

NETWORK_STORED = Case(
    name="network_stored",
    why="The same network from Zarr to Zarr: reading and writing must vanish beside it.",
    workload=in_memory.Denoise(extent=1536, crop=256, overlap=6),
    contestants=(
        Contestant("tilework", devices.tilework_stored),
        Contestant("tilework two lanes", partial(devices.tilework_stored, lanes=2)),
    ),
    bars=(
        Bar("wall / (tiles x one call alone)", "over_alone", "tilework", 1.03),
        Bar("wall / time of the device", "over_busy", "tilework", 1.03),
    ),
    tolerance=1e-5,
    rounds=3,
    notes=("tiles", "alone_ms", "over_alone", "over_busy"),
)

NETWORK_GPU = Case(
    name="network_gpu",
    why="A network with the layers of a denoiser on a GPU, Zarr to Zarr, beside its calls alone there.",
    workload=in_memory.Denoise(extent=16384, crop=1024, overlap=18),
    contestants=(Contestant("tilework", devices.tilework_on_gpu),),
    bars=(Bar("wall / (tiles x one call alone)", "over_alone", "tilework", 1.03),),
    tolerance=1e-5,
    rounds=3,
    notes=("tiles", "alone_ms", "over_alone", "over_busy"),
)

# ----------------------------------------------------------------------------------- Zarr to Zarr

SLICER = Case(
    name="slicer",
    why="The loop of Ryomen's README from Zarr to Zarr: crops overlap chunks of both sides.",
    workload=on_disk.Stored(shape=(384, 384, 384), chunk=128, crop=128, stride=64),
    contestants=_contestants(
        "tilework writer",
        tilework_writer=on_disk.tilework_writer,
        tilework_slicer=on_disk.tilework_slicer,
        ryomen=on_disk.ryomen,
        limit_copy=on_disk.copy_pool,
    ),
    bars=(_faster("ryomen", "tilework writer", 3), _faster("ryomen", "tilework slicer", 1)),
    setup=on_disk.write_source,
)


PROMISED = (
    Bar("peak / estimate of the plan, at most", "over_estimate", "tilework*", 1.0),
    Bar("peak / estimate of the plan, at least", "over_estimate", "tilework*", 0.5, at_least=True),
)
"""What a plan says of memory."""


def _stored(name: str, why: str, work: on_disk.Stored) -> Case:
    """Return trimmed halos from store to store."""
    return Case(
        name=name,
        why=why,
        workload=work,
        contestants=_contestants(
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
            _faster("cubed", "tilework"),
            *PROMISED,
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
        contestants=_contestants(
            "tilework",
            tilework=on_disk.tilework_blend,
            **{floor: on_disk.copy_and_add, "limit copy": on_disk.copy_pool},
        ),
        bars=(Bar("CPU / copy and multiply-add", "cpu_s", "tilework", 1.3, floor), *PROMISED),
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
        *PROMISED,
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
        Contestant(f"tilework x{n}", partial(writing.to_zarr, times=n), None if n == 1 else "tilework x1")
        for n in TIMES
    ),
    bars=(
        *(
            Bar(f"peak, {n} times the length", "peak_mb", f"tilework x{n}", 1.1, "tilework x1")
            for n in TIMES[1:]
        ),
        *PROMISED,
    ),
    tolerance=1e-2,
    notes=("estimate_mb", "over_estimate", "calls", "slabs"),
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
    ),
    bars=(
        Bar("build, CPU s", "cpu_s", "tilework *-D*", 0.02),
        Bar("slice of 10 000 samples, CPU s", "slice_s", "tilework *-D*", 0.3),
        Bar("slice of 100 x 100 out of 10^6 x 10^6, CPU s", "slice_s", "tilework 10^6 x 10^6", 0.3),
        Bar("explain, CPU s", "explain_s", "tilework *", 0.05),
        Bar("picture of a notebook, CPU s", "html_s", "tilework *", 0.05),
        Bar("build on a dask source, CPU s", "cpu_s", "tilework 10^6 x 10^6 of dask", None),
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
    contestants=tuple(
        Contestant(f"tilework {name}", partial(graphs.tasks, options=options))
        for name, options in (("trim", {"blend": "trim"}), ("blend", {}))
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
    contestants=_contestants(
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
        _faster("ome zarr", "tilework"),
        _faster("ngff zarr", "tilework"),
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
    contestants=_contestants(
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
    contestants = _contestants(stored, **ways)
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
    contestants = _contestants("tilework", **quantiles.WAYS)
    notes = ("rank_error", "cpu_ns")
    return Case(name, why, quantiles.Drift(dtype), contestants, bars, tolerance=None, rounds=3, notes=notes)


QUANTILES = _quantiles(
    "quantiles", "Five quantiles of float32 that drift over the chunks: what a normalisation needs.", "f4"
)
QUANTILES16 = _quantiles("quantiles16", "The same of uint16, as cameras give it.", "u2")

MEMORY_CASES = (BLEND2D, BLEND3D, SMALL, PATCHES, TRIM, NETWORK)
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
)
DEVICE_CASES = (LANES, NETWORK_STORED, NETWORK_GPU)
STATISTICS_CASES = (QUANTILES, QUANTILES16)
OTHER_CASES = (BUILD, TASKS, MILLION, SCHEDULER, GROWTH)
CASES = {
    case.name: case
    for case in (
        *MEMORY_CASES, *STORE_CASES, *LABEL_CASES, *DEVICE_CASES, *STATISTICS_CASES, *OTHER_CASES,
    )
}  # fmt: skip
