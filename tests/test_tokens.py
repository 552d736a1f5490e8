"""Maps along the last axis, and tokens: what works on maps (N, C, H, W) works on them, and gives the same."""

from collections.abc import Callable

import pytest
import torch
from oracles import assert_close, deconvnet_by_autograd, on_the_image, positions
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision import models

from scripts.zoo import randomised
from zfnet import Deconvnet, Graph, InputError, layer_table, occlusion_maps, receptive_field, scan

SIDE = 12


class Last(nn.Module):
    """conv -> maps last -> norm -> linear -> relu -> linear -> maps second -> conv2."""

    def __init__(self, norm: bool = True):
        super().__init__()
        self.conv, self.conv2 = nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Conv2d(5, 4, 3, padding=1)
        self.norm = nn.LayerNorm(5) if norm else nn.Identity()
        self.up, self.relu, self.down = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).permute(0, 2, 3, 1)
        return self.conv2(self.down(self.relu(self.up(self.norm(x)))).permute(0, 3, 1, 2))


class Second(Last):
    """The same with maps second: linear layers are convolutions of 1 x 1."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for step in (self.up, self.relu, self.down):
            x = nn.functional.conv2d(x, step.weight[:, :, None, None], step.bias) if step is not self.relu else step(x)
        return self.conv2(x)


class Tokens(nn.Module):
    """A small vision transformer: patches and a class token, attention, and a classifier of the class token."""

    def __init__(self, batch_first: bool = True):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.randn(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.norm, self.relu, self.head = nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token + x[:, :1] * 0, x], 1)
        if not self.attention.batch_first:
            x = x.transpose(0, 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        if not self.attention.batch_first:
            x = x.transpose(0, 1)
        return self.head(self.relu(self.norm(x))[:, 0])


def made(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    model = randomised(model)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def images(count: int = 3, side: int = SIDE) -> Tensor:
    return torch.randn(count, 3, side, side, dtype=torch.float64)


def twins() -> tuple[nn.Module, nn.Module]:
    last, second = made(Last(norm=False)), Second(norm=False).double()
    second.load_state_dict(last.state_dict())
    return last, second


@pytest.mark.filterwarnings("ignore:occlusion of Last")
@pytest.mark.parametrize("layer", ["up", "relu", "down", "conv2"])
def test_maps_last_are_maps(layer: str) -> None:
    (last, second), x = twins(), images()
    other = {"up": "conv2d", "down": "conv2d_1"}.get(layer, layer)
    tops = [scan(m, TensorDataset(x), [n], 2, progress=False)[n] for m, n in ((last, layer), (second, other))]
    assert_close(tops[0].value, tops[1].value, 1e-12)
    for column in ("image", "row", "column"):
        assert torch.equal(getattr(tops[0], column), getattr(tops[1], column))
    fields = [receptive_field(m, n, SIDE) for m, n in ((last, layer), (second, other))]
    assert (fields[0].size, fields[0].stride, fields[0].start) == (fields[1].size, fields[1].stride, fields[1].start)
    units = tops[0].units([0, 1])
    patches = [Deconvnet(m).project_units(x, n, units) for m, n in ((last, layer), (second, other))]
    for ours, theirs in zip(*patches, strict=True):
        assert_close(ours.double(), theirs.double(), 1e-10)
    for incremental in (True, False):
        maps = [
            occlusion_maps(
                m, x[0], size=4, step=4, layer=n, map=1, score=lambda y: y.flatten(1).sum(1), incremental=incremental
            )
            for m, n in ((last, layer), (second, other))
        ]
        assert_close(maps[0].activity, maps[1].activity, 1e-10)


def test_the_table_of_layers_says_maps_rows_columns() -> None:
    outputs = {row.layer: row.output for row in layer_table(made(Last()), SIDE)}
    assert outputs["up"] == (8, 6, 6) and outputs["conv2"] == (4, 6, 6)
    outputs = {row.layer: row.output for row in layer_table(made(Tokens()), SIDE)}
    assert outputs["norm"] == (8, 10, 1) and outputs["head"] == (5,)


@pytest.mark.parametrize("layer", ["norm", "up", "relu", "down", "conv2"])
def test_units_of_maps_last_are_projected_in_their_windows(layer: str) -> None:
    model, x = made(Last()), images()
    deconvnet = Deconvnet(model, rules="extended")
    node = deconvnet.graph.node(layer)
    shapes = deconvnet.graph.shapes((SIDE, SIDE), node)
    count, rows, columns = shapes[node][1:]
    units = torch.tensor([[n % 3, n % count, row, column] for n, (row, column) in enumerate(positions(rows, columns))])
    signals = torch.randn(len(units)).abs().double()
    patches = deconvnet.project_units(x, layer, units, signals=signals)
    output = deconvnet.record(x, [layer]).activations[layer]
    for unit, started, pixels, box, value in zip(units.tolist(), signals, *patches[1:], strict=True):
        signal = torch.zeros_like(output)
        place = (unit[0], unit[1], *unit[2:]) if output.shape[1] == count else (unit[0], *unit[2:], unit[1])
        signal[place] = started
        assert torch.isclose(value, output[place], rtol=1e-12, atol=1e-12)
        whole = deconvnet_by_autograd(model, x, layer, signal, extended=True)[unit[0]]
        assert_close(on_the_image(pixels, box, (SIDE, SIDE)), whole, 1e-10)
    assert (patches.projections != 0).any()


def test_tokens_are_places_and_see_the_whole_image() -> None:
    model, x = made(Tokens()), images()
    deconvnet = Deconvnet(model, rules="extended")
    output = deconvnet.record(x, ["relu"]).activations["relu"]  # (N, T, C)
    top = scan(model, TensorDataset(x), ["relu"], 3, progress=False)["relu"]
    best, place = output.max(1)
    assert (best > 0).any()
    for number in range(8):
        order = best[:, number].argsort(descending=True, stable=True)
        assert torch.equal(top.value[number], best[order, number])
        won = top.value[number] > 0
        assert torch.equal(top.image[number][won], order[won])
        assert torch.equal(top.row[number][won], place[order, number][won]) and (top.column[number][won] == 0).all()
    assert receptive_field(model, "relu", SIDE).box(4, 0) == (0, 0, SIDE, SIDE)
    number = int(top.value[:, 0].argmax())
    units = top.units([number])[top.value[number] > 0]
    patches = deconvnet.project_units(x, "relu", units)
    for (image, _, token, _), pixels in zip(units.tolist(), patches.projections, strict=True):
        signal = torch.zeros_like(output)
        signal[image, token, number] = output[image, token, number]
        assert_close(pixels, deconvnet_by_autograd(model, x, "relu", signal, extended=True)[image], 1e-10)
    maps = occlusion_maps(model, x[0], size=4, step=4, layer="relu", map=number, score="identity")
    changed = x[:1].clone()
    changed[:, :, 4:8, :4] = 0
    assert_close(
        maps.activity[1, 0], deconvnet.record(changed, ["relu"]).activations["relu"][0, :, number].sum(), 1e-10
    )


def test_the_class_token_is_a_unit() -> None:
    model, x = made(Tokens()), images()
    top = scan(model, TensorDataset(x), ["getitem_2"], 1, progress=False)["getitem_2"]
    assert top.value.shape == (8, 1) and (top.row == 0).all()


@pytest.mark.parametrize("layer", ["attention", "norm", "relu"])
def test_tokens_first_are_refused(layer: str) -> None:
    model, x = made(Tokens(batch_first=False)), images()
    if layer != "attention":  # behind the second transpose, images come first again
        scan(model, TensorDataset(x), [layer], 1, progress=False)
        return
    with pytest.raises(InputError, match=r"^attention .* gives a tensor of shape \(10, 1, 8\); choose a layer"):
        scan(model, TensorDataset(x), [layer], 1, progress=False)


def shifted(name: str, side: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return randomised(models.get_model(name)), torch.randn(1, 3, side, side, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "layer", "side"),
    [("swin_t", "features.1.1", 72), ("swin_v2_t", "features.2", 72), ("swin_t", "features.1.1.attn", 100)],
)
def test_fields_of_shifted_windows_are_what_a_gradient_reaches(name: str, layer: str, side: int) -> None:
    model, x = shifted(name, side)
    graph = Graph(model)
    field, out = receptive_field(graph, layer, side), {}
    model.get_submodule(layer).register_forward_hook(lambda module, args, output: out.update(maps=output))
    leaf = x.clone().requires_grad_()
    model(leaf)
    rows, columns = out["maps"].shape[1:3]
    for row, column in [(0, 0), (3, 3), (4, rows - 1), (rows // 2, columns // 2), (rows - 1, columns - 1), (6, 5)]:
        (gradient,) = torch.autograd.grad(out["maps"][0, row, column].square().sum(), leaf, retain_graph=True)
        reached = gradient[0].abs().amax(0) > 1e-25 * gradient.abs().max()  # a mask is -100, not minus infinity
        low, high = (reached.any(1).nonzero().flatten(), reached.any(0).nonzero().flatten())
        box = int(low[0]), int(high[0]), int(low[-1]) + 1, int(high[-1]) + 1
        assert field.seen(row, column) == box


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convnext_tiny": models.convnext_tiny,
    "efficientnet_b0": models.efficientnet_b0,
}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("convnext_tiny", "features.1.1"),
        ("convnext_tiny", "features.3.0.block.3"),
        ("efficientnet_b0", "features.2"),
        ("efficientnet_b0", "features.3"),
    ],
)
@pytest.mark.parametrize("same", [True, False])
def test_windows_of_the_way_back_equal_whole_images(name: str, layer: str, same: bool) -> None:
    torch.manual_seed(0)
    model, x = randomised(NETWORKS[name]()), images(3, 96)
    deconvnet = Deconvnet(model, rules="extended")
    shape = deconvnet.record(x, [layer]).activations[layer].shape
    rows, columns = shape[2:] if name == "efficientnet_b0" or layer == "features.1.1" else shape[1:3]
    units = [[0 if same else n % 3, n, *place] for n, place in enumerate(positions(rows, columns))]
    patches, whole = (deconvnet.project_units(x, layer, units, whole=flag) for flag in (False, True))
    assert patches.crops.shape[-1] < 150 and (patches.projections != 0).any()
    assert_close(patches.values, whole.values, 1e-12)
    for crop, pixels, box, image, projection in zip(*patches[:3], *whole[:2], strict=True):
        assert_close(on_the_image(pixels, box, (96, 96)), projection, 1e-12)
        top, left, bottom, right = box.clamp(0, 96).tolist()
        assert torch.equal(
            on_the_image(crop, box, (96, 96))[:, top:bottom, left:right], image[:, top:bottom, left:right]
        )


class Mixer(nn.Module):
    """A linear layer over the tokens, as in an MLP-Mixer: it mixes places, not maps."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(9, 9)
        self.relu, self.maps = nn.ReLU(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.mix(x.transpose(1, 2)).transpose(1, 2) + x
        return self.maps(self.relu(x))


@pytest.mark.parametrize(("layer", "maps"), [("relu", 6), ("maps", 5)])
def test_maps_are_followed_through_a_mixing_of_tokens(layer: str, maps: int) -> None:
    model, x = made(Mixer()), images()
    output = Deconvnet(model).record(x, [layer]).activations[layer]
    top = scan(model, TensorDataset(x), [layer], 1, progress=False)[layer]
    assert top.value.shape == (maps, 1)
    assert torch.equal(top.value[:, 0], output.amax((0, 1)))
    with pytest.raises(InputError, match=r"^mix .* gives a tensor of shape \(1, 6, 9\)"):
        scan(model, TensorDataset(x), ["mix"], 1, progress=False)


@pytest.mark.parametrize("step", [nn.Linear(SIDE, SIDE), nn.LayerNorm(SIDE)])
def test_what_mixes_the_columns_of_maps_has_no_window(step: nn.Module) -> None:
    model = made(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), step, nn.ReLU()))
    with pytest.raises(InputError, match=r"^no window for L.* at 1, so receptive fields behind it are not known"):
        receptive_field(model, "2", SIDE)
    assert receptive_field(model, "0", SIDE).size == (3, 3)


class Attended(nn.Module):
    """Attention by einsum, whose weights are the first of the two, and maps that lie second, or last."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.patches, self.keys, self.relu, self.last = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 6), nn.ReLU(), last

    def forward(self, x: Tensor) -> Tensor:
        maps = self.patches(x).flatten(2)
        weights = (self.keys(maps.mT) @ maps).softmax(-1)
        out = torch.einsum("nij,njc->nic", weights, maps.mT).mT
        if not self.last:
            out = torch.einsum("nij,ncj->nci", weights, maps)
        return self.relu(out.unflatten(2, (3, 3)))


@pytest.mark.parametrize("last", [True, False])
def test_maps_are_followed_through_an_einsum(last: bool) -> None:
    model, x = made(Attended(last)), images()
    output = Deconvnet(model).record(x, ["relu"]).activations["relu"]
    top = scan(model, TensorDataset(x), ["relu"], 1, progress=False)["relu"]
    assert torch.equal(top.value[:, 0], output.amax((0, 2, 3)))
