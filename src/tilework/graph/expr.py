"""Results as expressions, for dask's option "array.query-planning".

The classes of expressions are private in dask 2026.8. There is no public way to give a graph with edges
between blocks to an array of expressions.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, cast

from dask._expr import Expr
from dask.array._array_expr._expr import ArrayExpr
from dask.base import tokenize

from tilework.engine.spec import Spec
from tilework.graph.layer import carried, with_carried
from tilework.graph.tasks import BlockTasks, Key, Names

__all__ = ["Blocks", "Result"]


class Blocks(Expr):
    """The tasks of all blocks of a result, for all its outputs.

    The operands are the `Spec`, the names in the keys, and the dask arrays that are read.
    """

    _parameters: list[str] = ["of", "called"]  # noqa: RUF012 -- as dask declares it

    @property
    def spec(self) -> Spec:
        """The data that all tasks share."""
        found: Spec = self.operands[0]
        return found

    @functools.cached_property
    def names(self) -> Names:
        """Names in the keys."""
        names, sources = self.operands[1], iter(self.operands[2:])
        now = tuple(own and next(sources)._name for own in names.sources)
        if now == names.sources:
            return cast("Names", names)
        # An expression that dask has rewritten, because it has rewritten a source, needs another name.
        mark = tokenize(now)
        own = Names.of(self.spec, f"{names.inner}-{mark}")
        return replace(own, spec=f"{names.spec}-{mark}", sources=now)

    @functools.cached_property
    def tasks(self) -> BlockTasks:
        """The maker of the tasks."""
        return BlockTasks(self.spec, self.names)

    @functools.cached_property
    def _name(self) -> str:
        return f"{self.names.inner}-blocks"

    def _layer(self) -> dict[Key, Any]:
        return self.tasks.shared | self.tasks.needed(self.tasks.order())

    def __dask_tokenize__(self) -> Any:
        return self._name

    def __reduce__(self) -> Any:
        spec, *others = self.operands
        return _restored, (spec, carried(spec), *others)


def _restored(spec: Spec, parts: Any, *others: Any) -> Blocks:
    return Blocks(with_carried(spec, parts), *others)


class Result(ArrayExpr):
    """The array of one output; its tasks are those of `Blocks`, or take a block from those of all outputs.

    The operands are the blocks, the number of the output, its chunks and its meta.
    """

    _parameters: list[str] = ["of", "number", "lengths", "meta"]  # noqa: RUF012

    def __init__(self, *operands: Any, **options: Any) -> None:
        """Do nothing: of classes without this method, dask keeps one expression for each name."""

    @property
    def blocks(self) -> Blocks:
        """The tasks."""
        found: Blocks = self.operands[0]
        return found

    @functools.cached_property
    def _name(self) -> str:
        names: Names = self.blocks.names
        return names.outputs[int(self.operands[1])]

    @functools.cached_property
    def chunks(self) -> Any:
        """Lengths of the blocks, samples per axis."""
        return self.operands[2]

    @functools.cached_property
    def _meta(self) -> Any:
        return self.operands[3]

    def _layer(self) -> dict[Key, Any]:
        tasks: BlockTasks = self.blocks.tasks
        number = int(self.operands[1])
        if not tasks.spec.many:
            return {}
        getters = (tasks.getter(index, number) for index in tasks.order())
        return {task.key: task for task in getters}

    def __dask_tokenize__(self) -> Any:
        # dask keeps one of the expressions that it makes of equal tokens, whatever they hold.
        return self._name, self.blocks.names.spec
