"""Devices whose memory is full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


def without_canvases(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let no device but the host hold a canvas; return the list of the shapes that will be tried."""
    import torch

    full, tried = torch.full, []

    def never(shape: Any, *args: Any, device: Any, **options: Any) -> Any:
        if shape and device != "cpu":
            tried.append(shape)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return full(shape, *args, device=device, **options)

    monkeypatch.setattr(torch, "full", never)
    return tried
