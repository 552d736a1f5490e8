"""One activation on its way down."""

from pathlib import Path

import pytest

from experiments.questions import steps
from zfnet import InputError, scan


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_steps_follows_one_activation_down(model, data, tmp_path):
    result = steps.main(model, data, tmp_path, layer="relu2", progress=False)
    unit, path = result["ours"]["unit"], result["ours"]["steps"]
    top = scan(model, data, ["relu2"], 1, progress=False)["relu2"]
    assert unit["value"] == float(top.value.max())
    assert [s["operation"] for s in path] == ["start", "rectify", "filter", "unpool", "rectify", "filter"]
    assert path[0]["not_zero"] == 1
    assert path[-1]["shape"] == [3, 32, 32]
    assert files(tmp_path) == {"figure.png", "figure.pdf", "result.json"}
    with pytest.raises(InputError, match="no map 8"):
        steps.main(model, data, tmp_path, layer="relu2", map=8, progress=False)
