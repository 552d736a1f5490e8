"""Training: the paper's update, and interrupted runs that resume."""

import io
import os
from dataclasses import replace
from pathlib import Path
from time import sleep

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.transforms.functional import ten_crop

import zfnet.training.loop
from zfnet import InputError, ZFNet, weights
from zfnet.data.crops import mean_image
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import BrokenImage
from zfnet.training import Recipe, error_rates, missed, renormalise, train
from zfnet.training.loop import _ahead

RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.01, schedule="cosine", max_shift=2)


def network(dropout: float = 0.1, **arguments) -> ZFNet:
    torch.manual_seed(3)
    return ZFNet(2, maps=(6, 6, 6, 6, 6), hidden=(8,), image_size=64, init="he", dropout=dropout, **arguments)


@pytest.fixture(scope="module")
def halves() -> TensorDataset:
    """Images bright on the left, or on the right half of rows, of which a network can tell top from bottom."""
    torch.manual_seed(0)
    images, labels = torch.randn(48, 3, 64, 64) * 0.3, torch.arange(48) % 2
    images[labels == 0, :, :32] += 1
    images[labels == 1, :, 32:] += 1
    return TensorDataset(images, labels)


def rms(model: nn.Module) -> torch.Tensor:
    filters = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d)]
    return torch.cat([f.square().mean((1, 2, 3)).sqrt() for f in filters])


def test_learns(halves) -> None:
    model = network()
    (before,) = error_rates(model, halves, top=[1])
    history = train(model, halves, halves, replace(RECIPE, epochs=12), progress=False)
    assert history[-1]["validation_error"] <= 0.1 < before + 1e-9
    assert history[-1]["loss"] < history[0]["loss"]


def test_renormalisation_scales_back_to_rms_and_leaves_the_rest() -> None:
    model = network()
    with torch.no_grad():
        model.conv1.weight[0].mul_(100)
        model.conv1.weight[1].mul_(0.01)
    before = model.conv1.weight.detach().clone()
    linear = model.fc6.weight.detach().clone()
    renormalise(model, 0.1)
    after = model.conv1.weight.detach()
    assert after[0].square().mean().sqrt().item() == pytest.approx(0.1, rel=1e-6)
    torch.testing.assert_close(after[0] / after[0].norm(), before[0] / before[0].norm())  # its direction is kept
    assert torch.equal(after[1], before[1]) and torch.equal(model.fc6.weight, linear)


@pytest.mark.parametrize("limit", [0.1, None], ids=["renormalised", "not"])
def test_no_filter_exceeds_the_rms_after_any_step(halves, limit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.SGD.step

    def observed(self, *args, **kwargs):
        seen.append(float(rms(model).max()))  # before this step: after the one before
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", observed)
    model = network()
    train(model, halves, recipe=replace(RECIPE, max_filter_rms=limit), progress=False)
    assert (max(seen[1:]) <= 0.1 * (1 + 1e-6)) == (limit is not None)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def without_times(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in e.items() if k not in ("seconds", "images_per_second", "waiting")} for e in history]


class Recorded(torch.utils.data.Dataset):
    """Writes down which images are read."""

    def __init__(self, dataset):
        self.dataset, self.order = dataset, []

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int):
        self.order.append(i)
        return self.dataset[i]


def test_the_seed_decides_the_order_of_the_images_and_each_epoch_has_its_own(halves) -> None:
    orders = []
    for seed in (0, 1, 0):
        recorded = Recorded(halves)
        train(network(), recorded, recipe=replace(RECIPE, epochs=2, seed=seed), workers=0, progress=False)
        orders.append(recorded.order)
    first, other, again = orders
    assert first == again and sorted(first) == sorted(other) == sorted([*range(48)] * 2)
    assert first[:8] != other[:8] and first[:48] != first[48:]


class Killed(BaseException):
    """What nobody catches."""


@pytest.mark.parametrize("when", [0, 1, 13, 17], ids=lambda n: f"step {n}")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_killed_run_goes_on_to_the_same_weights(
    halves, optimizer: str, when: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zfnet.training.loop, "SAVE_EVERY", 0.0)  # a checkpoint after every step
    recipe, whole = replace(RECIPE, optimizer=optimizer), network()
    expected = train(whole, halves, halves, recipe, progress=False)
    assert len(halves) / recipe.batch_size * recipe.epochs == 18
    forward, steps = ZFNet.forward, iter(range(999))

    def killed(self, images):
        if self.training and next(steps) == when:
            raise Killed
        return forward(self, images)

    monkeypatch.setattr(ZFNet, "forward", killed)
    with pytest.raises(Killed):
        train(network(), halves, halves, recipe, folder=tmp_path, progress=False)
    monkeypatch.setattr(ZFNet, "forward", forward)
    resumed = network()
    history = train(resumed, halves, halves, recipe, folder=tmp_path, progress=False)
    assert without_times(history) == without_times(expected)
    assert same_weights(whole, resumed)


# ---- broken images ---------------------------------------------------------------------------------------------------


class Spotty(torch.utils.data.Dataset):
    """Images some of which cannot be read."""

    def __init__(self, dataset, *broken: int):
        self.dataset, self.broken = dataset, broken

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int):
        if i in self.broken:
            raise BrokenImage(f"cannot load {i:02d}.png")
        return self.dataset[i]


@pytest.mark.parametrize("broken", [0, 47, 20], ids=["first", "last", "another"])
def test_a_broken_image_is_left_out_and_named(halves, broken: int) -> None:
    many = TensorDataset(*(torch.cat([tensor[:16]] * 3 + [tensor] * 2) for tensor in halves.tensors))  # 144: 1 is < 1 %
    with pytest.warns(UserWarning, match=f"1 (training|validation) image.s. .* {broken:02d}.png") as said:
        spotty, recipe = Spotty(many, broken), replace(RECIPE, epochs=2)
        history = train(network(), spotty, spotty, recipe, workers=0, progress=False)
    assert history.broken == {
        "training": [f"item {broken}: cannot load {broken:02d}.png"],
        "validation": [f"item {broken}: cannot load {broken:02d}.png"],
    }
    assert len(said) == 2  # once for each, and not every epoch
    assert len(history) == 2


@pytest.mark.parametrize("role", ["training", "validation"])
def test_more_than_one_percent_are_left_out_only_if_told(halves, role: str) -> None:
    spotty, recipe = Spotty(halves, 3, 5), replace(RECIPE, epochs=1)
    data = (spotty, halves) if role == "training" else (halves, spotty)
    says = rf"2 of 48 \(4.2%\) {role} image.s. could not be read, first: item 3: .*03.png; .* allow_broken=true"
    with pytest.raises(InputError, match=says if role == "validation" else r"allow_broken=true"):
        train(network(), *data, recipe, workers=0, progress=False)
    with pytest.warns(UserWarning, match="2 "):
        history = train(network(), *data, recipe, workers=0, progress=False, allow_broken=True)
    assert history.broken[role] and set(history.broken[role]) == {
        "item 3: cannot load 03.png",
        "item 5: cannot load 05.png",
    }
    with pytest.raises(InputError, match="none of the 48"):
        train(network(), Spotty(halves, *range(48)), None, recipe, workers=0, progress=False, allow_broken=True)


@pytest.mark.filterwarnings("ignore:.*could not be read")
def test_a_run_of_which_whole_batches_are_broken_goes_on_to_the_same_weights(
    halves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zfnet.training.loop, "SAVE_EVERY", 0.0)
    recipe, spotty = replace(RECIPE, batch_size=2, epochs=2), Spotty(halves, *range(1, 48, 2), *range(0, 16, 2))
    options = {"workers": 0, "progress": False, "allow_broken": True}
    whole, resumed = network(), network()
    expected = train(whole, spotty, None, recipe, **options)
    forward, steps = ZFNet.forward, iter(range(999))

    def killed(self, images):
        if next(steps) == 7:
            raise Killed
        return forward(self, images)

    monkeypatch.setattr(ZFNet, "forward", killed)
    with pytest.raises(Killed):
        train(network(), spotty, None, recipe, folder=tmp_path, **options)
    monkeypatch.setattr(ZFNet, "forward", forward)
    history = train(resumed, spotty, None, recipe, folder=tmp_path, **options)
    assert without_times(history) == without_times(expected)
    assert sorted(history.broken["training"]) == sorted(expected.broken["training"]) and same_weights(whole, resumed)


def test_errors_are_not_measured_on_nothing(halves) -> None:
    with pytest.raises(InputError, match=r"no image could be read to measure errors on: item 0: cannot load 00\.png"):
        error_rates(network(), Spotty(halves, *range(48)), workers=0)
    with pytest.warns(UserWarning, match="1 image.s. could not be read, first: item 7: cannot load 07.png"):
        error_rates(network(), Spotty(halves, 7), workers=0)


# ---- several processes -----------------------------------------------------------------------------------------------


def share(rank: int, world: int, folder: str, images: torch.Tensor, labels: torch.Tensor, recipe: Recipe) -> None:
    """One process of several: trains, resuming what one process began, and leaves its weights and history."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    model, data = network(dropout=0.0).to(images.dtype), TensorDataset(images, labels)
    if rank:
        nn.init.zeros_(model.conv1.weight)  # only the first one's initial weights count
    history = train(model, data, data, recipe, folder=folder, progress=False)
    torch.save((model.state_dict(), without_times(history)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("count", "dtype", "close", "begun"),
    [(48, torch.float32, 1e-6, False), (45, torch.float64, 1e-13, True)],
    ids=["whole batches", "a smaller last batch, in float64, resumed"],
)
def test_two_processes_of_half_the_batch_are_one(
    halves, count: int, dtype: torch.dtype, close: float, begun: bool, tmp_path: Path
) -> None:
    images, labels = halves.tensors[0][:count].to(dtype), halves.tensors[1][:count]
    recipe, data = replace(RECIPE, epochs=2), TensorDataset(images, labels)
    alone, stopped = network(dropout=0.0).to(dtype), network(dropout=0.0).to(dtype)
    expected = without_times(train(alone, data, data, recipe, progress=False))

    def stop(history) -> None:
        if len(history) == 2:
            raise Killed

    if begun:
        with pytest.raises(Killed):
            train(stopped, data, data, recipe, folder=tmp_path, progress=False, on_epoch=stop)
        assert (tmp_path / "checkpoint.pt").exists()
    torch.multiprocessing.spawn(share, (2, str(tmp_path), images, labels, recipe), nprocs=2)
    for rank in (0, 1):
        weights, history = torch.load(tmp_path / f"{rank}.pt")
        for name, weight in alone.state_dict().items():
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=close)
        for ours, theirs in zip(history, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_batch_that_cannot_be_shared_is_refused(halves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfnet.training.loop, "processes", lambda: (0, 3))
    with pytest.raises(InputError, match="batch_size 8 cannot be shared by 3 processes"):
        train(network(), halves, recipe=RECIPE, progress=False)


# ---- images ----------------------------------------------------------------------------------------------------------


def test_error_rates_average_probabilities_over_models_and_crops() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 7)) for _ in range(2)]
    for model in models:
        model.preprocessing = Preprocessing(size=8, resize=8, mean=(0.5,) * 3, std=(0.2,) * 3)
    images, labels = torch.randint(256, (40, 3, 12, 12), dtype=torch.uint8), torch.randint(7, (40,))
    data = TensorDataset(images, labels)
    x = (images / 255 - 0.5) / 0.2
    for crops in (1, 10):
        parts = ten_crop(x, 8) if crops == 10 else [x[..., 2:10, 2:10]]
        mean = sum(model(part).softmax(1) for model in models for part in parts)
        ranks = (mean > mean.gather(1, labels[:, None])).sum(1)
        expected = tuple(float((ranks >= n).double().mean()) for n in (1, 5))
        assert error_rates(models, data, crops=crops, batch_size=7) == pytest.approx(expected)


def test_each_image_is_missed_or_not() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 0.0, 2.0]])
    data = TensorDataset(logits[:, :, None, None], torch.tensor([0, 2, 0]))  # the best, the second and the third
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    nn.init.eye_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    misses = missed(model, data, top=(1, 2, 9), batch_size=2)
    assert misses.tolist() == [[False, False, False], [True, False, False], [True, True, False]]
    assert error_rates(model, data, top=(1, 2, 9)) == pytest.approx((2 / 3, 1 / 3, 0))


def test_uint8_images_are_cropped_and_normalised_by_the_models_preprocessing(halves) -> None:
    images = ((halves.tensors[0].clamp(-2, 2) + 2) / 4 * 255).round().to(torch.uint8)
    how = Preprocessing(size=64, resize=64, mean=(0.5,) * 3, std=(0.25,) * 3)
    raw, ready = network(), network()
    raw.preprocessing = how
    train(raw, TensorDataset(images, halves.tensors[1]), recipe=RECIPE, progress=False)
    train(ready, TensorDataset(how.normalise(images / 255), halves.tensors[1]), recipe=RECIPE, progress=False)
    for ours, theirs in zip(raw.parameters(), ready.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_pixel_mean_is_that_of_the_training_images(halves, tmp_path: Path) -> None:
    images = torch.randint(256, (10, 3, 72, 72), dtype=torch.uint8)
    data = TensorDataset(images, torch.arange(10) % 2)
    model = network()
    model.preprocessing = Preprocessing(size=64, resize=72, scale=255, mean=(1, 2, 3), std=(1, 1, 1))
    train(model, data, recipe=replace(RECIPE, epochs=1, max_shift=0, stored_size=72, pixel_mean=True), progress=False)
    how = model.preprocessing
    torch.testing.assert_close(how.mean_image, images.double().mean(0).float())
    torch.testing.assert_close(mean_image(data, replace(how, channels="BGR"), progress=False), how.mean_image.flip(0))
    x = torch.rand(2, 3, 72, 72)
    normalised = how.normalise(x)
    torch.testing.assert_close(normalised, 255 * x - how.mean_image)
    middle = (slice(None), slice(None), slice(4, 68), slice(4, 68))
    torch.testing.assert_close(how.normalise(x[middle]), normalised[middle])
    torch.testing.assert_close(how.pixels(normalised), x)
    weights.save(model, tmp_path / "w.safetensors")
    again = weights.load(network(), tmp_path / "w.safetensors").preprocessing
    assert torch.equal(again.mean_image, how.mean_image) and again == how


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "float16", "float32"])
def test_learns_on_a_gpu_and_goes_on_where_it_was(halves, precision: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=6, precision=precision)
    model = network().cuda()
    history = train(model, halves, halves, recipe, folder=tmp_path, progress=False)
    assert history[-1]["loss"] < history[0]["loss"]
    assert {(w.dtype, w.device.type) for w in model.parameters()} == {(torch.float32, "cuda")}
    again = network().cuda()
    assert train(again, halves, halves, recipe, folder=tmp_path, progress=False) == history
    assert same_weights(model, again)


# ---- the recipe ------------------------------------------------------------------------------------------------------


def test_rate_rises_then_falls_to_zero() -> None:
    recipe = Recipe(learning_rate=0.5, schedule="cosine")
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates[9] == 0.5 and rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:])[::-1]
    assert 0 < rates[-1] < 0.001 and rates[0] > 0
    assert {Recipe(learning_rate=0.5).rate(step, 100) for step in range(100)} == {0.5}


def test_rate_falls_where_the_validation_error_is_flat() -> None:
    recipe = Recipe(learning_rate=1.0, schedule="plateau", patience=2, factor=0.5)
    errors = [0.9, 0.8, 0.7, 0.7, 0.6995, 0.7, 0.6, 0.61, 0.62, 0.6]
    rates = [recipe.rate(0, 1, errors[:n]) for n in range(len(errors) + 1)]
    assert rates == [1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_half_precision_leaves_the_weights_float32(halves) -> None:
    model = network(norm="after pool")
    history = train(model, halves, halves, replace(RECIPE, epochs=8, precision="bfloat16"), progress=False)
    assert {w.dtype for w in model.state_dict().values()} == {torch.float32}
    assert history[-1]["loss"] < history[0]["loss"]
    exact = network(norm="after pool")
    train(exact, halves, halves, replace(RECIPE, epochs=8), progress=False)
    assert not same_weights(exact, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0}, "learning_rate is 0; give a number above 0"),
        ({"epochs": 0}, "epochs is 0; give a whole number from 1"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"optimizer": "adamw"}, "did you mean 'adam'"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"max_shift": -1}, "max_shift is -1"),
        ({"max_filter_rms": 0}, "max_filter_rms is 0"),
        ({"crops": "tne"}, "did you mean 'ten'"),
        ({"precision": "half"}, "no precision 'half'"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_bad_recipes_are_one_clear_line(change: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Recipe(**change)
    assert message in str(caught.value)


def test_images_of_other_channels_are_refused() -> None:
    data = TensorDataset(torch.zeros(8, 5, 32, 32), torch.zeros(8).long())
    with pytest.raises(InputError, match=r"fails on images of shape \(8, 5, 32, 32\): .*channels"):
        train(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(1800, 2)), data, progress=False)


def test_labels_beyond_the_classes_are_refused(halves) -> None:
    with pytest.raises(InputError, match=r"labels are 0\.\.5"):
        train(network(), TensorDataset(halves.tensors[0], torch.arange(48) % 6), recipe=Recipe(epochs=1, batch_size=48))


def test_plateau_needs_validation_images(halves) -> None:
    with pytest.raises(InputError, match="plateau needs validation images"):
        train(network(), halves, recipe=replace(RECIPE, schedule="plateau"), progress=False)


def contents(checkpoint: Path) -> dict:
    """What a checkpoint holds behind the line of its seal."""
    return torch.load(io.BytesIO(checkpoint.read_bytes().partition(b"\n")[2]))


def test_a_loss_that_is_not_finite_stops_it_with_the_last_good_checkpoint(halves, tmp_path: Path) -> None:
    good = replace(RECIPE, epochs=2, schedule="constant")
    file = tmp_path / "checkpoint.pt"
    images, labels = halves.tensors
    forward, calls = ZFNet.forward, iter(range(99))
    model = network()
    try:
        ZFNet.forward = lambda self, x: forward(self, x) * (torch.nan if next(calls) == 8 else 1)
        with pytest.raises(InputError) as caught:
            train(model, TensorDataset(images, labels), recipe=good, folder=tmp_path, progress=False)
    finally:
        ZFNet.forward = forward
    assert str(caught.value) == (
        f"the loss is nan in epoch 2, step 3: lower the learning rate (0.01); the last good state is in {file}"
    )
    state = contents(file)
    assert len(state["position"]["history"]) == 1 and all(w.isfinite().all() for w in state["model"].values())


@pytest.mark.parametrize("at_once", [2, 4, 99])
def test_losses_that_are_read_later_are_the_same_and_stop_it_too(
    halves, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, which works on several steps before their losses are looked at."""
    recipe = replace(RECIPE, epochs=2)
    soon, later, stopped = network(), network(), network()
    expected = train(soon, halves, halves, recipe, progress=False)
    monkeypatch.setattr(zfnet.training.loop, "_settled_at_once", lambda device: at_once)
    history = train(later, halves, halves, recipe, progress=False)
    assert without_times(history) == without_times(expected) and same_weights(soon, later)
    monkeypatch.setattr(zfnet.training.loop, "SAVE_EVERY", 0.0)
    forward, calls = ZFNet.forward, iter(range(99))

    def spoiled(self, images):
        return forward(self, images) * (torch.nan if self.training and next(calls) == 8 else 1)

    monkeypatch.setattr(ZFNet, "forward", spoiled)
    with pytest.raises(InputError, match=r"the loss is nan in epoch 2, step 3: .* state is in .*checkpoint\.pt"):
        train(stopped, halves, halves, recipe, folder=tmp_path, progress=False)
    state = contents(tmp_path / "checkpoint.pt")
    assert all(weight.isfinite().all() for weight in state["model"].values())
    assert len(state["position"]["history"]) == 1 and state["position"]["step"] == 2


@pytest.mark.gpu
def test_bytes_on_a_gpu_give_what_batches_that_are_copied_give(halves, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ((halves.tensors[0].clamp(-2, 2) + 2) / 4 * 255).round().to(torch.uint8)
    data = TensorDataset(images, halves.tensors[1])
    where, cut = [], zfnet.training.loop.augment

    def seen(images, *args, **kwargs):
        where.append(images.device.type)
        return cut(images, *args, **kwargs)

    monkeypatch.setattr(zfnet.training.loop, "augment", seen)
    held, copied = network(), network()
    for model in (held, copied):
        model.cuda().preprocessing = Preprocessing(size=64, resize=64, mean=(0.5,) * 3, std=(0.25,) * 3)
        train(model, data, data, replace(RECIPE, precision="float32"), progress=False)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    assert where == ["cuda"] * 18 + ["cpu"] * 18
    for ours, theirs in zip(held.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_learning_rate_that_is_too_high_is_found_out(halves, tmp_path: Path) -> None:
    recipe = replace(RECIPE, learning_rate=1e30, max_filter_rms=None, schedule="constant")
    with pytest.raises(InputError, match="lower the learning rate"):
        train(network(), halves, recipe=recipe, folder=tmp_path, progress=False)


def test_a_worker_that_dies_is_one_line_and_the_checkpoint_stays(tmp_path: Path) -> None:
    class Fragile(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 32

        def __getitem__(self, i: int):
            if i == 7 and (tmp_path / "checkpoint.pt").exists():
                os._exit(1)
            return torch.randn(3, 64, 64), i % 2

    with pytest.raises(InputError, match="a worker process died"):
        train(network(), Fragile(), recipe=RECIPE, folder=tmp_path, workers=1, progress=False)
    assert len(contents(tmp_path / "checkpoint.pt")["position"]["history"]) == 1


def test_batches_made_ahead_are_the_same_and_errors_reach_the_reader() -> None:
    def items():
        yield from range(5)
        raise InputError("no more")

    seen = []
    with pytest.raises(InputError, match="no more"):
        for item in _ahead(items()):
            seen.append(item)
    assert seen == list(range(5))
    assert list(_ahead(iter("abc"))) == ["a", "b", "c"]


def test_metrics_say_how_long_the_network_waited_for_images(halves) -> None:
    class Slow(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 16

        def __getitem__(self, i: int):
            sleep(0.02)
            return halves[i]

    (slow,) = train(network(), Slow(), recipe=replace(RECIPE, epochs=1), workers=0, progress=False)
    assert slow["seconds"] > 0.32 and slow["waiting"] * slow["seconds"] > 0.3
    assert slow["images_per_second"] == pytest.approx(16 / slow["seconds"])


def test_what_cannot_be_trained_on_or_judged_is_one_line(halves) -> None:
    images, labels = halves.tensors
    good = TensorDataset(images, labels)
    for data, checks, says in (
        (good, TensorDataset(images[:0], labels[:0]), "no images to validate on"),
        (good, TensorDataset(images, labels - 1), r"labels are -1\.\.0, but the network has 2 classes"),
        (TensorDataset(images.long(), labels), None, "images are torch.int64; give floats, or uint8"),
        (iter([]), None, "list_iterator has no items by index"),
    ):
        with pytest.raises(InputError, match=says):
            train(network(), data, checks, RECIPE, workers=0, progress=False)
