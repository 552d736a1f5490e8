"""Weights and checkpoints of another network, hostile ones, and absurd ones; see `files_of_weights` for the former.

A checkpoint has the right identity and digest, but something in it is missing, too much, of another type, another shape
or absurd. It must be refused in one line that names the file, the model and the optimizer as they were, bit for bit; or
be loaded with the values in the file, and then training must resume from it and finish.
"""

import contextlib
import copy
import functools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from scripts.fuzzing import files_of_weights
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError
from zfnet.identity import digest, read_sealed, write_sealed
from zfnet.training import Recipe, run_identity
from zfnet.training.loop import Diverged, _Run

RECIPES = [
    Recipe(epochs=3, batch_size=4),
    Recipe(epochs=2, batch_size=4, optimizer="adam", schedule="cosine"),
    Recipe(epochs=2, batch_size=8, momentum=0, pixel_mean=True, schedule="plateau"),
]


def case(seed: int, folder: Path) -> str:
    """Two cases in three are files of weights, the third is a checkpoint."""
    if seed % 3:
        return files_of_weights.case(seed, folder)
    choose = random.Random(seed)
    recipe = choose.choice(RECIPES)
    state, path = copy.deepcopy(whole_state(recipe)), folder / "checkpoint.pt"
    for _ in range(choose.choice([1, 1, 1, 2, 4])):
        state = changed(choose, state)
    run = new_run(recipe)
    write_sealed(path, run_identity(run.model, run.dataset, run.validation, recipe), state)
    before = digest(run.model, run.optimizer.state_dict(), run.position.step)
    try:
        run.begin(folder)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error), str(error)
        assert digest(run.model, run.optimizer.state_dict(), run.position.step) == before, "something was loaded"
        return "checkpoint refused"
    assert equal(run.model.state_dict(), state["model"]), "other weights than the file's"
    assert equal(run.optimizer.state_dict()["state"], state["optimizer"]["state"]), "another momentum than the file's"
    assert run.position.history == state["position"]["history"] and run.position.step == state["position"]["step"]
    try:
        history = run.train()
    except Diverged:
        return "checkpoint resumed, diverged"
    assert len(history) == recipe.epochs
    return "checkpoint resumed"


@functools.cache
def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (12, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return TensorDataset(pixels, torch.randint(4, (12,), generator=generator))


def new_run(recipe: Recipe) -> _Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    Preprocessing(size=8, resize=8).attach(model)
    return _Run(model, images(), images(), recipe, 0, False, False, None)


@functools.lru_cache(maxsize=len(RECIPES))
def whole_state(recipe: Recipe) -> dict[str, Any]:
    """What a run keeps in the middle of its second epoch."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = new_run(recipe)
        run.begin(folder)
        run._epoch(1)
        run._finish_epoch()
        count = iter(range(9))
        step = run._step

        def stopped(*arguments: Any) -> int:
            done = step(*arguments)
            if next(count) == 0:
                run._save()
                raise KeyboardInterrupt
            return done

        run._step = stopped  # type: ignore[method-assign]
        with contextlib.suppress(KeyboardInterrupt):
            run._epoch(2)
        identity = run.checkpoint.identity if run.checkpoint else {}
        return dict(read_sealed(Path(folder, "checkpoint.pt"), identity, ""))


# ---- what is changed -------------------------------------------------------------------------------------------------

ABSURD: list[Any] = [
    *(None, True, "", "a\nb", b"a", [], {}, (), [[]], {"a": 1}, {0: 1}, [1], 0, 1, -1, 2, 10**9, 10**400, -(2**63)),
    *(0.0, 0.5, 1.5, -0.5, 1e-30, 1e300, float("nan"), float("inf"), -float("inf"), 1j, {"step": 10**9}, [{}], {1, 2}),
]


def changed(choose: random.Random, state: Any) -> Any:
    """The state with one thing changed, somewhere in it."""
    places = list(containers(state))
    if not places or choose.random() < 0.02:
        return choose.choice(ABSURD)
    # as many of the small ones, where the numbers are, as of the large ones
    container = choose.choice(places)
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    key = choose.choice(keys)
    match choose.randrange(6):
        case 0:
            del container[key]
        case 1:
            if isinstance(container, dict):
                container[choose.choice(["extra", "", 7, key * 2 if isinstance(key, str) else "0", None])] = container[
                    key
                ]
            else:
                container.append(copy.deepcopy(container[key]))
        case 2:
            other = choose.choice(keys)
            container[key], container[other] = container[other], container[key]
        case 3:
            container[key] = choose.choice(ABSURD)
        case 4:
            container[key] = container[choose.choice(keys)]  # the same object, twice
        case _:
            container[key] = other_value(choose, container[key])
    return state


def containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list) and value:
        yield value
        for entry in value.values() if isinstance(value, dict) else value:
            yield from containers(entry)


def other_value(choose: random.Random, value: Any) -> Any:
    if isinstance(value, Tensor):
        return choose.choice(files_of_weights.TENSORS)(value)
    if isinstance(value, float | int):
        return choose.choice(
            [-value, value + 1, value * 10**9, float(value), int(value), str(value), [value], value / 7]
        )
    return choose.choice([[value], {"a": value}, (value,), str(value), value and type(value)()])


def equal(one: Any, other: Any) -> bool:
    """Whether two values are the same, tensors by their bits."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and digest(one) == digest(other)
    return bool(one == other)
