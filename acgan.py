"""ACGAN - Odena, Olah, Shlens 2016, "Conditional Image Synthesis With Auxiliary Classifier GANs", arXiv 1610.09585.

    L_S = E log sigmoid(D(x)) + E log(1 - sigmoid(D(G(z, y))))        L_C = E log P(y | x) + E log P(y | G(z, y))
    max_D  L_S + L_C        max_G  L_C - L_S

What is specific to this file: images have attributes y in groups (hair, eyes, ...). G takes them as one-hot vectors
beside z; D returns a score and, from the same maps, logits of P(y | x) for every group. A group that an image's label
leaves open, or gives two values, is a zero vector for G and no term of L_C.

Differs from the paper: G learns with the non-saturating loss, D's classifier from real images only (as
igul222/improved_wgan_training has it, which also weighs L_C by 0.1 in G's loss; 1 here), groups with a classifier each,
y of the fakes from the labels of the real batch (which may be correlated), and DCGAN's networks. Samples come from a
moving average of G (arXiv 1710.10196), with all values alike often unless --sample-labels asks for others.

    python acgan.py                                                            # built-in faces, minutes on a CPU
    python acgan.py --path data/cartoonset/images --labels data/cartoonset/cartoon_attr.txt --out runs/cartoons
    python acgan.py --out runs/cartoons --sample 100 --sample-labels testing_labels.txt      # in turn, one image a row

Result of the first command: 10,000 steps in 5.0 minutes on two CPU cores, torch 2.14.1; of 2,000 samples 99 % ± 0 can
be read as a face; hair is as asked in 100 % ± 0, eyes in 98 % ± 1, glasses in 94 % ± 8 (3 seeds).
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
PRESET = {"size": 32, "width": 32, "batch": 16, "steps": 10_000, "lr_g": 5e-4, "lr_d": 5e-4}
ARCHITECTURE = ("size", "channels", "z_dim", "width", "act", "groups")  # what a checkpoint must agree on


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
    group.add_argument("--cls-weight", type=common.between(0.0), default=1.0, help="of the class loss in D's loss")
    group.add_argument("--cls-weight-g", type=common.between(0.0), default=1.0, help="of the class loss in G's loss")
    group.add_argument("--g-steps", type=common.between(1), default=1, help="updates of G for each of D")
    group = parser.add_argument_group("run")
    group.add_argument("--steps", type=common.between(1), default=50_000, help="steps of training in total")
    group.add_argument("--batch", type=common.between(2), default=64, help="images of an update, over all processes")
    group.add_argument(
        "--seed", type=common.between(0, 2**32 - 1), default=0, help="of weights, noise and order; of --sample"
    )
    group.add_argument("--device", default="auto", help="auto (cuda, mps, cpu) or a torch device")
    group.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast on CUDA")
    common.add_data_flags(parser, labels=True)
    common.add_output_flags(parser, __file__)
    parser.add_argument("--sample-labels", metavar="FILE", help="attributes for --sample, in turn (default: random)")
    parser.set_defaults(groups=None)
    args = common.parse(parser, argv, __file__, PRESET, ARCHITECTURE)
    if args.sample_labels and not args.sample:
        parser.error("--sample-labels needs --sample: how many images?")
    return args


def widths(args) -> list[int]:
    """Channels from the largest map (S/2 pixels wide) to the smallest (4 to 7): w, 2w, 4w, 8w, 8w, ..."""
    return [args.width * min(2**level, 8) for level in range(int(math.log2(args.size / 4)))]


def encode(labels: list[list[tuple[str, str]]], groups: dict[str, list[str]]) -> Tensor:
    """y (N, groups) int64: the place of each group's value, -1 where a label gives the group none or several."""
    place = {(name, value): k for name, values in groups.items() for k, value in enumerate(values)}
    unknown = {pair for label in labels for pair in label} - place.keys()
    if unknown:
        common.fail(f"{' '.join(min(unknown))} is none of the attributes of the training: {groups}")
    rows = [[[place[pair] for pair in label if pair[0] == name] for name in groups] for label in labels]
    return torch.tensor([[places[0] if len(places) == 1 else -1 for places in row] for row in rows])


def decode(y: list[int], groups: dict[str, list[str]]) -> dict[str, str]:
    return {name: values[k] if k >= 0 else "" for k, (name, values) in zip(y, groups.items(), strict=True)}


def vectors(y: Tensor, groups: dict[str, list[str]]) -> Tensor:
    """y (N, groups) -> one-hot vectors side by side (N, values of all groups); a group of -1 is all zero."""
    each = [one_hot(k + 1, len(values) + 1)[:, 1:] for k, values in zip(y.T, groups.values(), strict=True)]
    return torch.cat(each, 1).float()


def wanted(args) -> Tensor:
    """y of the images of --sample and of a batch more: the rows of --sample-labels in turn, or random values."""
    count, sizes = args.sample + args.batch, torch.tensor([len(values) for values in args.groups.values()])
    if args.sample_labels:
        y = encode([label for _, label in common.read_labels(args.sample_labels)], args.groups)
        return y[torch.arange(count) % len(y)]
    own = torch.Generator().manual_seed(args.seed)
    return (torch.rand(count, len(sizes), generator=own) * sizes).long()


class Generator(nn.Module):
    """z (N, z_dim), y (N, groups) -> images (N, C, S, S) in [-1, 1]."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)[::-1]
        act = {"relu": nn.ReLU(), "lrelu": nn.LeakyReLU(0.2)}[args.act]
        base = args.size >> len(w)  # 4 to 7 pixels; --size 64: 4 -> 8 -> 16 -> 32 -> 64
        self.groups, c_in = args.groups, args.z_dim + sum(map(len, args.groups.values()))
        layers = [nn.ConvTranspose2d(c_in, w[0], base, bias=False), nn.BatchNorm2d(w[0]), act]  # (N, 8w, 4, 4)
        for c_in, c_out in itertools.pairwise(w):  # (N, c_in, s, s) -> (N, c_out, 2s, 2s), to (N, w, S/2, S/2)
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), act]
        layers += [nn.ConvTranspose2d(w[-1], args.channels, 4, 2, 1), nn.Tanh()]  # (N, C, S, S) in [-1, 1]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([z, vectors(y, self.groups)], 1)[:, :, None, None])


class Discriminator(nn.Module):
    """Images (N, C, S, S) in [-1, 1] -> logits (N,) of real, logits (N, values of all groups); float32."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)
        base = args.size >> len(w)
        layers = [nn.Conv2d(args.channels, w[0], 4, 2, 1), nn.LeakyReLU(0.2)]  # (N, w, S/2, S/2)
        for c_in, c_out in itertools.pairwise(w):  # (N, c_in, s, s) -> (N, c_out, s/2, s/2), to (N, 8w, 4, 4)
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(w[-1], 1 + sum(map(len, args.groups.values())), base), nn.Flatten()]
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


def d_loss(real: Tensor, fake: Tensor) -> Tensor:
    return softplus(-real).mean() + softplus(fake).mean()  # -E log sigmoid(real) - E log(1 - sigmoid(fake))


def g_loss(fake: Tensor) -> Tensor:
    return softplus(-fake).mean()  # -E log sigmoid(fake)


def class_loss(logits: Tensor, y: Tensor, groups: dict[str, list[str]]) -> Tensor:
    """-E log P(y | x), summed over the groups; where y is -1 there is no term."""
    heads = logits.split([len(values) for values in groups.values()], 1)
    terms = [cross_entropy(h, k, ignore_index=-1, reduction="sum") for h, k in zip(heads, y.T, strict=True)]
    return sum(terms) / len(y)


def train_step(G, D, opt_G, opt_D, data, args) -> dict[str, Tensor]:
    """One update of D and g_steps of G, the first on the noise that D has seen; fakes have the real batch's labels."""
    # (1) D: maximise E log sigmoid(D(x)) + E log(1 - sigmoid(D(G(z, y)))) + w E log P(y | x)
    D.requires_grad_(True)
    x_real, y = next(data)
    with autocast(args):
        x_fake = G(noise(len(x_real), args), y)  # with its graph: (2) uses it again
        (real, logits), (fake, _) = D(x_real), D(x_fake.detach())  # apart: each batch has its own BatchNorm statistics
        class_real = class_loss(logits, y, args.groups)
        loss_D = d_loss(real, fake) + args.cls_weight * class_real
    step(opt_D, loss_D)

    # (2) G: maximise E log sigmoid(D(G(z, y))) + w_g E log P(y | G(z, y))
    D.requires_grad_(False)  # no gradients for weights that are not updated
    for k in range(args.g_steps):
        with autocast(args):
            fake, logits = D(x_fake if k == 0 else G(noise(len(x_real), args), y))
            class_fake = class_loss(logits, y, args.groups)
            loss_G = g_loss(fake) + args.cls_weight_g * class_fake
        step(opt_G, loss_G)
    metrics = {"loss_D": loss_D, "loss_G": loss_G, "class_real": class_real, "class_fake": class_fake}
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
    if not args.sample:
        images, names = common.load_images(args)
        rows, found = common.load_labels(args, names)
        pairs = sorted({pair for label in found for pair in label})
        groups = {name: [v for g, v in pairs if g == name] for name, _ in pairs}
        if not groups or (args.resume and groups != args.groups):
            common.fail(f"the labels have {groups}, the checkpoint {args.groups}: go on with the same --labels")
        args.groups = groups
    torch.manual_seed(args.seed)  # the same weights on all ranks
    layout = torch.contiguous_format if args.device == "mps" else torch.channels_last  # wrong gradients: pytorch#175189
    G = Generator(args).apply(init_weights).to(args.device, memory_format=layout)
    D = Discriminator(args).apply(init_weights).to(args.device, memory_format=layout)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    if args.sample:
        G_ema.load_state_dict(common.read_checkpoint(args.checkpoint, args.script)["state"]["G_ema"])
        G_ema.train(args.sample_mode == "batch")
        torch.manual_seed(args.seed)
        y = wanted(args)
        parts = iter(y.to(args.device).split(args.batch))
        rows = [decode(row, args.groups) for row in y.tolist()]
        common.write_samples(args, lambda: G_ema(noise(args.batch, args), next(parts)), rows)
        return {"G_ema": G_ema}

    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.beta1, args.beta2), fused="cuda" in args.device)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.beta1, args.beta2), fused="cuda" in args.device)
    y = encode(found, groups)
    data = common.Batches(images, args, rank, world, rows, y)
    state = {"G": G, "D": D, "G_ema": G_ema, "opt_G": opt_G, "opt_D": opt_D, "data": data}
    start = 0
    if args.resume:
        saved = common.read_checkpoint(args.checkpoint, args.script)
        start = saved["step"]
        for name, values in saved["state"].items():
            if "param_groups" in values:  # learning rates, betas and kernels are those of this start
                values["param_groups"] = state[name].state_dict()["param_groups"]
            state[name].load_state_dict(values)

    fixed_z = noise(common.GRID, args)[:8].repeat(8, 1)  # one z a column
    fixed_y = y[[i // 8 * len(y) // 8 for i in range(common.GRID)]].to(args.device)  # one image's attributes a row
    with common.Run(args, data, start, lambda: G_ema(fixed_z, fixed_y), rank) as run:
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
