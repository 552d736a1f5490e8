"""The committed results as pieces: every result has its place, and a command that writes where it should."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import pieces
from zfnet import InputError

ROOT = Path(__file__).resolve().parent.parent


def reproduce(*words: str, **settings: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable} | {name: str(value) for name, value in settings.items()}
    command = ["bash", str(ROOT / "scripts" / "reproduce.sh"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_every_result_is_a_piece() -> None:
    known = set(pieces.pieces())
    results = {f"{file.parent.parent.name}/{file.parent.name}" for file in ROOT.glob("results/*/*/result.json")}
    assert known == results | {f"published/{file.stem}" for file in ROOT.glob("published/*.json")}
    assert all(pieces.expected(piece) > 0 for piece in pieces.pieces().values())


def test_commands_read_and_write_in_the_folders_that_they_are_given(tmp_path) -> None:
    for seed in range(3):
        folder = tmp_path / "networks" / "zfnet_small-scenes" / f"fig3, seed {seed}, 0123abcd"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
    for name, piece in pieces.pieces().items():
        words = pieces.command(name, piece, "/d, d", str(tmp_path))
        assert words[0] == "experiments/run.py" and f'out="{tmp_path}/{name}"' in words
        assert sum(word.startswith("out=") for word in words) == 1
        assert not any(re.search(r"=\"?(data|outputs|results)/", word) for word in words), words
        assert len(pieces.needs(piece)) == sum('="/d, d/' in word for word in words)


def test_what_reads_the_files_of_another_piece_comes_after_it() -> None:
    place = pieces.ORDER.index
    assert max(place("train"), place("fig6")) < place("ablation") and place("variant") < place("table3")
    assert place("fig6") < place("seeds")  # a network has the name of the experiment that trained it


def test_networks_that_are_not_there_are_one_line(tmp_path) -> None:
    name = "ablation/zfnet_small-scenes, seed 1"
    with pytest.raises(InputError, match=r"has 0 networks 'fig3, seed 1', not one: run the pieces of fig6"):
        pieces.command(name, pieces.pieces()[name], "data", str(tmp_path))


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_pieces_that_are_done_are_skipped_and_those_without_data_named(tmp_path) -> None:
    done = tmp_path / "fig3" / "zfnet-scenes"
    done.mkdir(parents=True)
    (done / "result.json").touch()
    ran = reproduce("fig3/*", OUT=tmp_path, DATA=tmp_path)
    assert ran.returncode == 0 and ran.stdout.startswith("DONE fig3/zfnet-scenes"), ran.stderr
    ran = reproduce("table3/*", OUT=tmp_path, DATA=tmp_path)
    assert ran.returncode == 1 and ran.stdout.startswith("MISS table3") and "tiny_imagenet_60" in ran.stdout
    ran = reproduce("--list", OUT=tmp_path, DATA=tmp_path)
    assert ran.returncode == 0 and len(ran.stdout.splitlines()) == len(pieces.pieces())
    assert "TODO fig2/zfnet_small-scenes" in ran.stdout
    ran = reproduce("fig3/*", "nope", OUT=tmp_path)
    assert ran.returncode == 2 and "no piece matches nope" in ran.stderr
