"""r3gan.py with one part changed, to see what each brings. Flags are r3gan.py's.

    python assets/r3gan_parts.py without-r2 --out runs/without-r2

without-r1, without-r2: that penalty is zero. dcgan-networks: the networks of dcgan.py (its G with BatchNorm, D as in
wgan_gp.py without, so that a gradient belongs to one image), their first weights, everything else as it is.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import dcgan
import r3gan
import wgan_gp

penalty, parse_args = r3gan.zero_centered_penalty, r3gan.parse_args


def keep(r1: bool, r2: bool):
    """A penalty that is zero for the first half of the images (real) or for the second (generated)."""

    def of_part(x, scores):
        first, second = penalty(x, scores).chunk(2)
        return torch.cat([r1 * first, r2 * second])

    return of_part


def with_act(argv):
    args = parse_args(argv)
    args.act = "relu"
    return args


part, *argv = sys.argv[1:] or sys.exit(__doc__)
if part == "dcgan-networks":
    r3gan.parse_args = with_act
    r3gan.Generator, r3gan.Discriminator = dcgan.Generator, wgan_gp.Discriminator
    r3gan.init_weights = dcgan.init_weights
elif part in ("without-r1", "without-r2"):
    r3gan.zero_centered_penalty = keep(part == "without-r2", part == "without-r1")
else:
    sys.exit(f"{part} is none of the parts: dcgan-networks, without-r1, without-r2")
r3gan.main(argv)
