"""The pieces of a large scan, each measured by itself: what docs/scale.md counts with.

A scan of many images is decoding and the network, image by image, and joining what its parts have found. Pieces are
measured in processor time of one thread: they can be multiplied by cores, and other work of the computer counts little.
Winners and statistics are made up, of as many maps as the largest networks have in all their layers together.
"""

import io
import os
import statistics
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import process_time

import numpy as np
import torch
from torch import nn
from torchvision import models
from tqdm import tqdm

from experiments.output.tables import table
from zfnet import TopActivations
from zfnet.checks import check_images
from zfnet.data.batches import Batches
from zfnet.data.photos import Photos
from zfnet.data.web_dataset import WebDataset
from zfnet.gathering import BINS, SAMPLED, Gathering, Maxima, Part, Statistics
from zfnet.graph import Graph
from zfnet.scan_files import read_scan, write_scan
from zfnet.scanning import Scan

MAPS, CLASSES, K, SHARDS = 50_000, 1000, 9, 64
PAPER = {"1.28 million": 1.28e6, "1 billion": 1e9}  # images
IDENTITY = {"what": "made up"}


def pieces(files: Photos, zfnet: nn.Module, folder: Path, repeats: int, small: bool) -> Iterator[dict]:
    """Every piece, as a row: `key`, `what`, `value`, `unit`, `how`.

    Args:
        files: photographs, with the transform of the networks.
        zfnet: the paper's network.
        folder: where to write; it is emptied by the caller.
        repeats: of each measurement, of which the median is given.
        small: try it: few images and maps.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _decoding(files, folder, repeats, 8 if small else 200)
        yield from _networks(files, zfnet, repeats, 8 if small else 64)
        yield from _keeping(repeats, 500 if small else MAPS)
        yield from _merging(folder, 500 if small else MAPS, 3 if small else SHARDS)
    finally:
        torch.set_num_threads(threads)


def piece(key: str, what: str, value: float, unit: str, how: str = "") -> dict:
    return {"key": key, "what": what, "value": value, "unit": unit, "how": how}


def timed(repeats: int, run: Callable[[], object]) -> float:
    """Median seconds of processor time, after one run to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = process_time()
        run()
        times.append(process_time() - start)
    return statistics.median(times[1:])


def _decoding(files: Photos, folder: Path, repeats: int, count: int) -> Iterator[dict]:
    indices = [n * len(files) // count for n in range(count)] if count < len(files) else list(range(len(files)))
    contents = [(files.root / files.file(i)).read_bytes() for i in indices]
    size = float(np.mean([len(content) for content in contents]))
    yield piece("photograph", "bytes of a photograph", size, "bytes", f"mean of {len(contents)} JPEG files")
    pixels = float(np.mean([np.prod(files.image(i).size) for i in indices]))
    yield piece("pixels", "pixels of a photograph", pixels, "pixels", "mean of the same")
    seconds = timed(repeats, lambda: [files[i] for i in indices])
    how = "read, decoded, resized and normalised; one process, one thread; files in the system's cache"
    yield piece("decoding", "a photograph decoded", 1e3 * seconds / len(indices), "ms", how)
    many = 20 * len(contents)
    tar = folder / "many.tar"
    with tarfile.open(tar, "w") as archive:
        for n in range(many):
            for kind, content in (("jpg", contents[n % len(contents)]), ("cls", b"7")):
                member = tarfile.TarInfo(f"{n:09d}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    index = folder / "many.index"

    def make() -> WebDataset:
        index.unlink(missing_ok=True)
        return WebDataset(tar, transform=files.transform, index=index)

    seconds = timed(repeats, make)
    how = f"one pass over the headers of a tar of {many:,} pictures with labels, in the system's cache"
    yield piece("index", "a picture of a tar indexed", 1e3 * seconds / many, "ms", how)
    data = make()
    yield piece("index bytes", "the index, a picture", index.stat().st_size / many, "bytes", "file")
    seconds = timed(repeats, lambda: WebDataset(tar, transform=files.transform, index=index))
    yield piece("index read", "a picture of a kept index read", 1e3 * seconds / many, "ms", "")
    order = torch.randperm(many, generator=torch.Generator().manual_seed(0))[: len(indices)].tolist()
    seconds = timed(repeats, lambda: [data[i] for i in order])
    how = "as above, at random places of the tar"
    yield piece("decoding, tar", "a photograph of a tar decoded", 1e3 * seconds / len(order), "ms", how)
    os.unlink(tar)


def _networks(files: Photos, zfnet: nn.Module, repeats: int, count: int) -> Iterator[dict]:
    images = next(iter(Batches(files, count, indices=range(count), workers=0))).images
    squeezenet = models.squeezenet1_0().eval().to(memory_format=torch.channels_last)
    for name, network, layer in (("ZFNet", zfnet, "relu5"), ("SqueezeNet", squeezenet, "features.12")):
        graph = Graph(network)
        node, ready = graph.node(layer), check_images(network, images)

        def forward(graph: Graph = graph, node: torch.fx.Node = node, ready: torch.Tensor = ready) -> None:
            with torch.inference_mode():
                graph.run(ready, {node}, lambda node, args, kwargs: graph.call(node, args, kwargs))

        how = f"forward to {layer}, {images.shape[-1]} pixels, batch of {count}, one thread"
        yield piece(f"network, {name}", f"{name}, an image", 1e3 * timed(repeats, forward) / count, "ms", how)


def _keeping(repeats: int, maps: int) -> Iterator[dict]:
    """What it takes to keep winners and statistics of one more batch."""
    images, batch = 64, 64 * 8
    generator = torch.Generator().manual_seed(0)
    top, statistics_, _ = made_up(maps, generator)
    candidates = TopActivations(*(column[:, :1] for column in made_up(maps, generator)[0]))
    seconds = timed(repeats, lambda: top.join(candidates))
    yield piece(
        "winners", f"the winners of {maps:,} maps, one more of each", 1e3 * seconds, "ms", "at most once a batch"
    )
    parts = [
        Part(
            torch.arange(n, n + images),
            torch.arange(n, n + images) % CLASSES,
            {"layer": Maxima(torch.randn(images, maps, generator=generator), torch.empty(0, maps, dtype=torch.int32))},
        )
        for n in range(0, batch, images)
    ]
    before = Gathering(
        {"layer": statistics_},
        torch.zeros(CLASSES + 1, dtype=torch.int64),
        torch.arange(10**6, 10**6 + SAMPLED),
        2 * 10**6,
    )

    def gather() -> Gathering:
        gathering = before
        for part in parts:
            gathering = gathering.with_part(part)
        return gathering.counted()

    seconds = timed(repeats, gather)
    yield piece("statistics", f"statistics of {maps:,} maps, an image", 1e3 * seconds / batch, "ms", f"{batch} images")


def made_up(maps: int, generator: torch.Generator) -> tuple[TopActivations, Statistics, torch.Tensor]:
    """Winners, statistics, and the images of each class."""
    value = torch.rand(maps, K, generator=generator).sort(dim=1, descending=True).values
    places = [torch.randint(10**6, (maps, K), generator=generator) for _ in range(3)]
    histogram = torch.randint(100, (maps, BINS), generator=generator, dtype=torch.int32)
    empty = Statistics.none(maps, CLASSES, SAMPLED)
    sums = torch.randint(2**40, empty.sums.shape, generator=generator)
    maxima = torch.rand(empty.maxima.shape, generator=generator)
    gathered = empty._replace(fires=histogram.sum(1), histogram=histogram, sums=sums, maxima=maxima)
    return TopActivations(value, *places), gathered, torch.ones(CLASSES + 1, dtype=torch.int64)


def _merging(folder: Path, maps: int, shards: int) -> Iterator[dict]:
    """Join made-up shards; a few different ones are written, and read again and again."""
    generator, different = torch.Generator().manual_seed(0), 3
    sampled = torch.arange(SAMPLED)
    for n in tqdm(range(different), desc="shards", leave=False):
        top, gathered, class_images = made_up(maps, generator)
        whole = Scan({"layer": top}, 10_000, [], {"layer": gathered}, sampled, class_images)
        start = process_time()
        write_scan(folder / str(n), whole, IDENTITY)
        written = process_time() - start
    held = {
        "winners": [*top],
        "histogram": [gathered.histogram],
        "sums": [gathered.sums],
        "maxima": [gathered.maxima, gathered.places],
    }
    names = {
        "winners": f"winners of {maps:,} maps, {K} of each",
        "histogram": f"histograms, {BINS} bins",
        "sums": f"sums by class, {CLASSES:,} classes",
        "maxima": f"maxima of {SAMPLED} sampled images and their places",
    }
    for key, tensors in held.items():
        value = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
        yield piece(f"{key} bytes", names[key], value, "MB", "of one process, whatever the number of images")
    value = sum(file.stat().st_size for file in (folder / "0").iterdir()) / 1e6
    yield piece("shard bytes", "the files of one shard", value, "MB", "")
    yield piece("shard written", "one shard written", written, "s", "")
    start = process_time()
    joined = read_scan(folder / "0", IDENTITY)
    for n in tqdm(range(1, shards), desc="merge", leave=False):
        other = read_scan(folder / str(n % different), IDENTITY)
        assert joined is not None and other is not None
        joined = joined.merge(other)
    spent = process_time() - start
    yield piece("merge", f"{shards} shards of {maps:,} maps read and merged", spent, "s", "files in the system's cache")


# ---- docs/scale.md ---------------------------------------------------------------------------------------------------


def measured_table(rows: Sequence[Mapping[str, str | float]]) -> str:
    """What was measured."""
    shown = [[row["what"], f"{amount(float(row['value']))} {row['unit']}", row["how"]] for row in rows]
    return table(["piece", "measured", "how"], shown)


def paper_table(rows: Sequence[Mapping[str, str | float]]) -> str:
    """What the pieces come to for many images: sums and products of what was measured, and nothing else."""
    of = {str(row["key"]): float(row["value"]) for row in rows}
    hour = 1e3 * 3600  # milliseconds
    kinds: dict[str, Callable[[float], str]] = {
        "the photographs": lambda n: f"{amount(n * of['photograph'] / 1e9)} GB",
        "decoding them": lambda n: f"{amount(n * of['decoding'] / hour)} core hours",
        "SqueezeNet": lambda n: f"{amount(n * of['network, SqueezeNet'] / hour)} core hours",
        "ZFNet": lambda n: f"{amount(n * of['network, ZFNet'] / hour)} core hours",
        f"statistics of {MAPS:,} maps": lambda n: f"{amount(n * of['statistics'] / hour)} core hours",
        "indexing the tars": lambda n: f"{amount(n * of['index'] / hour)} hours, once, in one process",
        "the index": lambda n: f"{amount(n * of['index bytes'] / 1e9)} GB",
        "winners and statistics in a process": lambda n: f"{amount(held(of))} MB",
        f"the files of {SHARDS} shards": lambda n: f"{amount(SHARDS * of['shard bytes'] / 1e3)} GB",
        f"merging {SHARDS} shards": lambda n: f"{amount(of['merge'])} s",
    }
    shown = [[what, *(value(count) for count in PAPER.values())] for what, value in kinds.items()]
    return table(["", *(f"{name} images" for name in PAPER)], shown)


def held(of: Mapping[str, float]) -> float:
    """The megabytes of winners and statistics that a process holds."""
    return sum(of[f"{key} bytes"] for key in ("winners", "histogram", "sums", "maxima"))


def amount(value: float) -> str:
    """Three digits, of large numbers all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def overlap_table(rows: Sequence[Mapping[str, str | float]]) -> str:
    """Scanning photographs beside decoding and the network alone, in images a second."""
    shown = []
    for row in rows:
        if "decoding" in row:
            speeds = [f"{float(row[name]):.0f}" for name in ("decoding", "network", "scan")]
            network, how = str(row["what"]).split(", ")[1], f"{row['threads']} + {row['workers']}"
            bound = float(row["bound"])
            shares = [f"{float(row['ratio']):.2f}", f"{bound:.0f}", f"{float(row['scan']) / bound:.2f}"]
            shares.append(f"{float(row['busy']):.2f}")
            shown.append([network, how, *speeds, *shares])
    head = ["network", "threads + workers", "decoding alone", "network alone", "scan", "of the slower"]
    return table([*head, "bound by processor time", "of the bound", "network, of the main process"], shown)
