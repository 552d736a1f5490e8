"""The pictures of README.md and docs/: the command that draws each, and how it is stored.

    python scripts/pictures.py                 # lists them
    python scripts/pictures.py unit.jpg ...    # draws these again, into docs/

tests/test_pictures.py compares each with what its command draws today. All show rendered scenes; none shows a
photograph.
"""

import io
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.output.results import ROOT
from zfnet.errors import InputError, unknown_name
from zfnet.files import write_atomically


class Picture(NamedTuple):
    command: str  # what is said behind `python experiments/run.py`
    seconds: float  # that the command takes, on two cores, about
    figure: str = "figure"  # of those that the command leaves


PICTURES = {
    "unit.jpg": Picture("experiment=steps layer=relu2 interpolation=nearest", 9, "unit"),
    "steps.jpg": Picture("experiment=steps", 9),
    "stripes.png": Picture("experiment=stripes", 6),
    "k4.jpg": Picture("experiment=fig2 k=4 layers=[relu4] grids=[[1,4]] width=900", 25),
    "layer5.jpg": Picture("experiment=fig2 layers=[relu5] grids=[[2,2]] choose=strongest width=900", 25),
    "boxes.jpg": Picture("experiment=fig2", 40, "boxes"),
    "fig2.jpg": Picture("experiment=fig2", 40),
    "fig7.jpg": Picture("experiment=fig7", 120),
    "seeds.jpg": Picture("experiment=seeds train.precision=bfloat16", 1200),
    "ablation.jpg": Picture("experiment=ablation", 1400),
}
WIDE = {"ablation.jpg": 1100}  # pixels, of those that are stored smaller than they are drawn


def drawn(name: str, folder: Path) -> Image.Image:
    """The picture as its command draws it today, in `folder`; results and networks of the working folder are used."""
    if name not in PICTURES:
        raise unknown_name("picture", name, PICTURES)
    picture = PICTURES[name]
    words = [*shlex.split(picture.command), f'out="{folder}"']
    run = [sys.executable, str(ROOT / "experiments" / "run.py"), *words]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{name}: {picture.command} failed: {(done.stderr.splitlines() or ['no message'])[-1]}")
    image = Image.open(folder / f"{picture.figure}.png").convert("RGB")
    if wide := WIDE.get(name):
        image = image.resize((wide, round(image.height * wide / image.width)), Image.Resampling.LANCZOS)
    return image


def stored(image: Image.Image, name: str) -> bytes:
    """The file of a picture."""
    content = io.BytesIO()
    if name.endswith(".png"):
        image.save(content, "PNG", optimize=True)
    else:
        image.save(content, "JPEG", quality=85, subsampling=0, optimize=True)
    return content.getvalue()


def difference(one: Image.Image, other: Image.Image) -> float:
    """The mean absolute difference of two pictures of one size, in levels of 255; 255 where their sizes differ."""
    if one.size != other.size:
        return 255.0
    first, second = (np.asarray(image.convert("RGB")).astype(np.float64) for image in (one, other))
    return float(np.abs(first - second).mean())


def main() -> None:
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            write_atomically(ROOT / "docs" / name, stored(drawn(name, Path(folder)), name))
        print(ROOT / "docs" / name)
    if len(sys.argv) == 1:
        for name, picture in PICTURES.items():
            print(f"docs/{name}", f"python experiments/run.py {picture.command}", picture.figure, sep="\t")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"pictures.py: {error}")
