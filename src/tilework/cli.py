"""The command line: ``tilework demo``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tilework")
def main() -> None:
    """Functions on huge images, crop by crop."""


@main.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("tilework-demo"),
    show_default=True,
    help="Where the Zarr arrays and the pictures go.",
)
@click.option("--crop", default=256, show_default=True, help="Length of a crop, samples.")
@click.option(
    "--overlap",
    default=48,
    show_default=True,
    help="Context per side that the filter needs, samples.",
)
@click.option("--small", default=8, show_default=True, help="An overlap that is too small, to see seams.")
def demo(folder: Path, crop: int, overlap: int, small: int) -> None:
    """Filter a real photograph tile by tile, compare it with the untiled result, and draw both."""
    try:
        from tilework.demo import run_demo
    except ImportError as error:
        raise click.ClickException(f'{error}; the demo needs pip install "tilework[demo]".') from error
    from tilework.errors import TilingError

    try:
        for line in run_demo(folder, crop, overlap, small):
            click.echo(line)
    except TilingError as error:
        raise click.ClickException(str(error)) from error
