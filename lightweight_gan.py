"""LightweightGAN (FastGAN) - Liu, Zhu, Song, Elgammal 2021, arXiv 2101.04775.

"Towards Faster and Stabilized GAN Training for High-fidelity Few-shot Image Synthesis"

    min_D  E relu(1 - D(T(x))) + E relu(1 + D(T(G(z)))) + E |decoded(T(x)) - T(x)|         min_G  - E D(T(G(z)))

What is specific to this file: it is made for a few hundred images. G is light: its blocks use gated linear units, and
small feature maps rescale the channels of large ones (skip-layer excitation). D is self-supervised (section 3.2): it
must describe real images so well that two small decoders can reconstruct them, one the whole image and one a quarter of
it. D sees every image, real or generated, only after a random augmentation T (DiffAugment, arXiv 2006.10738: color,
translation and cutout), so that it cannot simply memorize the images.

As in the authors' code, samples come from an exponential moving average of G's weights (arXiv 1710.10196).

Differs from that code, in G: no noise injection, no spectral normalization, and only one convolution per block;
channels double from map to map, up to 16 times the width; leaky ReLU in the skips, as in the paper (their code: Swish);
one image (theirs: a second one, of 128 px, from an earlier map).

In D: no skips, one size of the image, and no BatchNorm but in its decoders (with it, variety was lost on the painted
faces: assets/experiments.md). Its last two maps are some 8 and 4 pixels wide (theirs: 16 and 8). One convolution
(theirs: two) gives one score for the whole image (theirs: one for each window of 4x4 of the map of 8 pixels, and as
many for the second image). Two decoders (theirs: three), compared by L1 (theirs: LPIPS, whose weights would be a
download).

In training: plain hinge loss (theirs: with random margins); cutout among the augmentations, and new ones for G's step
(theirs: those of D's step); sizes below 256 px.

    python lightweight_gan.py                                            # built-in faces, minutes on a CPU
    python lightweight_gan.py --path data/few --size 256 --out runs/few  # a folder of a few hundred images
    torchrun --nproc-per-node=8 lightweight_gan.py --path data/few --size 512 --batch 64 --out runs/few8

Result of the first command: 9,000 steps in 6.1 minutes on two CPU cores, torch 2.14.1; of 2,000 samples 82 % ± 1 can
be read as a face, with 120 ± 2 of the 132 combinations of hair and eyes (3 seeds: mean ± standard deviation; read by
faces.py). With 300 images and minutes, sngan.py kept more variety here (assets/experiments.md).
"""

import argparse
import copy
import datetime
import itertools
import math
import os
import zlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, l1_loss, pad, relu
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

import common

# Without --path, these values replace the defaults: for a few minutes on a CPU.
PRESET = {
    "size": 32,
    "width": 16,
    "batch": 16,
    "steps": 9000,
    "lr_g": 5e-4,
    "lr_d": 1e-3,
    "augment": [],
}
# Flags that change the networks: a checkpoint fits only the values that it was trained with.
ARCHITECTURE = ("size", "channels", "z_dim", "width")
# The augmentations that --augment chooses from.
POLICY = ["translation", "color", "cutout"]


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=f"Without --path, these values replace the defaults: {PRESET}. Flags that are given take precedence.",
        usage="%(prog)s [--path FOLDER] [flags]; --help lists the flags",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    group = parser.add_argument_group("method")
    group.add_argument(
        "--lr-g", type=common.between(0.0), default=2e-4, help="learning rate of G; too high and training diverges"
    )
    group.add_argument(
        "--lr-d", type=common.between(0.0), default=2e-4, help="learning rate of D; higher makes D stronger against G"
    )
    group.add_argument(
        "--beta1",
        type=common.between(0.0, 0.9999),
        default=0.5,
        help="Adam beta1 (decay of the gradient average); 0.9, Adam's usual value, can make a GAN collapse",
    )
    group.add_argument(
        "--beta2", type=common.between(0.0, 0.9999), default=0.999, help="Adam beta2 (decay of the squared gradients)"
    )
    group.add_argument(
        "--z-dim", type=common.between(1), default=256, help="length of the latent z; tiny values limit variety"
    )
    group.add_argument(
        "--noise", choices=("normal", "uniform"), default="normal", help="distribution of z: N(0, 1) or U(-1, 1)"
    )
    group.add_argument(
        "--width",
        type=common.between(1),
        default=32,
        help="channels of G's largest map, doubled at each smaller one, up to 16 times; more is finer and slower",
    )
    group.add_argument(
        "--ema",
        type=common.between(0.0, 1.0),
        default=0.999,
        help="decay of the moving average of G that samples come from; closer to 1 averages over more steps, 0 is off",
    )
    group.add_argument(
        "--augment",
        nargs="*",
        choices=POLICY,
        default=POLICY,
        help="augmentations of all images that D sees; most useful with few images; an empty --augment turns them off",
    )
    group = parser.add_argument_group("run")
    group.add_argument(
        "--steps", type=common.between(1), default=50_000, help="training steps, including those before --resume"
    )
    group.add_argument(
        "--batch", type=common.between(2), default=8, help="images per update, summed over all processes"
    )
    group.add_argument(
        "--seed",
        type=common.between(0, 2**32 - 1),
        default=0,
        help="seed of initial weights, noise and order of images; with --sample or --grid, of the noise",
    )
    group.add_argument("--device", default="auto", help="cpu, cuda, mps, ...; auto takes a GPU if there is one")
    group.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute in bfloat16 (autocast) on GPUs and CPUs that multiply in it: faster, and takes less memory",
    )
    common.add_data_flags(parser)
    common.add_output_flags(parser, __file__)
    args = common.parse(parser, argv, __file__, PRESET, ARCHITECTURE)
    if args.size < 32:
        parser.error(f"--size {args.size} is too small for D's decoders: choose at least 32")
    unknown = sorted(set(args.augment) - set(POLICY))  # of a checkpoint: an older version wrote "colour"
    if unknown:
        parser.error(f"{args.checkpoint} has --augment {unknown[0]}, which is unknown here: give --augment again")
    return args


def widths(args) -> list[int]:
    """Channels of each feature map, from the largest, S pixels wide, to the smallest, 4 to 7 pixels wide.

    They double as the map halves, up to 16 times the width: --size 32 --width 16 gives [16, 32, 64, 128].
    """
    levels = int(math.log2(args.size / 4)) + 1
    return [args.width * min(2**level, 16) for level in range(levels)]


def reach(args) -> int:
    """How many doublings of the map a skip spans: 4 from 128 px on (4 -> 64, 8 -> 128, 16 -> 256), fewer below."""
    return min(4, len(widths(args)) - 2)


def up(c_in: int, c_out: int, layer=nn.Conv2d) -> nn.Sequential:
    """(N, c_in, s, s) -> (N, c_out, 2s, 2s), ending in a gated linear unit: one half times sigmoid(other half)."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        layer(c_in, 2 * c_out, 3, 1, 1, bias=False),
        nn.BatchNorm2d(2 * c_out),
        nn.GLU(1),
    )


class Excitation(nn.Module):
    """Skip-layer excitation (section 3.1): weights in (0, 1) for the channels of a large map, from a small one.

    The small map is `base` times `shrink` pixels wide.
    """

    def __init__(self, c_small: int, c_large: int, base: int, shrink: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.AvgPool2d(shrink),  # (N, c_small, base, base)
            nn.Conv2d(c_small, c_large, base),  # (N, c_large, 1, 1)
            nn.LeakyReLU(0.1),
            nn.Conv2d(c_large, c_large, 1),
            nn.Sigmoid(),
        )

    def forward(self, large: Tensor, small: Tensor) -> Tensor:
        return large * self.net(small)  # (N, c_large, s, s) * (N, c_large, 1, 1)


class Generator(nn.Module):
    """Latent z (N, z_dim) -> images (N, C, S, S) in [-1, 1]."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)[::-1]  # from the smallest map to the largest
        base = args.size >> (len(w) - 1)  # width of the smallest map; --size 64: 4 -> 8 -> 16 -> 32 -> 64
        self.reach = reach(args)

        # (N, z_dim, 1, 1) -> (N, w[0], base, base)
        self.start = nn.Sequential(
            nn.ConvTranspose2d(args.z_dim, 2 * w[0], base, bias=False),
            nn.BatchNorm2d(2 * w[0]),
            nn.GLU(1),
        )
        # (N, c_in, s, s) -> (N, c_out, 2s, 2s), up to (N, w[-1], S, S)
        self.up = nn.ModuleList(up(c_in, c_out) for c_in, c_out in itertools.pairwise(w))
        # map k, 2^k times as wide as the smallest, rescales the channels of map k + reach
        self.skip = nn.ModuleList()
        for k in range(len(w) - self.reach):
            self.skip.append(Excitation(w[k], w[k + self.reach], base, 2**k))
        # (N, w[-1], S, S) -> (N, C, S, S) in [-1, 1]
        self.end = nn.Sequential(nn.Conv2d(w[-1], args.channels, 3, 1, 1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        maps = [self.start(z[:, :, None, None])]
        for layers in self.up:
            x = layers(maps[-1])
            k = len(maps) - self.reach  # the map that rescales this one
            if k >= 0:
                x = self.skip[k](x, maps[k])
            maps.append(x)
        return self.end(maps[-1])


class SNConv2d(nn.Conv2d):
    """A convolution whose spectrally normalized weight is computed in float32, even under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight  # each access divides by sigma, in training after one more power iteration
        return conv2d(x, weight, self.bias, self.stride, self.padding)


def conv(*shape, bias: bool = True) -> nn.Module:
    """A convolution with spectral normalization.

    Initialized before it is wrapped: afterward, `weight` is computed at each access, and initializing it has no effect.
    """
    return spectral_norm(SNConv2d(*shape, bias=bias).apply(init_weights))


class Down(nn.Module):
    """(N, c_in, s, s) -> (N, c_out, s/2, s/2): the mean of two branches."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        main = [conv(c_in, c_out, 4, 2, 1), nn.LeakyReLU(0.2), conv(c_out, c_out, 3, 1, 1), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*main)
        self.side = nn.Sequential(nn.AvgPool2d(2), conv(c_in, c_out, 1), nn.LeakyReLU(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return (self.main(x) + self.side(x)) / 2


class Discriminator(nn.Module):
    """Images (N, C, S, S) -> scores (N,), float32, and the last two feature maps, for the decoders.

    The maps are 8 to 14 pixels wide (large) and 4 to 7 pixels wide (small).
    """

    def __init__(self, args):
        super().__init__()
        w = widths(args)[1:]  # of the maps from S/2 pixels to the smallest, of 4 to 7
        base = args.size >> len(w)

        # (N, C, S, S) -> (N, w[0], S/2, S/2) -> ... -> (N, w[-2], 2 base, 2 base)
        self.large = nn.Sequential(conv(args.channels, w[0], 4, 2, 1), nn.LeakyReLU(0.2))
        self.large.extend(Down(c_in, c_out) for c_in, c_out in itertools.pairwise(w[:-1]))
        # -> (N, w[-1], base, base) -> (N, 1, 1, 1)
        self.small = Down(w[-2], w[-1])
        self.score = conv(w[-1], 1, base)
        # outside forward(): reconstruction_loss() calls them, for real images only
        self.whole = self.decoder(w[-1], args)
        self.quarter = self.decoder(w[-2], args)

    def decoder(self, c: int, args) -> nn.Sequential:
        """(N, c, base, base) -> images (N, C, S/2, S/2) in [-1, 1], but at most 32 base wide; base is 4 to 7."""
        doublings = min(5, len(widths(args)) - 2)
        narrow = [max(args.width, c >> (k + 3)) for k in range(doublings)]  # c/8, c/16, ..., at least the width
        layers = [up(c_in, c_out, conv) for c_in, c_out in itertools.pairwise([c, *narrow])]
        return nn.Sequential(*layers, conv(narrow[-1], args.channels, 3, 1, 1), nn.Tanh())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        large = self.large(x)
        small = self.small(large)
        # in float32, because bfloat16 would round away the difference between two large scores
        with torch.autocast(x.device.type, enabled=False):
            scores = self.score(small.float()).flatten()
        return scores, large, small


def init_weights(module: nn.Module):
    """Weights N(0, 0.02) (DCGAN, section 4); BatchNorm: gains N(1, 0.02), biases 0 (dcgan.torch); other biases 0."""
    if is_parametrized(module):
        return  # conv() has initialized it
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def d_loss(real: Tensor, fake: Tensor) -> Tensor:
    return relu(1 - real).mean() + relu(1 + fake).mean()  # E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))


def g_loss(fake: Tensor) -> Tensor:
    return -fake.mean()  # -E D(G(z))


def corner(x: Tensor, i: int, j: int) -> Tensor:
    """A quarter of (N, C, s, s) -> (N, C, s/2, s/2): upper or lower (i), left or right (j).

    corner(x, 0, 1) is the upper right quarter.
    """
    half = x.shape[2] // 2
    return x[:, :, i * half : (i + 1) * half, j * half : (j + 1) * half]


def reconstruction_loss(D: Discriminator, x: Tensor, large: Tensor, small: Tensor) -> Tensor:
    """E |decoded - x| of the image from D's small map, and of a random quarter from that quarter of its large map."""
    i, j = torch.randint(2, (2,)).tolist()
    whole = D.whole(small)
    quarter = D.quarter(corner(large, i, j))

    # compared at the size of the decoded images
    target = interpolate(x, whole.shape[2:], mode="bilinear", antialias=True)
    target_quarter = interpolate(corner(x, i, j), quarter.shape[2:], mode="bilinear", antialias=True)
    # never 0 if T has moved colors beyond [-1, 1], because the decoders end in tanh
    return l1_loss(whole, target) + l1_loss(quarter, target_quarter)


def augment(x: Tensor, policy: list[str]) -> Tensor:
    """Images (N, C, S, S), each augmented at random at every call; differentiable (arXiv 2006.10738 and its code)."""
    n, _, s, _ = x.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(n, *shape, device=x.device).uniform_(low, high)

    if "color" in policy:
        # brightness
        x = x + uniform(-0.5, 0.5, 1, 1, 1)
        # saturation: the distance of each pixel from its gray value
        gray = x.mean(1, keepdim=True)
        x = gray + (x - gray) * uniform(0, 2, 1, 1, 1)
        # contrast: the distance from the mean of the image
        mean = x.mean((1, 2, 3), keepdim=True)
        x = mean + (x - mean) * uniform(0.5, 1.5, 1, 1, 1)

    if "translation" in policy:
        # by up to an eighth of the width; zeros fill what is uncovered
        most = s // 8
        corners = torch.randint(2 * most + 1, (n, 2)).tolist()
        moved = []
        for padded, (i, j) in zip(pad(x, [most] * 4), corners, strict=True):
            moved.append(padded[:, i : i + s, j : j + s])
        x = torch.stack(moved)

    if "cutout" in policy:
        # a square of half the width becomes zero; its center can be anywhere, so that it may stick out
        place = torch.arange(s, device=x.device) + 0.5
        rows = (place - uniform(0, s, 1)).abs() > s / 4  # (N, S), true outside the square
        columns = (place - uniform(0, s, 1)).abs() > s / 4
        x = x * (rows[:, None, :, None] | columns[:, None, None, :])
    return x


def train_step(G, D, opt_G, opt_D, data, args) -> dict[str, Tensor]:
    """One update of D and of its decoders, one of G on the noise that D has seen; D sees augmented images only."""
    # (1) D: minimize E relu(1 - D(T(x))) + E relu(1 + D(T(G(z)))) + E |decoded(T(x)) - T(x)|
    D.requires_grad_(True)
    x_real = augment(next(data), args.augment)
    with autocast(args):
        x_fake = G(noise(len(x_real), args))  # with gradients for G: (2) backpropagates through it
        real, large, small = D(x_real)
        reconstruction = reconstruction_loss(D, x_real, large, small)  # of real images only
        fake, _, _ = D(augment(x_fake.detach(), args.augment))
        loss_D = d_loss(real, fake) + reconstruction
    step(opt_D, loss_D)

    # (2) G: minimize -E D(T(G(z)))
    D.requires_grad_(False)  # no gradients for weights that are not updated
    with autocast(args):
        fake, _, _ = D(augment(x_fake, args.augment))
        loss_G = g_loss(fake)
    step(opt_G, loss_G)
    metrics = {"loss_D": loss_D, "loss_G": loss_G, "reconstruction": reconstruction}
    return {name: value.detach() for name, value in metrics.items()}


# --- plumbing: the same text in every script (tests/test_siblings.py) ---


def noise(n: int, args) -> Tensor:
    """n latents z (n, z_dim), from N(0, 1) or U(-1, 1)."""
    z = torch.empty(n, args.z_dim, device=args.device)
    return z.normal_() if args.noise == "normal" else z.uniform_(-1, 1)


def autocast(args):
    """Run the networks in bfloat16 where setup() allows it; weights and losses stay float32.

    bfloat16 has the range of float32, so losses need no scaling.
    """
    return torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.autocast)


def step(opt: torch.optim.Optimizer, loss: Tensor):
    """One update of the parameters of `opt`, with gradients averaged over all processes.

    Averaged by hand, because DistributedDataParallel does it in hooks of backward(), which do not suit two networks
    that take turns (docs/speed.md).
    """
    opt.zero_grad()
    loss.backward()

    params = [p for group in opt.param_groups for p in group["params"]]
    # A parameter that the loss does not use gets a gradient of 0, so that one process trains like several.
    for p in params:
        if p.grad is None:
            p.grad = torch.zeros_like(p)

    if dist.is_initialized():
        # all gradients as one vector, because one all_reduce is faster than many
        flat = torch.cat([p.grad.flatten() for p in params])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for p, grad in zip(params, flat.split([p.numel() for p in params]), strict=True):
            p.grad.copy_(grad.view_as(p))
    opt.step()


@torch.no_grad()
def update_ema(G_ema: nn.Module, G: nn.Module, decay: float):
    """G_ema <- decay G_ema + (1 - decay) G; buffers (BatchNorm's running statistics) are copied."""
    for average, p in zip(G_ema.parameters(), G.parameters(), strict=True):
        average.lerp_(p, 1 - decay)
    for average, b in zip(G_ema.buffers(), G.buffers(), strict=True):
        average.copy_(b)


@torch.no_grad()
def measure_statistics(G_ema: nn.Module, draw):
    """Give BatchNorm in G_ema the statistics of 16 calls of `draw()`, which draws images, always from the same noise.

    update_ema() copies the statistics of G, but with the averaged weights, feature maps have other means and variances.
    """
    for module in G_ema.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean of all batches
    torch.manual_seed(zlib.crc32(b"statistics"))  # not the noise of any likely --seed
    G_ema.train()
    for _ in range(16):
        draw()
    G_ema.eval()


def setup(args) -> tuple[int, int]:
    """Choose the device and the precision, and join the processes that torchrun started.

    Sets args.device and args.autocast; returns (rank, number of processes), of all machines together.
    """
    rank = int(os.environ.get("RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    if args.batch % world:
        common.fail(f"--batch {args.batch} cannot be divided evenly among {world} processes: use a multiple of {world}")
    if world > 1 and ":" in args.device:
        common.fail(
            f"--device {args.device} is one device for {world} processes: use --device cuda, to give each its own"
        )

    if args.device == "auto":
        if torch.cuda.is_available():
            args.device = "cuda"
        elif torch.backends.mps.is_available() and world == 1:  # processes cannot exchange MPS tensors
            args.device = "mps"
        else:
            args.device = "cpu"
    if args.device == "cuda":
        args.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # one GPU for each process of this machine

    try:
        if "cuda" in args.device:
            torch.cuda.set_device(args.device)
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        reason = str(error).splitlines()[0]
        common.fail(f"--device {args.device} is not available on this machine ({reason}): choose another, such as cpu")

    torch.backends.cudnn.benchmark = True  # all batches have one shape: the fastest kernels are found once
    # bfloat16 only on GPUs and CPUs that multiply in it: on others it is slower than float32
    native = False
    if "cuda" in args.device:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif "cpu" in args.device and hasattr(torch.cpu, "get_capabilities"):  # not in older versions of torch
        found = torch.cpu.get_capabilities()
        native = found.get("amx_bf16", False) or found.get("avx512_bf16", False)
    args.autocast = args.bf16 and native
    if world > 1:
        backend = "nccl" if "cuda" in args.device else "gloo"  # gloo: for CPUs
        # a machine that already has its images waits for others that are still decoding theirs
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=6))
    return rank, world


def resume(state: dict, args) -> int:
    """Load --checkpoint into everything in `state`, with --finetune only into the networks; returns the steps done."""
    saved = common.read_checkpoint(args.checkpoint, args.script)
    if saved["args"]["autocast"] != args.autocast:  # another --bf16, or another device
        before, now = ("bfloat16", "float32") if saved["args"]["autocast"] else ("float32", "bfloat16")
        common.print_line(f"{args.checkpoint} was trained in {before}, and goes on in {now}")
    for name, values in saved["state"].items():
        if args.finetune and not isinstance(state[name], nn.Module):
            continue  # optimizers and data begin anew
        if "param_groups" in values:
            # an optimizer: its moments are kept, but learning rates, betas and "fused" are those of this start
            values["param_groups"] = state[name].state_dict()["param_groups"]
        try:
            state[name].load_state_dict(values)
        except RuntimeError:
            common.fail(f"{args.checkpoint} has other layers in {name}, those of an older version: start a new run")
        if "param_groups" in values:
            # fused Adam reads the moments in the layout of the weights, which differs on a Mac's GPU: see build()
            for p, moments in state[name].state.items():
                for key, value in moments.items():
                    if value.shape == p.shape:
                        moments[key] = torch.empty_like(p).copy_(value)
    return 0 if args.finetune else saved["step"]


def build(args) -> tuple[nn.Module, nn.Module, nn.Module]:
    """G, D, and G_ema, the moving average of G, on the device."""
    # channels_last is the fastest layout for convolutions, but gives wrong gradients on MPS: pytorch#175189
    layout = torch.contiguous_format if "mps" in args.device else torch.channels_last
    G = Generator(args).apply(init_weights).to(args.device, memory_format=layout)
    D = Discriminator(args).apply(init_weights).to(args.device, memory_format=layout)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    return G, D, G_ema


# --- sampling and training ---


def latents(args) -> Iterator[Tensor]:
    """Batches of z (n, z_dim): those of --walk or, in turn and without end, those of --seeds or of --sample."""
    if args.walk:
        # a circle around 0 through two draws of N(0, I): each of its points is distributed like such a draw
        start, quarter = torch.randn(2, args.z_dim, device=args.device)
        angle = torch.arange(args.walk, device=args.device)[:, None] * (2 * math.pi / args.walk)
        z = angle.cos() * start + angle.sin() * quarter
        if args.noise == "uniform":
            z = torch.erf(z / math.sqrt(2))  # N(0, 1) becomes U(-1, 1)
        yield from z.split(args.batch)
        return

    while True:
        if args.seeds:
            for seed in args.seeds:
                torch.manual_seed(seed)
                yield noise(1, args)
        else:
            yield noise(args.batch, args)


def draw(G_ema: nn.Module, z: Tensor, args) -> Tensor:
    """Images (N, C, S, S) of z (N, z_dim); above 128 px in parts: a whole grid would take more memory than a step."""
    n = max(8, common.GRID * 128**2 // args.size**2)  # all 64 up to 128 px, 16 at 256, 8 at 512
    return torch.cat([G_ema(part) for part in z.split(n)])


def sample(G_ema: nn.Module, args):
    """Write the images of --sample, --seeds or --walk, drawn by the moving average of the checkpoint."""
    saved = common.read_checkpoint(args.checkpoint, args.script)
    G_ema.load_state_dict(saved["state"]["G_ema"])
    G_ema.train(args.sample_mode == "batch")  # in training mode BatchNorm uses the statistics of the batch
    torch.manual_seed(args.seed)
    z = latents(args)
    common.write_samples(args, lambda: G_ema(next(z)))


def main(argv=None) -> dict:
    args = parse_args(argv)
    rank, world = setup(args)
    torch.manual_seed(args.seed)  # the same initial weights on all ranks
    G, D, G_ema = build(args)
    if args.sample:
        sample(G_ema, args)
        return {"G_ema": G_ema}

    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.beta1, args.beta2), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.beta1, args.beta2), fused=True)
    images, _ = common.load_images(args)
    data = common.Batches(images, args, rank, world)
    state = {"G": G, "D": D, "G_ema": G_ema, "opt_G": opt_G, "opt_D": opt_D, "data": data}
    start = resume(state, args) if args.checkpoint else 0

    fixed_z = noise(common.GRID, args)

    def draw_grid() -> Tensor:
        return draw(G_ema, fixed_z, args)

    if args.grid:
        common.write_grid(args, draw_grid)
        return state

    with common.Run(args, data, start, draw_grid, rank) as run:
        run.save(state)  # the start: an --out that cannot be written to is noticed now
        for i in run.steps():
            # A seed for each step and rank, so that a resumed run draws the same noise. They are hashed, because
            # torch's CPU generator uses only 32 bits of a seed, and a sum would repeat the noise of other ranks.
            torch.manual_seed(zlib.crc32(f"{args.seed} {i} {rank}".encode()))
            metrics = train_step(G, D, opt_G, opt_D, data, args)

            # warm-up: at first the average spans about a tenth of the steps so far, to forget the random start
            decay = min(args.ema, (1 + i) / (10 + i))
            update_ema(G_ema, G, decay)
            run.log(metrics)
            if run.due():  # every --save-every steps, at the end, and after Ctrl-C
                measure_statistics(G_ema, lambda: draw(G_ema, noise(common.GRID, args), args))
                run.save(state)

    if world > 1:
        dist.destroy_process_group()
    return state


if __name__ == "__main__":
    main()
