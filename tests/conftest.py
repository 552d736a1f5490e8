"""One seed and two threads for every test; `--slow` and a CUDA device decide what is left out.

On a machine that is busy with other work, `--threads 1` is several times faster: small operations wait for each other.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from zfnet.operations import DECONVNET


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--threads", type=int, default=2, help="threads of torch; 1 on a busy machine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; give --slow to run it"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def real_data() -> Path:
    """The folder of real photographs that ZFNET_REAL_DATA names."""
    if "ZFNET_REAL_DATA" not in os.environ:
        pytest.skip("ZFNET_REAL_DATA names no folder of photographs")
    return Path(os.environ["ZFNET_REAL_DATA"])


@pytest.fixture
def tables() -> Iterator[None]:
    """The table of operations as it was, afterwards."""
    before = dict(DECONVNET)
    yield
    DECONVNET.clear()
    DECONVNET.update(before)
