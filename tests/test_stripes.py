"""Two filters, two images, in integers."""

from experiments.questions import stripes


def test_stripes_across_are_exactly_zero(tmp_path, capsys):
    result = stripes.main(tmp_path)
    ours = result["ours"]
    assert ours["largest"]["horizontal"] == {"horizontal": 48, "vertical": 0}
    assert ours["largest"]["vertical"] == {"horizontal": 0, "vertical": 48}
    assert ours["range_before_relu"]["horizontal"]["vertical"] == [0, 0]
    assert "| horizontal filter" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "figure.pdf", "table.md", "result.json"}
    assert result["settings"] == {"size": 16, "kernel": 4, "width": 6.9}
