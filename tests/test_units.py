"""The table of layers."""

from experiments.questions import units


def test_units_prints_the_table(model, tmp_path, capsys):
    result = units.main(model, tmp_path)
    assert result["ours"]["output"]["relu1"] == [6, 14, 14]
    printed = capsys.readouterr().out
    assert "6 x 14 x 14 = 1,176 units" in printed
    assert (tmp_path / "table.md").read_text() == printed.rstrip("\n") + "\n"
