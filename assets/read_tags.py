"""Do samples show the labels that were requested? Read by a classifier that is trained on other images.

    python assets/read_tags.py data/unseen runs/acgan/generated runs/cgan/generated

The first folder holds labeled images that no GAN was trained on. Four fifths of them train the classifier; its accuracy
on the last fifth is the first row of the table. The other rows are folders of samples, with the labels that were
requested. All images are brought to 64 px.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import acgan
import common
import labels

SIZE = 64
EPOCHS = 30
BATCH = 50


def load(folder: str) -> tuple[Tensor, list[str], argparse.Namespace]:
    """Images (N, 3, S, S) in [-1, 1] of a folder, their names, and the settings that found them."""
    args = argparse.Namespace(path=folder, size=SIZE, channels=3, fit="crop", batch=1, cache=common.CACHE, out="")
    args.labels, args.embeddings, args.script, args.found = None, None, "acgan", {}
    images, names = common.load_images(args)
    return common.normalize(torch.from_numpy(images[:])), names, args


def requested(folder: str, names: list[str], groups: dict[str, list[str]]) -> Tensor:
    """What labels.csv says of samples, in columns of values or in captions: (N, groups), positions of the values."""
    with open(Path(folder, "labels.csv"), encoding="utf-8", newline="") as file:
        rows = {row["image"]: row | dict(labels.tags(row.get("caption", ""))) for row in csv.DictReader(file)}
    return torch.tensor([[groups[group].index(rows[name][group]) for group in groups] for name in names])


def block(c_in: int, c_out: int) -> list[nn.Module]:
    """(N, c_in, s, s) -> (N, c_out, s/2, s/2)."""
    return [nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)]


def changed(x: Tensor) -> Tensor:
    """Images (N, C, S, S), half of them mirrored, all shifted by up to 4 pixels; colors stay, they are the labels."""
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    i, j = torch.randint(9, (2,)).tolist()
    return pad(x, [4] * 4, mode="replicate")[:, :, i : i + SIZE, j : j + SIZE]


def train(x: Tensor, y: Tensor, sizes: list[int]) -> nn.Module:
    """A classifier: images -> logits (N, sum of sizes), a part for each group."""
    torch.manual_seed(0)
    layers = block(3, 32) + block(32, 64) + block(64, 128) + block(128, 128)  # (N, 128, 4, 4)
    net = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.Linear(128 * 16, sum(sizes)))
    opt = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 2e-3, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,))
        logits = net(changed(x[rows])).split(sizes, 1)
        loss = sum(cross_entropy(part, y[rows, k], ignore_index=-1) for k, part in enumerate(logits))
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor, sizes: list[int]) -> list[float]:
    """The share of images in which each group is read as it is labeled, and that in which all are.

    A group without a label counts as right.
    """
    read = []
    for images in x.split(BATCH):
        read.append(torch.stack([part.argmax(1) for part in net(images).split(sizes, 1)], 1))
    right = torch.cat(read) == y
    right |= y < 0  # not labeled
    return [*right.float().mean(0).tolist(), right.all(1).float().mean().item()]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unseen", help="folder of labeled images that no GAN was trained on")
    parser.add_argument("samples", nargs="*", help="folders of samples, with labels.csv")
    args = parser.parse_args(argv)

    x, names, found = load(args.unseen)
    labeled, values = labels.load_labels(found, names)
    groups = labels.classes(values)
    sizes = [len(values) for values in groups.values()]
    x, y = x[labeled], acgan.encode(values, groups)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    held_out, seen = order[: len(x) // 5], order[len(x) // 5 :]

    rows = {f"{len(held_out)} held-out images": (x[held_out], y[held_out])}
    for folder in args.samples:
        samples, names, _ = load(folder)
        rows[folder] = (samples, requested(folder, names, groups))
    net = train(x[seen], y[seen], sizes)
    print("| |", " | ".join(groups), "| all |")
    print("|---" * (len(groups) + 2) + "|")
    for name, row in rows.items():
        print("|", name, "|", " | ".join(f"{share:.1%}" for share in accuracy(net, *row, sizes)), "|")


if __name__ == "__main__":
    main()
