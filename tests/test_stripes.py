"""Two filters, two images, in integers."""

from experiments.questions import stripes


def test_stripes_across_are_exactly_zero(tmp_path, capsys):
    ours = stripes.main(tmp_path)["ours"]
    assert ours["largest"]["horizontal"] == {"horizontal": 48, "vertical": 0}
    assert ours["largest"]["vertical"] == {"horizontal": 0, "vertical": 48}
    assert ours["range_before_relu"]["horizontal"]["vertical"] == [0, 0]
    assert "| horizontal filter" in capsys.readouterr().out
