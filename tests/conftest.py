"""One seed and two threads for every test; `--slow` and a CUDA device decide what is left out."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; give --slow to run it"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def real_data() -> Path:
    """The folder of real photographs that ZFNET_REAL_DATA names."""
    if "ZFNET_REAL_DATA" not in os.environ:
        pytest.skip("ZFNET_REAL_DATA names no folder of photographs")
    return Path(os.environ["ZFNET_REAL_DATA"])
