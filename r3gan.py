"""R3GAN - Huang, Gokaslan, Kuleshov, Tompkin 2024, arXiv 2501.05441.

"The GAN is dead; long live the GAN! A Modern GAN Baseline"

    min_D  E softplus(-(D(x) - D(y))) + gamma/2 (E |grad_x D(x)|^2 + E |grad_y D(y)|^2),  y = G(z)
    min_G  E softplus(-(D(y) - D(x)))

What is specific to this file: each generated image is judged against a real one (relativistic pairing), and D's slope
is held down at real (R1) and at generated images (R2), from which local convergence follows (section 2). Networks are
residual and have no normalisation: 1x1 expansion, grouped 3x3, and a 1x1 projection that starts at zero.

Differs from the authors' code: channels double from the largest map to the smallest, up to 8 times (theirs for FFHQ:
768 from 4 to 32 pixels, then half at each size); batch 64 (256); no augmentation; G learns on the noise and the reals
that D has just seen; --ema is per step (theirs: a half-life that rises to 500,000 images). With --penalty-every k, as
in the preset, R1 and R2 are of each k-th step, times k: not quite the same under Adam, which then moves D more slowly
where they dominate. Rates fall to a quarter, gamma and 1 - beta2 to a tenth, as a cosine over --anneal steps, which
should be as many as --steps. The authors' gamma is 0.05 at 32 pixels, 2 at 64 and 150 at 256. Samples come from a
moving average of G (arXiv 1710.10196).

    python r3gan.py                                               # built-in faces, minutes on a CPU
    python r3gan.py --path data/anime --size 64 --out runs/anime  # any folder of images
    torchrun --nproc-per-node=8 r3gan.py --path data/anime --out runs/anime8

Result of the first command: 4,600 steps in 7.8 minutes on two CPU cores, torch 2.14.1; of 2,000 samples 81 % ± 2 can be
read as a face, with 40 ± 16 of the 132 combinations of hair and eyes (3 seeds). The faces hardly move, and in as many
minutes most other scripts get further here. With --steps 20000 --anneal 20000, half an hour by that rate, they move
and seed 0 has 94 % and 117: README, Experiments.
"""

import argparse
import copy
import math
import os
import zlib

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import interpolate, softplus

import common

# what replaces the defaults without --path
PRESET = {"size": 32, "width": 16, "blocks": [1, 1, 1, 2], "batch": 16, "steps": 4600, "anneal": 4600}
PRESET |= {"lr_g": 3e-3, "lr_d": 1.5e-3, "gamma": 20.0, "penalty_every": 4, "log_every": 40}
ARCHITECTURE = ("size", "channels", "z_dim", "width", "blocks")  # what a checkpoint must agree on


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=f"Without --path: {PRESET}. Flags given by hand win.",
        usage="%(prog)s [--path FOLDER] [flags]; --help lists the flags",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    group = parser.add_argument_group("method")
    group.add_argument("--lr-g", type=common.between(0.0), default=2e-4, help="learning rate of G, at first")
    group.add_argument("--lr-d", type=common.between(0.0), default=2e-4, help="learning rate of D, at first")
    group.add_argument("--beta1", type=common.between(0.0, 0.9999), default=0.0, help="Adam's decay of the mean")
    group.add_argument("--beta2", type=common.between(0.0, 0.9999), default=0.9, help="decay of the square, at first")
    group.add_argument("--z-dim", type=common.between(1), default=64, help="size of the noise")
    group.add_argument("--noise", choices=("normal", "uniform"), default="normal", help="N(0, 1) or U(-1, 1)")
    group.add_argument("--width", type=common.between(1), default=64, help="channels of the largest map of G and D")
    group.add_argument(
        "--blocks", type=common.between(1), nargs="+", default=[2], help="at each size, the largest first"
    )
    group.add_argument("--gamma", type=common.between(0.0), default=2.0, help="weight of R1 and R2, at first")
    group.add_argument("--penalty-every", type=common.between(1), default=1, help="k: R1, R2 each k steps, times k")
    group.add_argument("--anneal", type=common.between(1), default=50_000, help="steps in which rates and gamma fall")
    group.add_argument("--ema", type=common.between(0.0, 1.0), default=0.999, help="decay of the moving average of G")
    group = parser.add_argument_group("run")
    group.add_argument("--steps", type=common.between(1), default=50_000, help="steps of training in total")
    group.add_argument("--batch", type=common.between(2), default=64, help="images of an update, over all processes")
    group.add_argument(
        "--seed", type=common.between(0, 2**32 - 1), default=0, help="of weights, noise and order; of --sample"
    )
    group.add_argument("--device", default="auto", help="auto (cuda, mps, cpu) or a torch device")
    group.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast on CUDA")
    common.add_data_flags(parser)
    common.add_output_flags(parser, __file__, batchnorm=False)
    return common.parse(parser, argv, __file__, PRESET, ARCHITECTURE)


def stages(args) -> list[tuple[int, int]]:
    """(channels, blocks) from the largest map (S pixels wide) to the smallest (4 to 7): w, 2w, 4w, 8w, 8w, ...

    The last number of --blocks is that of all smaller maps, too.
    """
    levels = range(int(math.log2(args.size / 4)) + 1)
    return [(args.width * min(2**k, 8), args.blocks[min(k, len(args.blocks) - 1)]) for k in levels]


class Block(nn.Module):
    """(N, c, s, s) -> (N, c, s, s): x + W3 act W2 act W1 x (section 3); `depth`: blocks of the network."""

    def __init__(self, c: int, depth: int):
        super().__init__()
        self.scale, groups = depth**-0.25, math.gcd(2 * c, c // 8 or 1)  # of 16 channels where the width allows it
        layers = [nn.Conv2d(c, 2 * c, 1), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(2 * c, 2 * c, 3, 1, 1, groups=groups), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(2 * c, c, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class Resample(nn.Module):
    """(N, c_in, s, s) -> (N, c_out, 2s, 2s) or (N, c_out, s/2, s/2)."""

    def __init__(self, c_in: int, c_out: int, up: bool):
        super().__init__()
        self.conv = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1, bias=False)
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        if self.up:  # bilinear: the filter [1, 2, 1] on pixels doubled, [1, 3, 3, 1] / 4
            return interpolate(self.conv(x), scale_factor=2, mode="bilinear")
        return self.conv(interpolate(x.float(), scale_factor=0.5, mode="bilinear", antialias=True))  # its mirror image


class Generator(nn.Module):
    """z (N, z_dim) -> images (N, C, S, S), without a tanh: files are clipped to [-1, 1]."""

    def __init__(self, args):
        super().__init__()
        (c, blocks), *larger = stages(args)[::-1]
        depth, base = sum(n for _, n in stages(args)), args.size >> len(larger)  # 4 to 7 pixels
        self.basis = nn.Parameter(torch.randn(c, base, base))
        self.linear = nn.Linear(args.z_dim, c, bias=False)
        layers = [Block(c, depth) for _ in range(blocks)]  # (N, 8w, 4, 4)
        for c_out, blocks in larger:  # (N, c, s, s) -> (N, c_out, 2s, 2s), to (N, w, S, S)
            layers += [Resample(c, c_out, up=True), *(Block(c_out, depth) for _ in range(blocks))]
            c = c_out
        self.net = nn.Sequential(*layers, nn.Conv2d(c, args.channels, 1, bias=False))

    def forward(self, z: Tensor) -> Tensor:
        return self.net(self.basis * self.linear(z)[:, :, None, None])


class Discriminator(nn.Module):
    """Images (N, C, S, S) -> scores (N,), float32; the mirror image of G."""

    def __init__(self, args):
        super().__init__()
        (c, blocks), *smaller = stages(args)
        depth, base = sum(n for _, n in stages(args)), args.size >> len(smaller)
        layers = [nn.Conv2d(args.channels, c, 1, bias=False), *(Block(c, depth) for _ in range(blocks))]  # (N, w, S, S)
        for c_out, blocks in smaller:  # (N, c, s, s) -> (N, c_out, s/2, s/2), to (N, 8w, 4, 4)
            layers += [Resample(c, c_out, up=False), *(Block(c_out, depth) for _ in range(blocks))]
            c = c_out
        self.net = nn.Sequential(*layers)
        self.basis = nn.Parameter(torch.randn(c, base, base) / base)  # a depth-wise convolution as wide as its map
        self.linear = nn.Linear(c, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x).float()
        with torch.autocast(x.device.type, enabled=False):  # pairs differ by less than bfloat16 keeps of a large score
            return self.linear((self.basis * x).sum((2, 3))).flatten()  # (N, 8w, 4, 4) -> (N, 8w) -> (N,)


def init_weights(module: nn.Module):
    """Weights N(0, 1 / fan-in), which keeps variances, biases 0; a block starts as the identity (Fixup: 1901.09321)."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, Block):  # after its layers; leaky ReLU of N(0, 1) has a mean square of 0.52
        for layer in (module.net[0], module.net[2]):
            layer.weight.data *= module.scale * nn.init.calculate_gain("leaky_relu", 0.2)
        nn.init.zeros_(module.net[4].weight)


def d_loss(real: Tensor, fake: Tensor) -> Tensor:
    return softplus(-(real - fake)).mean()  # pairs: each generated image against one real


def g_loss(real: Tensor, fake: Tensor) -> Tensor:
    return softplus(-(fake - real)).mean()


def zero_centred_penalty(x: Tensor, scores: Tensor) -> Tensor:
    """E |grad_x D(x)|^2: R1 at reals, R2 at generated images (arXiv 1801.04406, section 4.1)."""
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def annealed(first: float, last: float, i: int, args) -> float:
    """A cosine from `first` at step 0 to `last` at step --anneal and after it."""
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, i / args.anneal))) / 2


def train_step(G, D, opt_G, opt_D, data, args, gamma: float) -> dict[str, Tensor]:
    """One update of D, with penalties unless gamma is 0, and one of G."""
    # (1) D: minimise E softplus(-(D(x) - D(y))) + gamma/2 (E |grad_x D(x)|^2 + E |grad_y D(y)|^2), y = G(z)
    D.requires_grad_(True)
    x_real = next(data)
    with autocast(args):
        x_fake = G(noise(len(x_real), args)).float()  # with its graph: (2) uses it again
    x, y = (images.detach().requires_grad_(gamma > 0) for images in (x_real, x_fake))
    real, fake = D(x), D(y)  # not in autocast: penalties in float32
    loss_D = d_loss(real, fake)
    r1, r2 = (zero_centred_penalty(x, real), zero_centred_penalty(y, fake)) if gamma else loss_D.new_zeros(2)
    step(opt_D, loss_D + gamma / 2 * (r1 + r2))  # logged apart

    # (2) G: minimise E softplus(-(D(y) - D(x)))
    D.requires_grad_(False)  # no gradients for weights that are not updated
    with autocast(args):
        loss_G = g_loss(D(x_real), D(x_fake))
    step(opt_G, loss_G)
    return {name: value.detach() for name, value in {"loss_D": loss_D, "loss_G": loss_G, "r1": r1, "r2": r2}.items()}


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
            for opt, lr in ((opt_G, args.lr_g), (opt_D, args.lr_d)):
                opt.param_groups[0]["lr"] = annealed(lr, lr / 4, i, args)
                opt.param_groups[0]["betas"] = args.beta1, annealed(args.beta2, 0.9 + args.beta2 / 10, i, args)
            due = (i + 1) % args.penalty_every == 0
            gamma = args.penalty_every * annealed(args.gamma, args.gamma / 10, i, args) if due else 0.0
            metrics = train_step(G, D, opt_G, opt_D, data, args, gamma)
            update_ema(G_ema, G, min(args.ema, (1 + i) / (10 + i)))  # warm-up: forget the random start soon
            run.log(metrics)
            if run.due():
                run.save(state)
    if world > 1:
        dist.destroy_process_group()
    return state


if __name__ == "__main__":
    main()
