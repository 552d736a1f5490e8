"""How features develop: the similarity of a network's snapshots to the last one.

Zeiler & Fergus (2014), section 4.1 and Figure 4: lower layers settle within a few epochs, upper ones after many. If the
learning rate falls to 0, every layer settles with it, whatever it has learned.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from zfnet.analysis.matching import correlations
from zfnet.data.images import as_images
from zfnet.deconvnet import Deconvnet
from zfnet.graph import Graph, graph_of
from zfnet.scanning import Scan, scan
from zfnet.winners import TopActivations


class _Together(nn.ModuleList):
    def forward(self, images: Tensor) -> list[Tensor]:
        return [network(images) for network in self]


def scan_together(
    networks: Sequence[nn.Module | Graph], dataset: Any, layers: Sequence[str], k: int = 9, **scanning: Any
) -> list[Scan]:
    """Scan a dataset with several networks of one architecture, reading each image once; see `zfnet.scan`."""
    graphs = [graph_of(network) for network in networks]
    for layer in layers:
        graphs[0].node(layer)
    together = _Together(graph.model for graph in graphs).eval()
    scanned = scan(together, dataset, [f"{n}.{layer}" for n in range(len(graphs)) for layer in layers], k, **scanning)
    return [
        Scan({layer: scanned[f"{n}.{layer}"] for layer in layers}, scanned.images, scanned.broken)
        for n in range(len(graphs))
    ]


def correlations_with_last(
    networks: Sequence[nn.Module | Graph],
    dataset: Any,
    layers: Sequence[str],
    *,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Correlate each map's activations at each snapshot with those at the last: by layer (snapshots, maps), float64.

    It is 0 where a map does not vary at a snapshot, NaN where it does not at the last.

    Args:
        networks: snapshots of one network, in the order of training.
        dataset: what `as_images` takes; all places of its images count.
        layers: by name.
        batch_size: images in a batch.
        workers: processes that read images; see `zfnet.data.Batches`.
        progress: show a progress bar.
    """
    rows: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": False}
    for network in tqdm(networks, unit=" snapshots", desc="correlate", disable=not progress):
        for layer, matrix in correlations(network, networks[-1], dataset, layers, **reading).items():
            rows[layer].append(matrix.diagonal())
    curves = {layer: torch.stack(diagonals) for layer, diagonals in rows.items()}
    return {layer: curve.where(curve[-1] > 0, torch.nan) for layer, curve in curves.items()}  # with itself: 1, or 0


def likenesses(
    deconvnets: Sequence[Deconvnet],
    dataset: Any,
    tops: Mapping[str, TopActivations],
    *,
    at_once: int = 32,
    progress: bool = True,
) -> dict[str, Tensor]:
    """The cosine between the projections of one unit at each snapshot and at the last: by layer (snapshots, maps).

    The unit is the map's strongest at the last snapshot, on its image. The cosine is 0 where the projection at a
    snapshot is empty, NaN where that at the last is.

    Args:
        deconvnets: of the snapshots of one network, in the order of training.
        dataset: the one that was scanned.
        tops: by layer, the strongest activations at the last snapshot.
        at_once: maps that are projected together.
        progress: show a progress bar.
    """
    images, cosines = as_images(dataset), {}
    with tqdm(
        total=sum(len(top.value) for top in tops.values()), unit=" maps", desc="compare", disable=not progress
    ) as bar:
        for layer, top in tops.items():
            parts = []
            for maps in torch.arange(len(top.value)).split(at_once):
                units = top.units(maps.tolist())
                batch = torch.stack([images[i][0] for i in units[:, 0].tolist()])
                units[:, 0] = torch.arange(len(maps))
                projections = [deconvnet.project_units(batch, layer, units) for deconvnet in deconvnets]
                pixels = torch.stack([patches.projections.flatten(1) for patches in projections]).double()
                dots, squares = (pixels * pixels[-1]).sum(2), pixels.square().sum(2)
                cosine = dots / (squares * squares[-1]).sqrt()
                parts.append(cosine.where(squares > 0, 0.0).where(squares[-1] > 0, torch.nan).cpu())
                bar.update(len(maps))
            cosines[layer] = torch.cat(parts, 1)
    return cosines


def changed(tops: Sequence[TopActivations]) -> list[float | None]:
    """The share of maps whose strongest image changed since the snapshot before, among those above 0 at both."""
    shares: list[float | None] = [None]
    for before, now in pairwise(tops):
        live = (before.value[:, 0] > 0) & (now.value[:, 0] > 0)
        other = (before.image[:, 0] != now.image[:, 0])[live]
        shares.append(float(other.double().mean()) if len(other) else None)
    return shares


def settled_epoch(epochs: Sequence[int], curve: Sequence[float | None], level: float) -> int | None:
    """The first snapshot from which on the curve stays at or above the level; None if only the last one does."""
    below = [n for n, value in enumerate(curve) if value is None or value < level]
    after = epochs[below[-1] + 1 :] if below else epochs
    return after[0] if len(after) > 1 else None
