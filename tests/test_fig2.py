"""Figure 2 on a tiny network: what it writes, which maps it draws, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from experiments.figures import fig2
from experiments.output.feature_maps import Look, chosen, first_filters, panel_of
from zfnet import Deconvnet, InputError, receptive_field, scan
from zfnet.analysis.filters import aliased_energy, lattice, together
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.errors import BrokenImage
from zfnet.rendering import GREY, on_image, outside


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def figure(model, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("fig2") / "out"
    grids = [[2, 2], [1, 2]]
    result = fig2.main(model, data, out, layers=["relu1", "relu2"], grids=grids, k=4, width=3, progress=False)
    return out, result


def test_fig2_writes_what_it_returns(figure):
    out, result = figure
    assert files(out) == {"figure.png", "figure.pdf", "boxes.png", "boxes.pdf", "table.md", "result.json"}
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert set(result) == {"experiment", "paper", "ours", "settings", "provenance", "digest"}
    assert set(result["paper"]) == set(result["ours"])
    assert {"versions", "command", "seed", "device", "threads", "started", "seconds"} <= set(result["provenance"])
    assert Image.open(out / "figure.png").width == 600


def test_fig2_lists_every_winner_of_the_scan(figure, model, data):
    _, result = figure
    tops = scan(model, data, ["relu1", "relu2"], 4, progress=False)
    for layer, top in tops.items():
        found = result["ours"]["layers"][layer]
        assert list(found) == [str(m) for m in range(len(top.value))]
        for m, winners in found.items():
            for column in ("value", "image", "row", "column"):
                assert [w[column] for w in winners] == getattr(top, column)[int(m)].tolist()
            assert all(w["file"] == data.file(w["image"]) for w in winners)
            assert len({w["image"] for w in winners}) == 4


def test_fig2_boxes_are_the_patches_that_are_projected(figure, model, data):
    _, result = figure
    for m, winners in result["ours"]["layers"]["relu2"].items():
        best = winners[0]
        image = data[best["image"]][0][None]
        patch = Deconvnet(model).project_units(image, "relu2", [[0, int(m), best["row"], best["column"]]])
        assert patch.boxes[0].tolist() == best["box"]
        assert float(patch.values) == pytest.approx(best["value"], rel=1e-5, abs=1e-7)
    assert result["ours"]["patch_sizes"] == [5, 17]


@pytest.mark.parametrize(("dilation", "seen", "shown"), [(1, 9, 9), (5, 25, 16)])
def test_fig2_shows_whole_images_where_most_of_a_field_lies_beyond(dilation, seen, shown):
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 6, 5, 2), nn.Conv2d(6, 8, 3, padding=dilation, dilation=dilation)
    model = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU()).eval()
    data = Scenes("val", 6, size=16, transform=Preprocessing(size=16, resize=16))
    deconvnet, top = Deconvnet(model), scan(model, data, ["3"], 2, progress=False)["3"]
    field = receptive_field(model, "3", 16)
    panel = panel_of("a", deconvnet, data, "3", top, [0, 3, 5], 3, field, Preprocessing(), Look(contrast=1.0))
    assert panel.patches.shape == panel.signals.shape == (3, 2, 3, shown, shown)
    words = f"image patches, {seen} x {seen} pixels" if seen == shown else f"whole images, field {seen} x {seen}"
    assert panel.right == words
    unit = [[0, 3, int(top.row[3, 1]), int(top.column[3, 1])]]
    patch = deconvnet.project_units(data[int(top.image[3, 1])][0][None], "3", unit)
    crop, signal = Preprocessing().pixels(patch.crops), patch.projections
    if shown < seen:
        crop, signal = on_image(crop, patch.boxes, (16, 16), GREY), on_image(signal, patch.boxes, (16, 16))
    else:
        crop = crop.masked_fill(outside(patch.boxes, (16, 16), (9, 9)), GREY)
    assert torch.allclose(panel.signals[1, 1], signal[0], atol=1e-6)
    assert torch.allclose(panel.patches[1, 1], crop[0].clamp(0, 1), atol=1e-6)


def test_fig2_compares_projections_with_filters_that_are_placed_at_random(figure, model, data):
    out, result = figure
    found, top = result["ours"]["lattice"], scan(model, data, ["relu2"], 4, progress=False)["relu2"]
    assert (found["stride"], list(found["layers"])) == (2, ["relu2"])  # in layer 1 the filters themselves are drawn
    signals = {"projections": [], "patches": []}
    for m in result["ours"]["drawn"]["relu2"]:
        for rank in range(4):
            unit = [[0, m, int(top.row[m, rank]), int(top.column[m, rank])]]
            patch = Deconvnet(model).project_units(data[int(top.image[m, rank])][0][None], "relu2", unit)
            signals["projections"].append(patch.projections)
            signals["patches"].append(patch.crops)
    expected = {name: torch.cat(parts) for name, parts in signals.items()}
    for name, signal in expected.items():
        shares = {"beyond": float(aliased_energy(signal, 2).mean()), "lattice": lattice(signal, 2)}
        assert found["layers"]["relu2"][name] == pytest.approx(shares, rel=1e-3)
    weight = together(model.conv1.weight.detach())
    assert found["filters"] == pytest.approx(
        {"beyond": float(aliased_energy(weight, 2)), "lattice": lattice(weight, 2)}
    )
    columns = [found["layers"]["relu2"]["projections"], found["layers"]["relu2"]["patches"], found["filters"]]
    told = [round(100 * c["beyond"], 1) for c in columns] + [round(c["lattice"], 2) for c in columns]
    row = next(line for line in (out / "table.md").read_text().splitlines() if "relu2" in line)
    assert [float(cell) for cell in row.split("|")[2:-1]] == told


@pytest.mark.parametrize(
    ("first", "layers"), [(nn.Conv2d(3, 6, 5), ["0", "2"]), (nn.Conv2d(3, 6, 5, 2), ["0"]), (nn.ReLU(), ["0"])]
)
def test_fig2_has_no_lattice_without_a_stride_or_layers_above_it(first, layers, data, tmp_path):
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(6, 4, 3) if len(layers) > 1 else nn.Identity()).eval()
    model.preprocessing = data.transform
    grids = [[1, 1]] * len(layers)
    result = fig2.main(model, data, tmp_path, layers=layers, grids=grids, k=1, width=3, progress=False)
    assert result["ours"]["lattice"] is None
    assert "table.md" not in files(tmp_path)


def test_fig2_maps_by_seed_by_strength_and_by_number(model, data):
    top = scan(model, data, ["relu1"], 1, progress=False)["relu1"]

    def drawn(choose, seed=0):
        return chosen("relu1", top, 2, choose, torch.Generator().manual_seed(seed))

    assert drawn("random", 1) == drawn("random", 1)
    assert len({tuple(drawn("random", seed)) for seed in range(9)}) > 1
    assert drawn("strongest") == top.value[:, 0].argsort(descending=True)[:2].tolist()
    assert drawn([4, 0, 2]) == [4, 0, 2]
    assert drawn({"relu1": [3]}) == [3]
    assert drawn({}) == []


def test_fig2_counts_dead_maps_and_does_not_draw_them(model, data, tmp_path, capsys):
    bias = model.conv1.bias.detach().clone()
    try:
        model.conv1.bias.data[2] = -1e3
        result = fig2.main(model, data, tmp_path, layers=["relu1"], grids=[[3, 2]], k=1, width=3, progress=False)
    finally:
        model.conv1.bias.data.copy_(bias)
    assert result["ours"]["dead_maps"] == {"relu1": [2]}
    assert 2 not in result["ours"]["drawn"]["relu1"]
    assert "1 of 6 maps" in capsys.readouterr().out


def test_fig2_shows_the_filters_of_the_first_layer(model):
    field = receptive_field(model, "relu1", 32)
    filters = first_filters(Deconvnet(model), "relu1", [0, 3], field)
    torch.testing.assert_close(filters, model.conv1.weight[[0, 3]].detach())
    assert first_filters(Deconvnet(model), "pool1", [0], receptive_field(model, "pool1", 32)) is None
    assert first_filters(Deconvnet(model), "relu2", [0], receptive_field(model, "relu2", 32)) is None


def test_fig2_names_broken_images(model, data, tmp_path, capsys):
    class Torn(Scenes):
        def __getitem__(self, i):
            if i == 3:
                raise BrokenImage("cannot load 3.jpg: it is torn")
            return super().__getitem__(i)

    torn = Torn("val", 12, size=32, transform=model.preprocessing)
    result = fig2.main(model, torn, tmp_path, layers=["relu1"], grids=[[1, 1]], k=2, width=3, progress=False)
    assert result["ours"]["images"] == 11
    assert result["ours"]["broken_images"] == ["item 3 (scenes/val/000003): cannot load 3.jpg: it is torn"]
    assert (
        "1 image(s) could not be read, first: item 3 (scenes/val/000003): cannot load 3.jpg" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["relu7"]}, "no layer .* 'relu7'"),
        ({"k": 0}, "k"),
        ({"k": 13}, "fewer than k=13"),
        ({"choose": "best"}, "no way to choose maps 'best'"),
        ({"choose": [6]}, "no map 6 in relu1: there are 6"),
        ({"choose": {"relu9": [1]}}, "no layer in choose 'relu9'"),
        ({"grids": [[1, 2], [1, 2]]}, "1 layers and 2 grids"),
        ({"grids": [[0, 2]]}, "a grid is"),
        ({"scale": "layer"}, "no scale 'layer'"),
        ({"contrast": 0}, "contrast is 0"),
        ({"colour": "green"}, "no colour 'green'"),
        ({"interpolation": "linear"}, "no interpolation 'linear'"),
        ({"rules": "guide"}, "no rule set 'guide'"),
        ({"width": 60}, "inches"),
    ],
)
def test_fig2_refuses_in_words_and_leaves_nothing(model, data, tmp_path, settings, message):
    out = tmp_path / "a" / "b"
    with pytest.raises(InputError, match=message):
        fig2.main(model, data, out, **{"layers": ["relu1"], "grids": [[1, 2]], "progress": False, **settings})
    assert not list(tmp_path.iterdir())
