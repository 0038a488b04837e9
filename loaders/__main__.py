"""`python -m loaders`: which loaders there are; `python -m loaders cache DATA` decodes images once and keeps them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

try:
    import tyro
    from rich.console import Console

    from loaders import InputError, LoaderConfig, PlanSpec, ResizeCenterCrop, Source, build_loader, open_data
    from loaders.backends import BACKENDS
    from loaders.cache.pixel_cache import Layout, Preprocessing
    from loaders.errors import name_options
    from loaders.loader import require_good
    from loaders.sources import ImageFiles
    from loaders.sources.index import MAX_PIXELS
    from loaders.system.console import open_console, shown_progress, with_rate
    from loaders.system.format import format_bytes
except ModuleNotFoundError as missing:  # with PYTHON=..., nothing has been installed
    python = sys.executable
    print(f"error: {python} has no {missing.name}; to add it: {python} -m pip install {missing.name}", file=sys.stderr)
    sys.exit(2)


_OPTIONS = {
    "data": "DATA",
    "root": "ROOT",
    "loader": "LOADER",
    "cache_size": "--cache-size",
    "scaled_decoding": "--scaled-decoding",
    "max_pixels": "--max-pixels",
    "on_bad_image": "--on-bad-image",
    "workers": "--workers",
}
"""What a user of this program types for the fields that messages name."""


@dataclass(frozen=True)
class List:
    """Lists the loaders, and what those want that cannot be used here."""


@dataclass(frozen=True)
class Cache:
    """Decodes all images of a data set once and keeps their pixels, for LOADER=streamed.

    A build that was interrupted goes on where it was. $SATURATE_CACHE says where caches lie; one that is not
    wanted any more is simply removed.
    """

    data: tyro.conf.Positional[str]
    """sample, or the path of an image folder or of a CSV file of paths and labels."""
    root: Path = Path("data")
    """Where named data sets lie, or are put."""
    cache_size: int = 256
    """Pixels of the shorter side of the kept images; smaller images stay as they are."""
    scaled_decoding: bool = False
    """Decode JPEGs at 1/2, 1/4 or 1/8 of their size where that leaves enough pixels: faster, a little blurred."""
    max_pixels: int = MAX_PIXELS
    """Images of more pixels count as bad."""
    on_bad_image: Literal["raise", "skip"] = "raise"
    """What to do about images that cannot be decoded; up to 1 % can be skipped."""
    workers: int | None = None
    """Threads that decode; all usable cores, unless given."""

    def __post_init__(self) -> None:
        if self.cache_size < 1:  # before all images are looked at
            raise InputError(f"--cache-size {self.cache_size}: expected 1 or more")


def list_loaders(console: Console) -> None:
    """Every loader, whether it can be used here, and what it does or what would help."""
    widest = max(map(len, BACKENDS))
    for name, backend in BACKENDS.items():
        missing = backend.missing()
        console.print(f"{name:<{widest}}  {'yes' if missing is None else 'no '}  {backend.summary}", markup=False)
        if missing is not None:
            console.print(f"{'':<{widest}}       {missing}", markup=False)
    console.print("\nLOADER=auto chooses among those that can be used here and says why.", markup=False)


def build_caches(options: Cache, console: Console) -> None:
    """Of the images to train on and of those to validate."""
    with shown_progress(console, f"looking at {options.data}") as show:
        pair = open_data(
            options.data,
            root=options.root.expanduser(),
            max_pixels=options.max_pixels,
            progress=show,
        )
    for note in dict.fromkeys(note for source in pair for note in source.notes):
        console.print(note, markup=False)
    require_good(pair, options.on_bad_image)
    for source, what in zip(pair, ("to train on", "to validate"), strict=True):
        if not isinstance(source.images, ImageFiles):
            console.print(f"{source.name}: {len(source):,} images {what} are pixels already", markup=False)
            continue
        _build(source, what, options, console)


def _build(source: Source, what: str, options: Cache, console: Console) -> None:
    config = LoaderConfig(
        spec=PlanSpec(ResizeCenterCrop(options.cache_size, options.cache_size)),  # any will do: nothing is loaded
        training=False,
        batch_size=1,
        workers=options.workers,
        on_bad_image=options.on_bad_image,
        scaled_decoding=options.scaled_decoding,
        cache_size=options.cache_size,
    )
    loader = build_loader(source, config, loader="streamed")
    with shown_progress(console, f"decoding {source.name}, {what}") as show:
        loader.prepare(with_rate(show, "images"))
    for image in loader.bad_images:
        console.print(name_options(f"left out: {image}", _OPTIONS), markup=False)
    kept = len(source) - len(loader.bad_images)
    layout = Layout.of(source, Preprocessing(options.cache_size, options.scaled_decoding))
    told = f"{kept:,} images {what}, {format_bytes(layout.bytes)} in {layout.folder}"
    console.print(f"{source.name}: {told}", markup=False)


def main(arguments: Sequence[str] = ()) -> int:
    """Lists, or builds; says in one message what the user gave that cannot be used (exit code 2)."""
    console = open_console()
    try:
        command = tyro.cli(
            Annotated[List, tyro.conf.subcommand("list")] | Annotated[Cache, tyro.conf.subcommand("cache")],
            args=arguments or ["list"],
            prog="python -m loaders",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        if isinstance(command, Cache):
            build_caches(command, console)
        else:
            list_loaders(console)
    except InputError as error:
        print(f"error: {name_options(str(error), _OPTIONS)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
