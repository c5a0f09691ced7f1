"""The cases whose image is in memory: blends, trims, networks, and a device."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import devices, in_memory, peers
from benchmarks.measure import Bar, Case, Contestant, contestants_of, faster

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.measure import Prepared


# ------------------------------------------------------------------------------- blends in memory


def _blend(name: str, why: str, work: in_memory.Blend, times: float, chunk: int) -> Case:
    """Return the identity on crops, blended by a Gaussian where the contestant has one."""
    loop, numpy = in_memory.sampled, "limit multiply-add"
    compute, place, given = "tilework compute", "tilework.compute", "tilework into a given array"
    short = f"{given}, within a quarter of it"
    ours = {
        compute: in_memory.tilework_compute,
        f"{compute}, one thread": partial(in_memory.tilework_compute, threads=1),
        f"{compute}, memory kept, one thread": partial(in_memory.tilework_compute, threads=1, kept=True),
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
        f"{numpy}, copies": in_memory.multiply_add_copies,
        f"{numpy}, copies, two threads": in_memory.multiply_add_threads,
        "limit tiles x call": in_memory.only_calls,
        "limit memcpy": in_memory.memcpy,
    }
    bars = (
        Bar("loop / multiply-add, CPU", "over_cpu", "tilework loop", 1.15),
        *(
            Bar(f"{way}, one thread / multiply-add, CPU", "over_cpu", f"{way}, one thread", limit)
            for way, limit in ((given, 1.3), (compute, 1.4), (f"{compute}, memory kept", 1.4), (place, 1.4))
        ),
        Bar(f"{given}, two threads / multiply-add, wall", "over_wall", given, 1.3),
        Bar(f"{short}, two threads / multiply-add, wall", "over_wall", short, None),
        *(
            Bar(f"{way}, two threads / one, wall", "over_wall", way, 0.8, f"{way}, one thread")
            for way in (compute, place, given)
        ),
        faster("patchly", "tilework compute", times),
        faster("patchly", "tilework loop", times),
        faster("patchly, chunks", "tilework loop, chunks"),
        *(faster(peer, "tilework compute") for peer in ("monai", "tiler", "torchio")),
        # compute() keeps every block until the last one is there: one more image, whoever made the blocks.
        Bar(f"{short}: peak over image and output / image", "over_image", short, 0.25),
    )
    contestants, notes = contestants_of(compute, **ways), ("over_mb", "over_wall", "over_cpu")
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
    why="An image so small that the cost of starting counts, against the loop that most networks run in. "
    "Results have a name; *hashed* ones are named by a hash of the image, as without `name=`.",
    workload=in_memory.Blend(shape=(2048, 2048), crop=256, stride=STRIDES[0]),
    contestants=tuple(
        _with_stride(name, prepare, stride)
        for stride in STRIDES
        for name, prepare in (
            ("tilework", in_memory.tilework_compute),
            ("tilework beside monai", in_memory.beside(peers.monai, in_memory.tilework_compute)),
            ("tilework.compute beside monai", in_memory.beside(peers.monai, in_memory.tilework_in_place)),
            (
                "tilework.compute, hashed beside monai",
                in_memory.beside(peers.monai, partial(in_memory.tilework_in_place, name=None)),
            ),
            ("tilework into a given array", in_memory.tilework_store),
            ("tilework.monai", peers.monai_face),
            ("monai", peers.monai),
            ("limit multiply-add", in_memory.multiply_add),
            ("limit multiply-add, copies", in_memory.multiply_add_copies),
            ("limit multiply-add, copies, two threads", in_memory.multiply_add_threads),
        )
    ),
    bars=tuple(
        Bar(f"{name} / MONAI, stride {s}: {what}", figure, f"{name} beside monai {s}", limit)
        for s in STRIDES
        for name in ("tilework", "tilework.compute", "tilework.compute, hashed")
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
        bars=tuple(faster(f"patchly {way}", f"tilework {way}") for way in ways),
        tolerance=1e-5,
        rounds=5,
    )


PATCHES = _small_patches()

# -------------------------------------------------------------------------------- trims in memory

TRIM = Case(
    name="trim",
    why="Chunks with a halo that is trimmed off, in memory: dask's own ground.",
    workload=in_memory.Trim(shape=(8192, 8192), chunk=1024, depth=32),
    contestants=contestants_of(
        "tilework",
        tilework=in_memory.tilework_trim,
        map_overlap=peers.map_overlap,
        apply_parallel=peers.apply_parallel,
        ryomen=peers.ryomen,
        cubed=peers.cubed,
        **{
            "tilework.compute": partial(in_memory.tilework_trim, in_place=True),
            "limit copy and paste": in_memory.paste,
            "limit memcpy": in_memory.memcpy,
        },
    ),
    bars=tuple(
        faster(peer, way)
        for way in ("tilework", "tilework.compute")
        for peer in ("map overlap", "apply parallel", "ryomen", "cubed")
    ),
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

MEMORY_CASES = (BLEND2D, BLEND3D, SMALL, PATCHES, TRIM, NETWORK)
DEVICE_CASES = (LANES, NETWORK_STORED, NETWORK_GPU)
