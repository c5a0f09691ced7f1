"""Execution of a graph whose last tasks return nothing, with a bar that counts tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dask.array as da
from dask.base import get_scheduler
from dask.callbacks import Callback

__all__ = ["execute"]

Key = Any
Graph = dict[Key, Any]


def execute(
    graph: Graph,
    weights: Mapping[Key, int],
    *,
    progress: bool | str,
    title: str,
) -> None:
    """Run the tasks named by ``weights`` on the scheduler that dask would choose.

    Parameters
    ----------
    graph : dict
    weights : mapping
        Tiles that each last task finishes.
    progress : bool or "auto"
        Whether a bar counts tiles; "auto": in a terminal and in a notebook.
    title : str
        Name of the bar.

    Notes
    -----
    The graph is not optimised: it is fused by construction, and dask's optimisation drops annotations.
    """
    schedule = get_scheduler(cls=da.Array)
    client = getattr(schedule, "__self__", None)
    with _bar(sum(weights.values()), progress, title) as advance:
        if client is not None and hasattr(client, "scheduler_info"):
            _on_cluster(client, graph, weights, advance)
            return

        def finished(key: Key, *_: Any) -> None:
            advance(weights.get(key, 0))

        with Callback(posttask=finished):
            schedule(graph, list(weights))


def _on_cluster(client: Any, graph: Graph, weights: Mapping[Key, int], advance: Callable[[int], Any]) -> None:
    from distributed import as_completed

    futures = client.get(dict(graph), list(weights), sync=False)
    try:
        for future in as_completed(futures):
            future.result()
            advance(weights[future.key])
    finally:
        client.cancel([f for f in futures if not f.done()])


@contextmanager
def _bar(total: int, progress: bool | str, title: str) -> Iterator[Callable[[int], Any]]:
    if progress is False:
        yield lambda _: None
        return
    from tqdm.auto import tqdm

    # None: tqdm shows the bar only where there is somebody to see it.
    with tqdm(total=total, desc=title, unit="tile", disable=None if progress == "auto" else False) as bar:
        yield bar.update
