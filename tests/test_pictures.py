"""Pictures of the pages: assets/losses.py."""

import importlib.util

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageColor


@pytest.fixture(scope="module")
def losses():
    spec = importlib.util.spec_from_file_location("losses", ROOT / "assets/losses.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_log(run, loss_D, loss_G):
    run.mkdir()
    rows = [f"{50 * (i + 1)},{d},{g},0.5" for i, (d, g) in enumerate(zip(loss_D, loss_G, strict=True))]
    (run / "log.csv").write_text("\n".join(["step,loss_D,loss_G,diversity", *rows]) + "\n")


def where(picture, color):
    """Coordinates x and y of all pixels of a color."""
    y, x = np.nonzero((np.asarray(picture) == ImageColor.getrgb(color)).all(-1))
    return x, y


def test_curves(losses, tmp_path):
    """loss_D falls from high to low, loss_G stays half-way between, and both end at the right edge."""
    n = 200
    write_log(tmp_path / "a", np.linspace(4, 0, n), np.full(n, 2.0))
    picture = losses.draw(tmp_path / "a")

    x, y = where(picture, losses.COLORS["loss_D"])
    assert y[x == x.min()].mean() < 20 and y[x == x.max()].mean() > losses.HEIGHT - 20
    assert x.max() == losses.LEFT + losses.WIDTH - 1
    x, y = where(picture, losses.COLORS["loss_G"])
    assert np.ptp(y) <= 2
    assert abs(y.mean() - losses.HEIGHT / 2) < 12


def test_first_tenth_is_left_out(losses, tmp_path):
    n = 100
    wild = np.full(n, 1.0)
    wild[:10] = 1e6
    write_log(tmp_path / "a", wild, np.full(n, 0.5))
    steps, found = losses.read_log(tmp_path / "a")
    assert steps[0] == 50 * 20 and steps[-1] == 50 * n  # the mean of rows 11 to 20 stands at row 20
    np.testing.assert_allclose(found["loss_D"], 1.0)


def test_mean_of_ten_rows(losses, tmp_path):
    values = np.random.default_rng(0).normal(size=40)
    write_log(tmp_path / "a", values, -values)
    steps, found = losses.read_log(tmp_path / "a")
    assert len(steps) == len(found["loss_D"]) == 40 - 4 - 9
    np.testing.assert_allclose(found["loss_D"][0], values[4:14].mean())
    np.testing.assert_allclose(found["loss_G"][-1], -values[-10:].mean())


def test_a_panel_for_each_run(losses, tmp_path):
    """Also for runs that have only a few rows."""
    for name in "abcd":
        write_log(tmp_path / name, np.linspace(1, 2, 3), np.linspace(3, 2, 3))
    losses.main([str(tmp_path / "l.png"), *[str(tmp_path / name) for name in "abcd"]])
    width, height = Image.open(tmp_path / "l.png").size
    one = losses.draw(tmp_path / "a").size
    assert width > 3 * one[0] and 2 * one[1] < height < 3 * one[1]
