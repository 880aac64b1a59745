"""InfoGAN - Chen et al. 2016, "InfoGAN: Interpretable Representation Learning by Information Maximizing Generative
Adversarial Nets", arXiv 1606.03657.

    min_{G, Q} max_D  V(D, G) - lambda L_I        L_I = E log Q(c | G(z, c)) + H(c) <= I(c; G(z, c))

What is specific to this file: G gets a code c beside z, a category and numbers in [-1, 1], and Q, heads on D's maps,
must tell it from the image. So the code can come to stand for what is plain to see, and nobody gave a label.

Q(c | x) is a softmax for the category, a Gaussian of spread 1 for each number: -log Q is cross-entropy and half the
squared error. L_I is in D's step as in G's, as in the authors' code: Q's weights are in D's optimiser. Differs from the
paper: G learns with the non-saturating loss (or --adv lsgan), heads are linear, networks are DCGAN's, lambda is 0.1 for
the numbers (authors: 1), 8 categories, the columns of a grid (paper: 10 for ten digits), a spread that is not learned
(as in the authors' code for digits), and G learns on the noise and codes that D has seen (authors: new ones). Samples
come from a moving average of G (arXiv 1710.10196).

    python infogan.py                                               # built-in faces, a few minutes on a CPU
    python infogan.py --path data/anime --size 64 --out runs/anime  # any folder of images, no labels
    torchrun --nproc-per-node=8 infogan.py --path data/anime --out runs/anime8

Result of the first command: 10,000 steps in 5.3 minutes on two CPU cores, torch 2.14.1; of 2,000 samples 93 % ± 1 can
be read as a face, with 58 ± 32 of the 132 combinations of hair and eyes; normalised mutual information of the category
and the attribute that it knows best: 0.51 ± 0.06 (3 seeds).
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
from torch.nn.functional import cross_entropy, one_hot, softplus

import common

# what replaces the defaults without --path
PRESET = {"size": 32, "width": 32, "batch": 16, "steps": 10_000, "lr_d": 3e-4}
ARCHITECTURE = ("size", "channels", "z_dim", "width", "act", "categories", "codes")  # what a checkpoint must agree on


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=f"Without --path: {PRESET}. Flags given by hand win.",
        usage="%(prog)s [--path FOLDER] [flags]; --help lists the flags",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    group = parser.add_argument_group("method")
    group.add_argument("--lr-g", type=common.between(0.0), default=1e-3, help="learning rate of G")
    group.add_argument("--lr-d", type=common.between(0.0), default=2e-4, help="learning rate of D")
    group.add_argument("--beta1", type=common.between(0.0, 0.9999), default=0.5, help="Adam's decay of the mean")
    group.add_argument("--beta2", type=common.between(0.0, 0.9999), default=0.999, help="Adam's decay of the square")
    group.add_argument("--z-dim", type=common.between(1), default=62, help="size of the noise")
    group.add_argument("--noise", choices=("normal", "uniform"), default="uniform", help="N(0, 1) or U(-1, 1)")
    group.add_argument("--width", type=common.between(1), default=64, help="channels of the largest map of G and D")
    group.add_argument("--act", choices=("relu", "lrelu"), default="relu", help="activation of G")
    group.add_argument("--ema", type=common.between(0.0, 1.0), default=0.999, help="decay of the moving average of G")
    group.add_argument("--categories", type=common.between(2), default=8, help="values of the categorical code")
    group.add_argument("--codes", type=common.between(1), default=2, help="continuous codes")
    group.add_argument("--info-cat", type=common.between(0.0), default=1.0, help="lambda of the categorical code")
    group.add_argument("--info-con", type=common.between(0.0), default=0.1, help="lambda of the continuous codes")
    group.add_argument("--adv", choices=("ns", "lsgan"), default="ns", help="loss: non-saturating or least squares")
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


def draw_codes(n: int, args) -> Tensor:
    """c (n, categories + codes): a one-hot category, each alike often, and numbers from U(-1, 1)."""
    category = one_hot(torch.randint(args.categories, (n,), device=args.device), args.categories)
    return torch.cat([category, torch.empty(n, args.codes, device=args.device).uniform_(-1, 1)], 1)


def describe(c: list[float], args) -> dict[str, str]:
    numbers = {f"code{i}": f"{value:.4f}" for i, value in enumerate(c[args.categories :], 1)}
    return {"category": str(c.index(max(c[: args.categories])))} | numbers


def grid_codes(args) -> Tensor:
    """c of the grid: the first 8 categories, one a column, in rows 1 to 4; then the first 4 numbers from -1 to 1."""
    c = torch.zeros(8, 8, args.categories + args.codes)
    for i in range(8):
        c[:4, i, i % args.categories] = 1
    for row in range(4, 8):
        c[row, :, row % args.categories] = 1
        c[row, :, args.categories + (row - 4) % args.codes] = torch.linspace(-1, 1, 8)
    return c.flatten(0, 1).to(args.device)


class Generator(nn.Module):
    """z (N, z_dim), c (N, categories + codes) -> images (N, C, S, S) in [-1, 1]."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)[::-1]
        act = {"relu": nn.ReLU(), "lrelu": nn.LeakyReLU(0.2)}[args.act]
        base = args.size >> len(w)  # 4 to 7 pixels; --size 64: 4 -> 8 -> 16 -> 32 -> 64
        c_in = args.z_dim + args.categories + args.codes
        layers = [nn.ConvTranspose2d(c_in, w[0], base, bias=False), nn.BatchNorm2d(w[0]), act]  # (N, 8w, 4, 4)
        for c_in, c_out in itertools.pairwise(w):  # (N, c_in, s, s) -> (N, c_out, 2s, 2s), to (N, w, S/2, S/2)
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), act]
        layers += [nn.ConvTranspose2d(w[-1], args.channels, 4, 2, 1), nn.Tanh()]  # (N, C, S, S) in [-1, 1]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        return self.net(torch.cat([z, c], 1)[:, :, None, None])


class Discriminator(nn.Module):
    """Images (N, C, S, S) in [-1, 1] -> scores (N,), Q's logits and means (N, categories + codes); float32."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)
        base = args.size >> len(w)
        layers = [nn.Conv2d(args.channels, w[0], 4, 2, 1), nn.LeakyReLU(0.2)]  # (N, w, S/2, S/2)
        for c_in, c_out in itertools.pairwise(w):  # (N, c_in, s, s) -> (N, c_out, s/2, s/2), to (N, 8w, 4, 4)
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(w[-1], 1 + args.categories + args.codes, base), nn.Flatten()]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.net(x).float()
        return out[:, 0], out[:, 1:]  # the heads: columns of one layer


def init_weights(module: nn.Module):
    """Weights N(0, 0.02) (DCGAN, section 4), BatchNorm gains N(1, 0.02) and biases 0 (dcgan.torch)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def d_loss(real: Tensor, fake: Tensor, adv: str = "ns") -> Tensor:
    if adv == "lsgan":
        return ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2
    return softplus(-real).mean() + softplus(fake).mean()  # -E log sigmoid(real) - E log(1 - sigmoid(fake))


def g_loss(fake: Tensor, adv: str = "ns") -> Tensor:
    return ((fake - 1) ** 2).mean() / 2 if adv == "lsgan" else softplus(-fake).mean()  # -E log sigmoid(fake)


def info_loss(q: Tensor, c: Tensor, args) -> tuple[Tensor, Tensor, Tensor]:
    """-lambda E log Q(c | x) without its constants, and its parts: cross-entropy, mean squared error."""
    k = args.categories
    category, numbers = cross_entropy(q[:, :k], c[:, :k]), (q[:, k:] - c[:, k:]).square().mean()
    return args.info_cat * category + args.info_con * args.codes * numbers / 2, category, numbers


def train_step(G, D, opt_G, opt_D, data, args) -> dict[str, Tensor]:
    """One update of D and Q, one of G on the noise and codes that they have seen."""
    # (1) D and Q: maximise E log sigmoid(D(x)) + E log(1 - sigmoid(D(G(z, c)))) + lambda E log Q(c | G(z, c))
    D.requires_grad_(True)
    x_real = next(data)
    c = draw_codes(len(x_real), args)
    with autocast(args):
        x_fake = G(noise(len(x_real), args), c)  # with its graph: (2) uses it again
        (real, _), (fake, q) = D(x_real), D(x_fake.detach())  # apart: each batch has its own BatchNorm statistics
        loss_D = d_loss(real, fake, args.adv) + info_loss(q, c, args)[0]
    step(opt_D, loss_D)

    # (2) G: maximise E log sigmoid(D(G(z, c))) + lambda E log Q(c | G(z, c))
    D.requires_grad_(False)  # no gradients for weights that are not updated
    with autocast(args):
        fake, q = D(x_fake)
        information, category, numbers = info_loss(q, c, args)
        loss_G = g_loss(fake, args.adv) + information
    step(opt_G, loss_G)
    metrics = {"loss_D": loss_D, "loss_G": loss_G, "category": category, "numbers": numbers}
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
        drawn = []

        def generate():
            c = draw_codes(args.batch, args)
            drawn.extend(describe(row, args) for row in c.tolist())
            return G_ema(noise(args.batch, args), c)

        common.write_samples(args, generate, drawn)
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

    fixed_z, fixed_c = noise(common.GRID, args)[::8].repeat_interleave(8, 0), grid_codes(args)  # a z for each row
    with common.Run(args, data, start, lambda: G_ema(fixed_z, fixed_c), rank) as run:
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
