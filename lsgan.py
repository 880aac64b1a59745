"""LSGAN - Mao et al. 2017, "Least Squares Generative Adversarial Networks", arXiv 1611.04076.

    min_D  1/2 E (D(x) - b)^2 + 1/2 E (D(G(z)) - a)^2               min_G  1/2 E (D(G(z)) - c)^2

What is specific to this file: squared errors to the codes a (--fake-label), b (--real-label) and c (--g-label) in place
of the cross-entropy: an image whose score is far from c gives G a gradient, also one that D takes for real. They are
0, 1, 1, or -1, 1, 0, with which G minimises a Pearson chi^2 divergence (section 3.2): --fake-label -1 -1 --g-label 0.

Differs from the paper: DCGAN's networks and optimiser in place of larger networks, uniform z of 1024 and a learning
rate of 1e-3; means over the batch where the authors' code has sums. Samples come from a moving average of G (arXiv
1710.10196).

    python lsgan.py                                               # built-in faces, a few minutes on a CPU
    python lsgan.py --path data/anime --size 64 --out runs/anime  # any folder of images
    torchrun --nproc-per-node=8 lsgan.py --path data/anime --out runs/anime8

Result of the first command: 10,000 steps in 4.6 minutes on two CPU cores, torch 2.14.1; of 2,000 samples
87 % ± 2 can be read as a face, with 117 ± 1 of the 132 combinations of hair and eyes (3 seeds).
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

import common

# what replaces the defaults without --path
PRESET = {"size": 32, "width": 32, "batch": 16, "steps": 10_000, "lr_g": 5e-4, "lr_d": 5e-4}
ARCHITECTURE = ("size", "channels", "z_dim", "width", "act")  # what a checkpoint must agree on


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
    group.add_argument("--z-dim", type=common.between(1), default=100, help="size of the noise")
    group.add_argument("--noise", choices=("normal", "uniform"), default="normal", help="N(0, 1) or U(-1, 1)")
    group.add_argument("--width", type=common.between(1), default=64, help="channels of the largest map of G and D")
    group.add_argument("--act", choices=("relu", "lrelu"), default="relu", help="activation of G")
    group.add_argument("--ema", type=common.between(0.0, 1.0), default=0.999, help="decay of the moving average of G")
    label = common.between(-10.0, 10.0)
    group.add_argument("--real-label", type=label, nargs=2, default=[1.0, 1.0], help="lowest and highest target of D")
    group.add_argument("--fake-label", type=label, nargs=2, default=[0.0, 0.0], help="the same, for generated images")
    group.add_argument("--g-label", type=label, default=1.0, help="what G wants D to say")
    group.add_argument("--dropout", type=common.between(0.0, 0.99), default=0.0, help="rate before D's last layer")
    group = parser.add_argument_group("run")
    group.add_argument("--steps", type=common.between(1), default=50_000, help="steps of training in total")
    group.add_argument("--batch", type=common.between(2), default=64, help="images of an update, over all processes")
    group.add_argument(
        "--seed", type=common.between(0, 2**32 - 1), default=0, help="of weights, noise and order; of --sample"
    )
    group.add_argument("--device", default="auto", help="auto (cuda, mps, cpu) or a torch device")
    group.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast on CUDA")
    common.add_data_flags(parser)
    common.add_output_flags(parser, __file__)
    return common.parse(parser, argv, __file__, PRESET, ARCHITECTURE)


def widths(args) -> list[int]:
    """Channels from the largest map (S/2 pixels wide) to the smallest (4 to 7): w, 2w, 4w, 8w, 8w, ..."""
    return [args.width * min(2**level, 8) for level in range(int(math.log2(args.size / 4)))]


class Generator(nn.Module):
    """z (N, z_dim) -> images (N, C, S, S) in [-1, 1]."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)[::-1]
        act = {"relu": nn.ReLU(), "lrelu": nn.LeakyReLU(0.2)}[args.act]
        base = args.size >> len(w)  # 4 to 7 pixels; --size 64: 4 -> 8 -> 16 -> 32 -> 64
        layers = [nn.ConvTranspose2d(args.z_dim, w[0], base, bias=False), nn.BatchNorm2d(w[0]), act]  # (N, 8w, 4, 4)
        for c_in, c_out in itertools.pairwise(w):  # (N, c_in, s, s) -> (N, c_out, 2s, 2s), to (N, w, S/2, S/2)
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), act]
        layers += [nn.ConvTranspose2d(w[-1], args.channels, 4, 2, 1), nn.Tanh()]  # (N, C, S, S) in [-1, 1]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z[:, :, None, None])


class Discriminator(nn.Module):
    """Images (N, C, S, S) in [-1, 1] -> scores (N,), float32."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)
        base = args.size >> len(w)
        layers = [nn.Conv2d(args.channels, w[0], 4, 2, 1), nn.LeakyReLU(0.2)]  # (N, w, S/2, S/2)
        for c_in, c_out in itertools.pairwise(w):  # (N, c_in, s, s) -> (N, c_out, s/2, s/2), to (N, 8w, 4, 4)
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        layers += [nn.Dropout(args.dropout), nn.Conv2d(w[-1], 1, base), nn.Flatten(0)]  # (N, 1, 1, 1) -> (N,)
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).float()


def init_weights(module: nn.Module):
    """Weights N(0, 0.02) (DCGAN, section 4), BatchNorm gains N(1, 0.02) and biases 0 (dcgan.torch)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def labels(scores: Tensor, bounds: list[float]) -> Tensor:
    """D's targets (N,), uniform in [low, high] and drawn for every image."""
    low, high = bounds
    return low + (high - low) * torch.rand_like(scores)


def d_loss(real: Tensor, fake: Tensor, t_real: Tensor | float = 1.0, t_fake: Tensor | float = 0.0) -> Tensor:
    return ((real - t_real) ** 2).mean() / 2 + ((fake - t_fake) ** 2).mean() / 2  # b is t_real, a is t_fake


def g_loss(fake: Tensor, c: float = 1.0) -> Tensor:
    return ((fake - c) ** 2).mean() / 2  # 1/2 E (D(G(z)) - c)^2


def train_step(G, D, opt_G, opt_D, data, args) -> dict[str, Tensor]:
    """One update of D and one of G, on one batch of images and one of noise."""
    # (1) D: minimise 1/2 E (D(x) - b)^2 + 1/2 E (D(G(z)) - a)^2
    D.requires_grad_(True)
    x_real = next(data)
    with autocast(args):
        x_fake = G(noise(len(x_real), args))  # with its graph: (2) uses it again
        real, fake = D(x_real), D(x_fake.detach())  # apart: each batch has its own BatchNorm statistics
        loss_D = d_loss(real, fake, labels(real, args.real_label), labels(fake, args.fake_label))
    step(opt_D, loss_D)

    # (2) G: minimise 1/2 E (D(G(z)) - c)^2
    D.requires_grad_(False)  # no gradients for weights that are not updated
    with autocast(args):
        loss_G = g_loss(D(x_fake), args.g_label)
    step(opt_G, loss_G)
    return {"loss_D": loss_D.detach(), "loss_G": loss_G.detach()}


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
