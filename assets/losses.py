"""Curves of the losses of several runs, one panel for each run.

    python assets/losses.py losses.png runs/dcgan runs/lsgan runs/wgan

Blue: loss_D, orange: loss_G, each the mean of 10 rows of log.csv. Each panel has a scale of its own, because losses of
different methods cannot be compared. The first tenth of a run is left out: its losses are large and would hide the
rest.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, BOTTOM = 280, 150, 48, 34  # of a panel, and of its margins, in pixels
COLORS = {"loss_D": "#1f77b4", "loss_G": "#ff7f0e"}


def read_log(run: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The steps of log.csv, and each loss as the mean of 10 rows."""
    if not (run / "log.csv").exists():
        sys.exit(f"{run} has no log.csv: name the folder of a run, or train for longer")
    with open(run / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        sys.exit(f"{run}/log.csv has no rows yet: train for longer, or leave out this run")
    rows = rows[len(rows) // 10 :]
    steps = np.array([int(row["step"]) for row in rows])
    window = min(10, len(rows))
    means = np.ones(window) / window
    losses = {name: np.convolve([float(row[name]) for row in rows], means, "valid") for name in COLORS}
    return steps[window - 1 :], losses


def draw(run: Path) -> Image.Image:
    steps, losses = read_log(run)
    low = min(values.min() for values in losses.values())
    high = max(values.max() for values in losses.values())

    panel = Image.new("RGB", (LEFT + WIDTH, HEIGHT + BOTTOM), "white")
    inside = Image.new("RGB", (WIDTH, HEIGHT), "#f4f4f4")
    for name, values in losses.items():
        x = WIDTH * steps / steps[-1]
        y = 2 + (HEIGHT - 4) * (high - values) / (high - low)
        ImageDraw.Draw(inside).line(list(zip(x, y, strict=True)), COLORS[name], width=2)
    panel.paste(inside, (LEFT, 0))

    text, font = ImageDraw.Draw(panel), ImageFont.load_default(11)
    text.text((LEFT - 4, 0), f"{high:.2g}", "black", font, "ra")
    text.text((LEFT - 4, HEIGHT), f"{low:.2g}", "black", font, "rs")
    text.text((LEFT, HEIGHT + 4), run.name, "black", ImageFont.load_default(13))
    text.text((LEFT + WIDTH, HEIGHT + 4), f"{steps[-1]:,} steps", "black", font, "ra")
    return panel


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, with log.csv")
    args = parser.parse_args(argv)

    columns = min(3, len(args.runs))
    panels = [draw(run) for run in args.runs]
    width, height = panels[0].width + 12, panels[0].height + 8
    rows = -(-len(panels) // columns)
    picture = Image.new("RGB", (columns * width, rows * height), "white")
    for i, panel in enumerate(panels):
        picture.paste(panel, (i % columns * width, i // columns * height))
    picture.save(args.picture, optimize=True)


if __name__ == "__main__":
    main()
