"""LightweightGAN (FastGAN) - Liu, Zhu, Song, Elgammal 2021, arXiv 2101.04775.

"Towards Faster and Stabilized GAN Training for High-fidelity Few-shot Image Synthesis"

    min_D  E relu(1 - D(T(x))) + E relu(1 + D(T(G(z)))) + E |decoded(T(x)) - T(x)|         min_G  - E D(T(G(z)))

What is specific to this file: it is made for a few hundred images. G is light: blocks with gated linear units, and
channels of large maps weighed by small ones (skip-layer excitation). D must describe real images well enough that two
small decoders can draw them again, the whole and a quarter. D sees every image, real or generated, through random
changes T of colour and position (DiffAugment, arXiv 2006.10738), so that it cannot simply learn the images by heart.

Differs from the authors' code: no noise and one convolution a block in G, where channels double from map to map up to
16 times the width; spectral norm (beside BatchNorm) in D only, which has no skips, sees one size of the image, gives
one score for all of it (authors: one for each place of its last map, which at 48 px would see 30 pixels) and has two
decoders (authors: three), compared by L1 (authors: LPIPS, whose weights would be a download); plain hinge (authors:
with random margins); cutout among the changes, and new changes for G's step (authors: the same); sizes below 256 px.
Samples come from a moving average of G (arXiv 1710.10196).

    python lightweight_gan.py                                            # built-in faces, minutes on a CPU
    python lightweight_gan.py --path data/few --size 256 --out runs/few  # a folder of a few hundred images
    torchrun --nproc-per-node=8 lightweight_gan.py --path data/few --size 512 --batch 64 --out runs/few8

Result of the first command: 6,000 steps in 8.8 minutes on two CPU cores, torch 2.14.1; of 2,000 samples 94 % can be
read as a face, but with 21 of the 132 combinations of hair and eyes (one seed). For 300 images see README, Experiments.
"""

import argparse
import copy
import itertools
import math
import os
import zlib

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import interpolate, l1_loss, pad, relu
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

import common

# what replaces the defaults without --path
PRESET = {"size": 32, "width": 16, "batch": 16, "steps": 6000, "lr_g": 5e-4, "lr_d": 5e-4, "augment": ["translation"]}
POLICY = ["translation", "colour", "cutout"]
ARCHITECTURE = ("size", "channels", "z_dim", "width")  # what a checkpoint must agree on


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=f"Without --path: {PRESET}. Flags given by hand win.",
        usage="%(prog)s [--path FOLDER] [flags]; --help lists the flags",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    group = parser.add_argument_group("method")
    group.add_argument("--lr-g", type=common.between(0.0), default=2e-4, help="learning rate of G")
    group.add_argument("--lr-d", type=common.between(0.0), default=2e-4, help="learning rate of D")
    group.add_argument("--beta1", type=common.between(0.0, 0.9999), default=0.5, help="Adam's decay of the mean")
    group.add_argument("--beta2", type=common.between(0.0, 0.9999), default=0.999, help="Adam's decay of the square")
    group.add_argument("--z-dim", type=common.between(1), default=256, help="size of the noise")
    group.add_argument("--noise", choices=("normal", "uniform"), default="normal", help="N(0, 1) or U(-1, 1)")
    group.add_argument("--width", type=common.between(1), default=32, help="channels of the largest map of G and D")
    group.add_argument("--ema", type=common.between(0.0, 1.0), default=0.999, help="decay of the moving average of G")
    group.add_argument(
        "--augment", nargs="*", choices=POLICY, default=POLICY, help="random changes of what D sees; empty: none"
    )
    group = parser.add_argument_group("run")
    group.add_argument("--steps", type=common.between(1), default=50_000, help="steps of training in total")
    group.add_argument("--batch", type=common.between(2), default=8, help="images of an update, over all processes")
    group.add_argument(
        "--seed", type=common.between(0, 2**32 - 1), default=0, help="of weights, noise and order; of --sample"
    )
    group.add_argument("--device", default="auto", help="auto (cuda, mps, cpu) or a torch device")
    group.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast on CUDA")
    common.add_data_flags(parser)
    common.add_output_flags(parser, __file__)
    args = common.parse(parser, argv, __file__, PRESET, ARCHITECTURE)
    if args.size < 32:
        parser.error(f"--size {args.size} is too small for D's decoders: 32 is the least")
    return args


def widths(args) -> list[int]:
    """Channels from the largest map (S pixels wide) to the smallest (4 to 7): w, 2w, 4w, ..., at most 16w."""
    return [args.width * min(2**level, 16) for level in range(int(math.log2(args.size / 4)) + 1)]


def reach(args) -> int:
    """Doublings that a skip spans: from 128 px on 4 (4 -> 64, 8 -> 128, 16 -> 256, 32 -> 512 pixels), below fewer."""
    return min(4, len(widths(args)) - 2)


def up(c_in: int, c_out: int, layer=nn.Conv2d) -> nn.Sequential:
    """(N, c_in, s, s) -> (N, c_out, 2s, 2s); a gated linear unit: half of the channels times sigmoid(other half)."""
    layers = [nn.Upsample(scale_factor=2), layer(c_in, 2 * c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(2 * c_out)]
    return nn.Sequential(*layers, nn.GLU(1))


class Excitation(nn.Module):
    """Skip-layer excitation (section 3.1): weights in (0, 1) for the channels of a large map, from a small one."""

    def __init__(self, c_small: int, c_large: int, base: int, shrink: int):
        super().__init__()
        layers = [nn.AvgPool2d(shrink), nn.Conv2d(c_small, c_large, base), nn.LeakyReLU(0.1)]  # (N, c_large, 1, 1)
        self.net = nn.Sequential(*layers, nn.Conv2d(c_large, c_large, 1), nn.Sigmoid())

    def forward(self, large: Tensor, small: Tensor) -> Tensor:
        return large * self.net(small)  # (N, c_large, s, s) * (N, c_large, 1, 1)


class Generator(nn.Module):
    """z (N, z_dim) -> images (N, C, S, S) in [-1, 1]."""

    def __init__(self, args):
        super().__init__()
        w, self.reach = widths(args)[::-1], reach(args)
        base = args.size >> len(w) - 1  # 4 to 7 pixels
        start = [nn.ConvTranspose2d(args.z_dim, 2 * w[0], base, bias=False), nn.BatchNorm2d(2 * w[0]), nn.GLU(1)]
        self.start = nn.Sequential(*start)  # (N, w[0], base, base)
        self.up = nn.ModuleList(up(c_in, c_out) for c_in, c_out in itertools.pairwise(w))  # to (N, w, S, S)
        skips = [Excitation(w[k], w[k + self.reach], base, 2**k) for k in range(len(w) - self.reach)]
        self.skip = nn.ModuleList(skips)
        self.end = nn.Sequential(nn.Conv2d(w[-1], args.channels, 3, 1, 1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        maps = [self.start(z[:, :, None, None])]
        for k, layers in enumerate(self.up, 1 - self.reach):  # k: the map that excites this one
            x = layers(maps[-1])
            maps.append(self.skip[k](x, maps[k]) if k >= 0 else x)
        return self.end(maps[-1])


def conv(*shape, bias: bool = True) -> nn.Module:
    """A convolution with spectral norm. Initialised first: from then on each forward pass computes `weight` anew."""
    return spectral_norm(nn.Conv2d(*shape, bias=bias).apply(init_weights))


class Down(nn.Module):
    """(N, c_in, s, s) -> (N, c_out, s/2, s/2): the mean of two ways."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        main = [conv(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        main += [conv(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        side = [nn.AvgPool2d(2), conv(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        self.main, self.side = nn.Sequential(*main), nn.Sequential(*side)

    def forward(self, x: Tensor) -> Tensor:
        return (self.main(x) + self.side(x)) / 2


class Discriminator(nn.Module):
    """Images (N, C, S, S) -> scores (N,), float32; for the decoders the maps of 16 to 28 and of 8 to 14 pixels."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)[1:]  # of maps of S/2 to 4 pixels
        self.large = nn.Sequential(conv(args.channels, w[0], 4, 2, 1), nn.LeakyReLU(0.2))
        self.large.extend(Down(c_in, c_out) for c_in, c_out in itertools.pairwise(w[:-2]))
        self.small = Down(w[-3], w[-2])
        base = args.size >> len(w)  # 4 to 7 pixels
        self.end = nn.Sequential(Down(w[-2], w[-1]), conv(w[-1], 1, base), nn.Flatten(0))
        self.whole, self.quarter = (self.decoder(c, args) for c in (w[-2], w[-3]))

    def decoder(self, c: int, args) -> nn.Sequential:
        """(N, c, 8, 8) -> images (N, C, S/2, S/2) in [-1, 1], above 256 px (N, C, 128, 128); 8 stands for 8 to 14."""
        doublings = min(4, len(widths(args)) - 3)
        w = [c] + [max(args.width, c >> k + 3) for k in range(doublings)]  # narrow from the start: c/8, c/16, ...
        layers = [up(c_in, c_out, conv) for c_in, c_out in itertools.pairwise(w)]
        return nn.Sequential(*layers, conv(w[-1], args.channels, 3, 1, 1), nn.Tanh())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        large = self.large(x)
        small = self.small(large)
        return self.end(small).float(), large, small


def init_weights(module: nn.Module):
    """Weights N(0, 0.02) (DCGAN, section 4), BatchNorm gains N(1, 0.02) and biases 0 (dcgan.torch)."""
    if is_parametrized(module):
        return  # see conv()
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
    """A quarter of (N, C, s, s): (N, C, s/2, s/2), upper or lower (i), left or right (j)."""
    half = x.shape[2] // 2
    return x[:, :, i * half : (i + 1) * half, j * half : (j + 1) * half]


def reconstruction_loss(D: Discriminator, x: Tensor, large: Tensor, small: Tensor) -> Tensor:
    """E |decoded - x| of the image from D's small map, and of a random quarter from that quarter of its large map."""
    i, j = torch.randint(2, (2,)).tolist()
    pairs = [(D.whole(small), x), (D.quarter(corner(large, i, j)), corner(x, i, j))]
    # colours of T(x) beyond [-1, 1] are out of the decoders' reach: the loss does not come down to 0
    return sum(l1_loss(drawn, interpolate(x, drawn.shape[2:], mode="bilinear", antialias=True)) for drawn, x in pairs)


def augment(x: Tensor, policy: list[str]) -> Tensor:
    """Images (N, C, S, S), each changed at random (arXiv 2006.10738, appendix) at every call; differentiable."""
    n, _, s, _ = x.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(n, *shape, device=x.device).uniform_(low, high)

    if "colour" in policy:  # brightness, saturation, contrast
        x = x + uniform(-0.5, 0.5, 1, 1, 1)
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * uniform(0, 2, 1, 1, 1)
        mean = x.mean((1, 2, 3), keepdim=True)
        x = mean + (x - mean) * uniform(0.5, 1.5, 1, 1, 1)
    if "translation" in policy:  # by up to an eighth; zeros come in
        corners = torch.randint(2 * (s // 8) + 1, (n, 2)).tolist()
        wide = pad(x, [s // 8] * 4)
        x = torch.stack([y[:, i : i + s, j : j + s] for y, (i, j) in zip(wide, corners, strict=True)])
    if "cutout" in policy:  # a square of half the width is zero
        place = torch.arange(s, device=x.device) + 0.5
        outside = [(place - uniform(0, s, 1)).abs() > s / 4 for _ in ("rows", "columns")]
        x = x * (outside[0][:, None, :, None] | outside[1][:, None, None, :])
    return x


def train_step(G, D, opt_G, opt_D, data, args) -> dict[str, Tensor]:
    """One update of D and of its decoders, one of G on the noise that D has seen; D sees augmented images only."""
    # (1) D: minimise E relu(1 - D(T(x))) + E relu(1 + D(T(G(z)))) + E |decoded(T(x)) - T(x)|
    D.requires_grad_(True)
    x_real = augment(next(data), args.augment)
    with autocast(args):
        x_fake = G(noise(len(x_real), args))  # with its graph: (2) uses it again
        real, large, small = D(x_real)  # apart: each batch has its own BatchNorm statistics
        reconstruction = reconstruction_loss(D, x_real, large, small)  # reals only
        loss_D = d_loss(real, D(augment(x_fake.detach(), args.augment))[0]) + reconstruction
    step(opt_D, loss_D)

    # (2) G: minimise -E D(T(G(z)))
    D.requires_grad_(False)  # no gradients for weights that are not updated
    with autocast(args):
        loss_G = g_loss(D(augment(x_fake, args.augment))[0])
    step(opt_G, loss_G)
    metrics = {"loss_D": loss_D, "loss_G": loss_G, "reconstruction": reconstruction}
    return {name: value.detach() for name, value in metrics.items()}


# --- plumbing: the same text in every script (tests/test_siblings.py) ---


def noise(n: int, args) -> Tensor:
    """z (n, z_dim): N(0, 1) or U(-1, 1)."""
    z = torch.empty(n, args.z_dim, device=args.device)
    return z.normal_() if args.noise == "normal" else z.uniform_(-1, 1)


def autocast(args):
    """bfloat16 where setup() allows it; weights and losses stay float32. It has float32's range: no scaling."""
    return torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.autocast)


def step(opt: torch.optim.Optimizer, loss: Tensor):
    """Update the parameters of `opt`, with gradients averaged over all processes (README: Why no DDP wrapper)."""
    opt.zero_grad()
    loss.backward()
    params = [p for group in opt.param_groups for p in group["params"]]
    for p in params:
        if p.grad is None:  # as 0, so that one process and many do the same
            p.grad = torch.zeros_like(p)
    if dist.is_initialized():
        flat = torch.cat([p.grad.flatten() for p in params])
        dist.all_reduce(flat)
        for p, grad in zip(params, flat.split([p.numel() for p in params]), strict=True):
            p.grad.copy_(grad.view_as(p) / dist.get_world_size())
    opt.step()


@torch.no_grad()
def update_ema(G_ema: nn.Module, G: nn.Module, decay: float):
    """G_ema <- decay G_ema + (1 - decay) G; buffers (BatchNorm's running statistics) are copied."""
    for average, p in zip(G_ema.parameters(), G.parameters(), strict=True):
        average.lerp_(p, 1 - decay)
    for average, b in zip(G_ema.buffers(), G.buffers(), strict=True):
        average.copy_(b)


def setup(args) -> tuple[int, int]:
    """Settle args.device and args.autocast, join the processes that torchrun started; returns (rank, their number)."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if args.batch % world:
        common.fail(f"--batch {args.batch} cannot be divided among {world} processes")
    if args.device == "auto":
        mps = torch.backends.mps.is_available() and world == 1  # gloo does not reach it
        args.device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if args.device == "cuda":
        args.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        if "cuda" in args.device:
            torch.cuda.set_device(args.device)
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        common.fail(f"--device {args.device} is not to be had here ({str(error).splitlines()[0]})")
    torch.backends.cudnn.benchmark = True
    args.autocast = args.bf16 and "cuda" in args.device and torch.cuda.is_bf16_supported(including_emulation=False)
    if world > 1:
        dist.init_process_group("nccl" if "cuda" in args.device else "gloo")
    return rank, world


def main(argv=None) -> dict:
    args = parse_args(argv)
    rank, world = setup(args)
    torch.manual_seed(args.seed)  # the same weights on all ranks
    layout = torch.contiguous_format if args.device == "mps" else torch.channels_last  # wrong gradients: pytorch#175189
    G = Generator(args).apply(init_weights).to(args.device, memory_format=layout)
    D = Discriminator(args).apply(init_weights).to(args.device, memory_format=layout)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    if args.sample:
        G_ema.load_state_dict(common.read_checkpoint(args.checkpoint, args.script)["state"]["G_ema"])
        G_ema.train(args.sample_mode == "batch")
        torch.manual_seed(args.seed)
        common.write_samples(args, lambda: G_ema(noise(args.batch, args)))
        return {"G_ema": G_ema}

    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.beta1, args.beta2), fused="cuda" in args.device)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.beta1, args.beta2), fused="cuda" in args.device)
    data = common.Batches(common.load_images(args)[0], args, rank, world)
    state = {"G": G, "D": D, "G_ema": G_ema, "opt_G": opt_G, "opt_D": opt_D, "data": data}
    start = 0
    if args.resume:
        saved = common.read_checkpoint(args.checkpoint, args.script)
        start = saved["step"]
        for name, values in saved["state"].items():
            if "param_groups" in values:  # learning rates, betas and kernels are those of this start
                values["param_groups"] = state[name].state_dict()["param_groups"]
            state[name].load_state_dict(values)

    fixed_z = noise(common.GRID, args)
    with common.Run(args, data, start, lambda: G_ema(fixed_z), rank) as run:
        run.save(state)
        for i in run.steps():
            # a resumed run draws the same noise; mixed, because torch's CPU generator takes only 32 bits of a seed
            torch.manual_seed(zlib.crc32(f"{args.seed} {i} {rank}".encode()))
            metrics = train_step(G, D, opt_G, opt_D, data, args)
            update_ema(G_ema, G, min(args.ema, (1 + i) / (10 + i)))  # warm-up: forget the random start soon
            run.log(metrics)
            if run.due():
                run.save(state)
    if world > 1:
        dist.destroy_process_group()
    return state


if __name__ == "__main__":
    main()
