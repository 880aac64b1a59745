"""r3gan.py with one part changed, to see what each brings. Flags are r3gan.py's.

    python assets/r3gan_parts.py without-r2 --out runs/without-r2

without-r1, without-r2: that penalty is zero. dcgan-networks: the networks of dcgan.py (its G with BatchNorm, D as in
wgan_gp.py without, so that a gradient belongs to one image), their first weights, everything else as it is.
"""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import dcgan
import r3gan
import wgan_gp

penalty, parse_args = r3gan.zero_centered_penalty, r3gan.parse_args


def keep(r1: bool, r2: bool):
    """A penalty that is zero in each first call (reals) or in each second (generated images)."""
    turns = itertools.cycle((r1, r2))
    return lambda x, scores: penalty(x, scores) if next(turns) else scores.new_zeros(())


def with_act(argv):
    args = parse_args(argv)
    args.act = "relu"
    return args


part, *argv = sys.argv[1:]
if part == "dcgan-networks":
    r3gan.parse_args = with_act
    r3gan.Generator, r3gan.Discriminator = dcgan.Generator, wgan_gp.Discriminator
    r3gan.init_weights = dcgan.init_weights
elif part in ("without-r1", "without-r2"):
    r3gan.zero_centered_penalty = keep(part == "without-r2", part == "without-r1")
else:
    sys.exit(f"{part} is none of the parts: dcgan-networks, without-r1, without-r2")
r3gan.main(argv)
