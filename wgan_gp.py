"""WGAN-GP - Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", arXiv 1704.00028.

    min_D  E D(G(z)) - E D(x) + lambda E (|grad D(x_hat)| - 1)^2,  x_hat = e x + (1 - e) G(z), e ~ U[0, 1]
    min_G  - E D(G(z))

What is specific to this file: D is a critic, whose scores have no scale of their own; a penalty holds the norm of its
gradient near 1 on straight lines between real and generated images; it is updated n_critic times for each update of G
(Algorithm 1). No BatchNorm in D: the penalty is about single images, BatchNorm would mix them (section 4).
-loss_D without the penalty is logged as `wasserstein`, an estimate of the distance between data and samples.

Differs from the paper: DCGAN's networks with kernels of 4x4 and z of 100 (its best results are of ResNets and z of
128), no normalisation in D where it recommends LayerNorm. Samples come from a moving average of G (arXiv 1710.10196).

    python wgan_gp.py                                               # built-in faces, a few minutes on a CPU
    python wgan_gp.py --path data/anime --size 64 --out runs/anime  # any folder of images
    torchrun --nproc-per-node=8 wgan_gp.py --path data/anime --out runs/anime8

Result of the first command: 9,000 steps, n_critic 1, in 6.6 minutes on two CPU cores, torch 2.14.1; of 2,000 samples
84 % ± 3 can be read as a face, with 122 ± 6 of the 132 combinations of hair and eyes (3 seeds).
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
PRESET = {"size": 32, "width": 32, "batch": 16, "steps": 9000, "lr_g": 1e-3, "lr_d": 1e-3, "n_critic": 1}
ARCHITECTURE = ("size", "channels", "z_dim", "width", "act")  # what a checkpoint must agree on


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=f"Without --path: {PRESET}. Flags given by hand win.",
        usage="%(prog)s [--path FOLDER] [flags]; --help lists the flags",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    group = parser.add_argument_group("method")
    group.add_argument("--lr-g", type=common.between(0.0), default=1e-4, help="learning rate of G")
    group.add_argument("--lr-d", type=common.between(0.0), default=1e-4, help="learning rate of D")
    group.add_argument("--beta1", type=common.between(0.0, 0.9999), default=0.0, help="Adam's decay of the mean")
    group.add_argument("--beta2", type=common.between(0.0, 0.9999), default=0.9, help="Adam's decay of the square")
    group.add_argument("--z-dim", type=common.between(1), default=100, help="size of the noise")
    group.add_argument("--noise", choices=("normal", "uniform"), default="normal", help="N(0, 1) or U(-1, 1)")
    group.add_argument("--width", type=common.between(1), default=64, help="channels of the largest map of G and D")
    group.add_argument("--act", choices=("relu", "lrelu"), default="relu", help="activation of G")
    group.add_argument("--ema", type=common.between(0.0, 1.0), default=0.999, help="decay of the moving average of G")
    group.add_argument("--n-critic", type=common.between(1), default=5, help="updates of D for each of G")
    group.add_argument("--gp", type=common.between(0.0), default=10.0, help="weight lambda of the gradient penalty")
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
    """Images (N, C, S, S) in [-1, 1] -> scores (N,), float32; the paper says critic."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)
        base = args.size >> len(w)
        layers = [nn.Conv2d(args.channels, w[0], 4, 2, 1), nn.LeakyReLU(0.2)]  # (N, w, S/2, S/2)
        for c_in, c_out in itertools.pairwise(w):  # (N, c_in, s, s) -> (N, c_out, s/2, s/2), to (N, 8w, 4, 4)
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(w[-1], 1, base), nn.Flatten(0)]  # (N, 1, 1, 1) -> (N,)
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


def d_loss(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean()  # E D(G(z)) - E D(x)


def g_loss(fake: Tensor) -> Tensor:
    return -fake.mean()  # -E D(G(z))


def gradient_penalty(D: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
    """E (|grad D(x_hat)|_2 - 1)^2, the norm over all pixels of an image; to be called outside autocast, in float32."""
    e = torch.rand(len(x_real), 1, 1, 1, device=x_real.device)  # one per image
    x_hat = (e * x_real + (1 - e) * x_fake).requires_grad_(True)  # float32, as e is
    score = D(x_hat)
    (gradient,) = torch.autograd.grad(score, x_hat, torch.ones_like(score), create_graph=True)  # for its own gradient
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


def train_step(G, D, opt_G, opt_D, data, args) -> dict[str, Tensor]:
    """Algorithm 1: n_critic updates of D, each on a new batch of images and of noise, then one of G on new noise."""
    # (1) D: minimise E D(G(z)) - E D(x) + lambda E (|grad D(x_hat)| - 1)^2
    D.requires_grad_(True)
    for _ in range(args.n_critic):
        x_real = next(data)
        with autocast(args):
            with torch.no_grad():  # G is not updated here
                x_fake = G(noise(len(x_real), args))
            loss = d_loss(D(x_real), D(x_fake))
        loss_D = loss + args.gp * gradient_penalty(D, x_real, x_fake)
        step(opt_D, loss_D)

    # (2) G: minimise -E D(G(z))
    D.requires_grad_(False)  # no gradients for weights that are not updated
    with autocast(args):
        loss_G = g_loss(D(G(noise(len(x_real), args))))
    step(opt_G, loss_G)
    return {"loss_D": loss_D.detach(), "loss_G": loss_G.detach(), "wasserstein": -loss.detach()}


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
