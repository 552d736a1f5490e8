"""Training: the paper's update, and runs that go on where they stopped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import zfnet.train
from zfnet import InputError, ZFNet
from zfnet.train import Recipe, augment, error_rate, in_memory, renormalise, train

RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.01, schedule="cosine", shift=2)


def network() -> ZFNet:
    torch.manual_seed(3)
    return ZFNet(2, maps=(6, 6, 6, 6, 6), hidden=(8,), image_size=64, init="he", dropout=0.1)


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
    before = error_rate(model, halves)
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
    train(model, halves, recipe=replace(RECIPE, rms=limit), progress=False)
    assert (max(seen[1:]) <= 0.1 * (1 + 1e-6)) == (limit is not None)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_stopped_run_goes_on_to_the_same_weights(
    halves, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole = replace(RECIPE, optimizer=optimizer), network()
    expected = train(whole, halves, halves, recipe, progress=False)
    batches = zfnet.train._batches

    def impatient(dataset, recipe, epoch):
        for n, batch in enumerate(batches(dataset, recipe, epoch)):
            if epoch == 2 and n == 3:
                raise KeyboardInterrupt
            yield batch

    stopped = network()
    monkeypatch.setattr(zfnet.train, "_batches", impatient)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, halves, halves, recipe, folder=tmp_path, progress=False)
    monkeypatch.setattr(zfnet.train, "_batches", batches)
    resumed = network()
    with torch.no_grad():
        resumed.conv1.weight.zero_()  # whatever it was made with
    history = train(resumed, halves, halves, recipe, folder=tmp_path, progress=False)
    assert history == expected
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_checkpoint_of_another_recipe_is_refused(halves, tmp_path: Path) -> None:
    train(network(), halves, recipe=replace(RECIPE, epochs=1), folder=tmp_path, progress=False)
    with pytest.raises(InputError, match="another recipe"):
        train(network(), halves, recipe=replace(RECIPE, seed=1), folder=tmp_path, progress=False)


def test_augmented_images_are_shifted_or_mirrored_copies() -> None:
    image = torch.arange(3 * 6 * 5.0).view(1, 3, 6, 5)
    seen = set()
    for seed in range(60):
        out = augment(image, Recipe(shift=1), torch.Generator().manual_seed(seed))
        assert out.shape == image.shape
        centre = out[0, 0, 2:4, 1:4]
        for mirrored in (False, True):
            for r in (-1, 0, 1):
                for c in (-1, 0, 1):
                    part = image.flip(3) if mirrored else image
                    if torch.equal(centre, part[0, 0, 2 + r : 4 + r, 1 + c : 4 + c]):
                        seen.add((mirrored, r, c))
    assert len(seen) == 18  # each of them happens


def test_rate_rises_then_falls_to_zero() -> None:
    recipe = Recipe(learning_rate=0.5, schedule="cosine")
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates[9] == 0.5 and rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:])[::-1]
    assert 0 < rates[-1] < 0.001 and rates[0] > 0
    assert {Recipe(learning_rate=0.5).rate(step, 100) for step in range(100)} == {0.5}


def test_in_memory_is_the_dataset(halves) -> None:
    class Slow(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 48

        def __getitem__(self, i: int):
            return halves[i]

    copy = in_memory(Slow(), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(copy.tensors, halves.tensors, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"optimizer": "adamw"}, "did you mean 'adam'"),
    ],
    ids=["rate", "epochs", "schedule", "optimizer"],
)
def test_bad_recipes_are_one_clear_line(change: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Recipe(**change)
    assert message in str(caught.value)


def test_labels_beyond_the_classes_are_refused(halves) -> None:
    with pytest.raises(InputError, match=r"labels 0\.\.5"):
        train(network(), TensorDataset(halves.tensors[0], torch.arange(48) % 6), recipe=Recipe(epochs=1, batch_size=48))


def test_a_loss_that_is_not_finite_stops_it(halves, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lower the learning rate"):
        train(
            network(),
            halves,
            recipe=replace(RECIPE, learning_rate=1e30, rms=None, schedule="constant"),
            folder=tmp_path,
            progress=False,
        )
