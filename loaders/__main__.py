"""`python -m loaders`: which loaders there are; `python -m loaders cache DATA` builds the pixel cache of a data set."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from loaders.system.startup import INTERRUPTED, startup

with startup():
    import tyro

    from loaders.errors import InputError, name_options
    from loaders.sources.index import MAX_PIXELS
    from loaders.system.console import open_console, print_error, print_lines, shown_progress, with_rate
    from loaders.system.format import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from loaders import Source


@dataclass(frozen=True)
class List:
    """Lists the loaders, and what to install for those that cannot be used here."""


@dataclass(frozen=True)
class Cache:
    """Decodes all images of a data set once and stores their pixels, for LOADER=streamed.

    A build that was interrupted goes on where it was, and a cache that is there already is verified. $SATURATE_CACHE
    says where caches lie; one that is not needed any more is simply removed.
    """

    data: tyro.conf.Positional[str]
    """sample, or the path of an image folder or of a CSV file of paths and labels."""
    root: Path = Path("data")
    """Where named data sets lie, or are put."""
    cache_size: int = 256
    """Pixels of the shorter side of the cached images; smaller images stay as they are."""
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


OPTIONS = {
    "data": "DATA",
    "root": "--root",
    "cache_size": "--cache-size",
    "max_pixels": "--max-pixels",
    "on_bad_image": "--on-bad-image",
    "workers": "--workers",
    "loader": "LOADER",
}
"""What a user of this program types for the fields that messages name."""


def list_loaders(console: "Console") -> None:
    """Every loader, whether it can be used here, and what it does or what to install."""
    with startup():
        from loaders.backends import BACKENDS

    widest = max(map(len, BACKENDS))
    for name, backend in BACKENDS.items():
        missing = backend.missing()
        print_lines(console, f"{name:<{widest}}  {'yes' if missing is None else 'no '}  {backend.summary}")
        if missing is not None:
            print_lines(console, f"{'':<{widest}}       {missing}")
    print_lines(console, "", "LOADER=auto chooses among those that can be used here and says why.")


def build_caches(options: Cache, console: "Console") -> None:
    """Builds the caches of the training and the validation images."""
    with startup():
        from loaders import open_data
        from loaders.bad_images import require_good

    with shown_progress(console, f"looking at {options.data}") as show:
        pair = open_data(
            options.data,
            root=options.root.expanduser(),
            max_pixels=options.max_pixels,
            progress=show,
        )
    for note in dict.fromkeys(note for source in pair for note in source.notes):
        print_lines(console, note)
    require_good(pair, options.on_bad_image)
    for source, purpose in zip(pair, ("to train on", "to validate"), strict=True):
        if source.images.encoded is None:
            print_lines(console, f"{source.name}: {len(source):,} images {purpose} are pixels already")
            continue
        _build(source, purpose, options, console)


def _build(source: "Source", purpose: str, options: Cache, console: "Console") -> None:
    with startup():
        from loaders import LoaderConfig, PlanSpec, ResizeCenterCrop, build_loader
        from loaders.cache.pixel_cache import Layout, Preprocessing, find_cache

    config = LoaderConfig(
        spec=PlanSpec(ResizeCenterCrop(options.cache_size, options.cache_size)),  # any will do: nothing is loaded
        training=False,
        batch_size=1,
        workers=options.workers,
        on_bad_image=options.on_bad_image,
        scaled_decoding=options.scaled_decoding,
        cache_size=options.cache_size,
    )
    preprocessing = Preprocessing(options.cache_size, options.scaled_decoding)
    find_cache(source, preprocessing, every_block=True)  # one that is damaged is built anew below
    loader = build_loader(source, config, loader="streamed")
    with shown_progress(console, f"decoding {source.name}, {purpose}") as show:
        loader.prepare(with_rate(show, "images"))
    for image in loader.bad_images:
        print_lines(console, name_options(f"left out: {image}", OPTIONS))
    count = len(source) - len(loader.bad_images)
    layout = Layout.of(source, preprocessing)
    result = f"{count:,} images {purpose}, {format_bytes(layout.bytes)} in {layout.folder}"
    print_lines(console, f"{source.name}: {result}")


def main(arguments: Sequence[str] = ()) -> int:
    """Lists, or builds; reports in one message what the user gave that cannot be used (exit code 2)."""
    console = open_console()
    try:
        command = tyro.cli(
            Annotated[List, tyro.conf.subcommand("list")] | Annotated[Cache, tyro.conf.subcommand("cache")],
            args=arguments or ["list"],
            prog="python -m loaders",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        match command:
            case Cache():
                build_caches(command, console)
            case List():
                list_loaders(console)
    except InputError as error:
        print_error(error, OPTIONS)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
