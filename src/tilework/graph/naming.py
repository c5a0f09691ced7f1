"""Names of results, made from what is computed."""

from __future__ import annotations

import uuid
from typing import Any

from dask.base import tokenize

from tilework.engine.spec import Spec
from tilework.function.load_once import LoadOnce

__all__ = ["fn_token", "name_of"]


def fn_token(fn: Any) -> Any:
    """Return a token of ``fn``: from its code if dask can hash it, otherwise random."""
    if isinstance(fn, LoadOnce):
        return fn.named
    try:
        return tokenize(fn, ensure_deterministic=True)
    except Exception:  # dask looks into it, and what a user's own class raises may be anything
        return uuid.uuid4().hex


def name_of(spec: Spec, *more: Any) -> str:
    """Return the deterministic name of a result."""
    outputs = [
        (
            o.key,
            o.shape,
            o.axes,
            o.channel_axis,
            *map(str, (o.dtype, o.stored, o.connectivity)),
            _word(o.blend),
        )
        for o in spec.outputs
    ]
    reduces = [fn_token(o.reduce) for o in spec.outputs]
    fills = [repr(o.fill_value) for o in spec.outputs]
    windows = [[w.window for w in o.weights] for o in spec.outputs]
    sources = [s.token for s in spec.sources]
    facts = [spec.plan.to_json(), sources, spec.source_axes, outputs, reduces, fills, windows, spec.boundary]
    calls = [fn_token(spec.fn), fn_token(spec.skip), spec.pass_tile, repr(spec.cval)]
    v = spec.validity
    if v is not None:
        calls += [[(t.name, t.source, t.axes, repr(t.nodata)) for t in v.terms], repr(v.fills)]
    token = tokenize(facts, calls, *more)
    return f"tiled_map-{token}"


def _word(blend: Any) -> Any:
    return None if callable(blend) else blend
