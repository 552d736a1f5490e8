"""Pages: what is placed lies where it was told to, and every PDF can be printed.

`printable` in conftest.py checks every PDF that any test draws; the last tests show that it can fail.
"""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from experiments.output import pages
from experiments.output.pages import DPI, Page, box, caption, enlarged, hatched, heat, plots, save, style_of
from zfnet import InputError


@pytest.fixture
def photograph() -> torch.Tensor:
    """(3, 90, 120), smooth as photographs are."""
    rows, columns = torch.linspace(0, 1, 90), torch.linspace(0, 1, 120)
    return torch.stack([rows[:, None].expand(90, 120), columns.expand(90, 120), torch.full((90, 120), 0.5)])


def test_images_lie_pixel_for_pixel(photograph, tmp_path) -> None:
    page = Page(3)
    page.image(photograph, 40, 25)
    page.y = 130
    page.caption("A caption of some words. " * 10)
    save(page.done(), tmp_path / "page")
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert pixels.shape[1] == 3 * DPI and pixels.shape[0] == pytest.approx(page.y, abs=3)
    expected = (photograph * 255).round().byte().permute(1, 2, 0).numpy()
    assert (pixels[25:115, 40:160] == expected).all()
    assert (pixels[:24] == 255).all() and (pixels[:, :39][:120] == 255).all() and (pixels[140:] < 128).any()


def test_a_page_is_as_wide_as_told_and_not_absurd() -> None:
    assert Page().columns == 1380
    for width in (600, 2, 0):
        with pytest.raises(InputError, match="give inches from 3 to 40"):
            Page(width)


def test_hatching_is_not_the_grey_of_zero(photograph) -> None:
    where = torch.zeros(90, 120, dtype=torch.bool)
    where[:, :60] = True
    picture = hatched(photograph, where)
    assert torch.equal(picture[:, :, 60:], photograph[:, :, 60:])
    outside = picture[:, :, :60]
    assert outside.unique().tolist() == pytest.approx([0.72, 1]) and (outside == 1).float().mean() > 0.8


def test_pixels_are_squares_where_asked() -> None:
    image = torch.rand(1, 3, 2, 2)
    large = enlarged(image, (6, 6), "nearest")
    assert torch.equal(large, image.repeat_interleave(3, 2).repeat_interleave(3, 3))
    assert not torch.equal(enlarged(image, (6, 6)), large)
    with pytest.raises(InputError, match="no interpolation 'linear'"):
        enlarged(image, (6, 6), "linear")


def test_styles_by_name() -> None:
    assert style_of("paper").heat == "jet" and style_of("safe").heat == "viridis"
    with pytest.raises(InputError, match="no style 'papr'"):
        style_of("papr")


def test_the_same_figure_is_the_same_file(photograph, tmp_path) -> None:
    for name in ("a", "b"):
        page = Page(3)
        page.image(photograph, 0, 0)
        page.y = 100
        save(page.done(), tmp_path / name)
    for suffix in (".png", ".pdf"):
        assert (tmp_path / "a").with_suffix(suffix).read_bytes() == (tmp_path / "b").with_suffix(suffix).read_bytes()


def test_a_page_full_of_noise_has_at_most_3_megabytes(tmp_path) -> None:
    page = Page()
    page.image(torch.rand(3, 1800, 1380), 0, 0)
    page.y = 1800
    save(page.done(), tmp_path / "noise")
    assert 10**6 < (tmp_path / "noise.pdf").stat().st_size <= 3 * 10**6


def test_heat_maps_are_vectors(tmp_path, images_of) -> None:
    page = Page(3)
    axes = page.axes(20, 20, 200, 200)
    heat(axes, torch.arange(12.0).view(3, 4), "viridis")
    box(axes, (0, 0, 2, 2))
    page.y = 240
    save(page.done(), tmp_path / "heat")
    assert images_of(tmp_path / "heat.pdf") == []
    pixels = np.asarray(Image.open(tmp_path / "heat.png").convert("RGB")).astype(int)
    assert pixels[200, 40].tolist() != pixels[40, 200].tolist()
    first = torch.tensor(pixels[30:80, 25:60].reshape(-1, 3)).unique(dim=0)
    assert [68, 1, 84] in first.tolist()  # viridis' lowest is at the top left


@pytest.mark.parametrize("fault", ["small text", "Type 3", "coarse image"])
def test_what_cannot_be_printed_is_found(fault, tmp_path, monkeypatch, photograph) -> None:
    figure = plots(1.5, 3)
    axes = figure.subplots()
    if fault == "coarse image":
        axes.imshow(photograph[:, ::9, ::9].permute(1, 2, 0).numpy(), interpolation="none")
    axes.set_title("words", fontsize=5 if fault == "small text" else 8)
    caption(figure, "more words")
    if fault == "Type 3":
        monkeypatch.setitem(pages.matplotlib.rcParams, "pdf.fonttype", 3)
    with pytest.raises(AssertionError, match=fault):
        save(figure, tmp_path / "faulty")


def test_a_good_figure_is_printable(tmp_path) -> None:
    figure: Figure = plots(1.5, 3)
    figure.subplots().plot([0, 1], [1, 0])
    save(figure, tmp_path / "good")
    assert (tmp_path / "good.pdf").exists()
