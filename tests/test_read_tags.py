"""assets/read_tags.py: the shares of samples that show what was requested."""

import importlib.util
import re

import numpy as np
from conftest import ROOT
from PIL import Image

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


def read_tags():
    spec = importlib.util.spec_from_file_location("read_tags", ROOT / "assets/read_tags.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def paint(folder, count: int, header: str, label):
    """Pictures with the hair's color above and the eyes' below, labeled with label(hair, eyes)."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = [f"image,{header}"]
    for i in range(count):
        hair, eyes = rng.choice(list(COLORS), 2)
        pixels = np.concatenate([np.full((32, 64, 3), COLORS[hair]), np.full((32, 64, 3), COLORS[eyes])])
        pixels = (pixels + rng.normal(0, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{label(hair, eyes)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def test_shares_of_right_labels(tmp_path, capsys):
    """Catches shares that do not depend on the labels, groups that are exchanged, and captions that are not read."""
    other = dict(zip(COLORS, [*list(COLORS)[1:], "red"], strict=True))
    paint(tmp_path / "unseen", 200, "hair,eyes", lambda hair, eyes: f"{hair},{eyes}")
    paint(tmp_path / "captions", 60, "caption", lambda hair, eyes: f"a face with {hair} hair and {eyes} eyes")
    paint(tmp_path / "wrong", 60, "hair,eyes", lambda hair, eyes: f"{hair},{other[eyes]}")
    read_tags().main([str(tmp_path / name) for name in ("unseen", "captions", "wrong")])
    table = capsys.readouterr().out
    rows = [[float(share) for share in re.findall(r"([\d.]+)%", line)] for line in table.splitlines()[-3:]]
    unseen, right, (eyes, hair, both) = rows
    assert "| | eyes | hair | all |" in table and "40 held-out images" in table
    assert min(*unseen, *right, hair) > 95 and eyes == both == 0
