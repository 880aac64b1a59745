"""ACGAN - Odena, Olah, Shlens 2016, "Conditional Image Synthesis With Auxiliary Classifier GANs", arXiv 1610.09585.

    L_S = E log sigmoid(D(x)) + E log(1 - sigmoid(D(G(z, y))))        L_C = E log P(y | x) + E log P(y | G(z, y))
    max_D  L_S + L_C        max_G  L_C - L_S

What is specific to this file: images have attributes y in groups (hair, eyes, ...). G gets them as one-hot vectors next
to z. D returns a score and, from the same feature maps, logits of P(y | x) for each group. If a label says nothing
about a group, or gives it two values, then G gets zeros for this group, and L_C has no term for it.

Differs from the paper: G learns with the non-saturating loss. The classifier of D learns from real images only (as in
igul222/improved_wgan_training, which also weights L_C by 0.1 in G's loss; here 1). Each group has a classifier of its
own. Generated images take the labels of the real images of the batch, whose attributes may be correlated. The networks
are DCGAN's. Samples come from an exponential moving average of G's weights (arXiv 1710.10196). In these samples, all
values of a group are equally likely, unless --sample-labels asks for others.

    python acgan.py                                                            # built-in faces, minutes on a CPU
    python acgan.py --path data/cartoonset/images --labels data/cartoonset/cartoon_attr.txt --out runs/cartoons
    python acgan.py --out runs/cartoons --sample 100 --sample-labels testing_labels.txt      # in turn, one per row

Result of the first command: 10,000 steps in 1.9 minutes on two CPU cores, torch 2.14.1; of 2,000 samples 99 % ± 0 can
be read as a face; hair is as requested in 100 % ± 0, eyes in 99 % ± 0, glasses in 98 % ± 0 (3 seeds: mean ± standard
deviation; read by faces.py).
"""

import argparse
import copy
import datetime
import itertools
import math
import os
import zlib
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, softplus

import common
import labels

# Without --path, these values replace the defaults: for a few minutes on a CPU.
PRESET = {
    "size": 32,
    "width": 32,
    "batch": 16,
    "steps": 10_000,
    "lr_g": 5e-4,
    "lr_d": 5e-4,
}
# Flags that change the networks: a checkpoint fits only the values that it was trained with. The groups come from the
# labels.
ARCHITECTURE = ("size", "channels", "z_dim", "width", "act", "groups")


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
        "--z-dim", type=common.between(1), default=100, help="length of the latent z; tiny values limit variety"
    )
    group.add_argument(
        "--noise", choices=("normal", "uniform"), default="normal", help="distribution of z: N(0, 1) or U(-1, 1)"
    )
    group.add_argument(
        "--width",
        type=common.between(1),
        default=64,
        help="channels at the highest resolution, doubled at each lower one; more gives finer images and slower steps",
    )
    group.add_argument("--act", choices=("relu", "lrelu"), default="relu", help="activation in G: ReLU or leaky ReLU")
    group.add_argument(
        "--ema",
        type=common.between(0.0, 1.0),
        default=0.999,
        help="decay of the moving average of G that samples come from; closer to 1 averages over more steps, 0 is off",
    )
    group.add_argument(
        "--cls-weight",
        type=common.between(0.0),
        default=1.0,
        help="weight of the class loss in the loss of D; with 0, D does not learn to recognize attributes",
    )
    group.add_argument(
        "--cls-weight-g",
        type=common.between(0.0),
        default=1.0,
        help="weight of the class loss in the loss of G; with 0, nothing rewards G for showing the attributes",
    )
    group.add_argument(
        "--g-steps", type=common.between(1), default=1, help="updates of G per update of D; more if D is too strong"
    )
    group = parser.add_argument_group("run")
    group.add_argument(
        "--steps", type=common.between(1), default=50_000, help="training steps, including those before --resume"
    )
    group.add_argument(
        "--batch", type=common.between(2), default=64, help="images per update, summed over all processes"
    )
    group.add_argument(
        "--seed",
        type=common.between(0, 2**32 - 1),
        default=0,
        help="seed of weights, noise and order of images; --sample: of noise and labels; --grid: of noise",
    )
    group.add_argument("--device", default="auto", help="cpu, cuda, mps, ...; auto takes a GPU if there is one")
    group.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute in bfloat16 (autocast) on GPUs and CPUs that multiply in it: faster, and takes less memory",
    )
    common.add_data_flags(parser, labels=True)
    common.add_output_flags(parser, __file__)
    parser.add_argument(
        "--sample-labels",
        metavar="FILE",
        help="label file whose rows --sample draws in turn, one image per row; without it, attributes are random",
    )
    parser.set_defaults(groups=None)
    args = common.parse(parser, argv, __file__, PRESET, ARCHITECTURE)
    if args.sample_labels and not args.sample:
        parser.error("--sample-labels needs --sample N, the number of images")
    return args


def widths(args) -> list[int]:
    """Channels of the feature maps, from S/2 x S/2 pixels to the smallest (4 x 4 to 7 x 7, depending on --size).

    They double where the resolution halves, up to 8 times --width: --size 64 --width 64 gives [64, 128, 256, 512].
    """
    levels = int(math.log2(args.size / 4))
    return [args.width * min(2**level, 8) for level in range(levels)]


def encode(found: list[list[tuple[str, str]]], groups: dict[str, list[str]]) -> Tensor:
    """Labels of N images -> y (N, groups) int64: the index of each group's value, -1 where a label has none or several.

    With groups {"eyes": ["blue", "red"], "hair": ["aqua", "black"]}, the label [("hair", "black")] is the row [-1, 1].
    Ends the process at a value that the groups do not have.
    """
    refuse_unknown(found, groups)
    y = []
    for label in found:
        row = []
        for group, values in groups.items():
            given = [value for name, value in label if name == group]
            row.append(values.index(given[0]) if len(given) == 1 else -1)
        y.append(row)
    return torch.tensor(y)


def refuse_unknown(found: list[list[tuple[str, str]]], groups: dict[str, list[str]]):
    """End the process at the first group or value that the training labels do not have."""
    for label in found:
        for group, value in label:
            if group not in groups:
                common.fail(f"unknown attribute {group!r}; the training labels have: {', '.join(groups)}")
            if value not in groups[group]:
                known = ", ".join(groups[group])
                common.fail(f"unknown value {value!r} for {group}; the training labels have: {known}")


def decode(y: list[int], groups: dict[str, list[str]]) -> dict[str, str]:
    """One row of y -> {"eyes": "", "hair": "black"}: the value of each group, "" where y is -1."""
    label = {}
    for k, (group, values) in zip(y, groups.items(), strict=True):
        label[group] = values[k] if k >= 0 else ""
    return label


def vectors(y: Tensor, groups: dict[str, list[str]]) -> Tensor:
    """y (N, groups) -> one-hot vectors of all groups side by side (N, y_dim), float32; zeros where y is -1."""
    parts = []
    for k, values in zip(y.T, groups.values(), strict=True):
        # one_hot takes no -1: it gets a column of its own, which is cut off
        parts.append(one_hot(k + 1, len(values) + 1)[:, 1:])
    return torch.cat(parts, 1).float()


class Generator(nn.Module):
    """Latent z (N, z_dim) and attributes y (N, groups) -> images (N, C, S, S) in [-1, 1]."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)[::-1]  # from the lowest resolution to the highest
        base = args.size >> len(w)  # the lowest resolution, 4 to 7; --size 64: 4 -> 8 -> 16 -> 32 -> 64
        act = nn.ReLU() if args.act == "relu" else nn.LeakyReLU(0.2)
        self.groups = args.groups
        y_dim = sum(len(values) for values in args.groups.values())

        # (N, z_dim + y_dim, 1, 1) -> (N, w[0], base, base)
        layers = [nn.ConvTranspose2d(args.z_dim + y_dim, w[0], base, bias=False), nn.BatchNorm2d(w[0]), act]
        # (N, c_in, s, s) -> (N, c_out, 2s, 2s), up to (N, w[-1], S/2, S/2); kernel 4, stride 2, padding 1
        for c_in, c_out in itertools.pairwise(w):
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), act]
        # (N, w[-1], S/2, S/2) -> (N, C, S, S) in [-1, 1]
        layers += [nn.ConvTranspose2d(w[-1], args.channels, 4, 2, 1), nn.Tanh()]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        z = torch.cat([z, vectors(y, self.groups)], 1)
        return self.net(z[:, :, None, None])


class Discriminator(nn.Module):
    """Images (N, C, S, S) in [-1, 1] -> logits (N,) of "real", class logits (N, y_dim) of all groups; float32."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)
        base = args.size >> len(w)
        y_dim = sum(len(values) for values in args.groups.values())

        # (N, C, S, S) -> (N, w[0], S/2, S/2)
        layers = [nn.Conv2d(args.channels, w[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        # (N, c_in, s, s) -> (N, c_out, s/2, s/2), down to (N, w[-1], base, base)
        for c_in, c_out in itertools.pairwise(w):
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers)
        # (N, w[-1], base, base) -> (N, 1 + y_dim, 1, 1)
        self.heads = nn.Conv2d(w[-1], 1 + y_dim, base)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.net(x).float()
        # in float32, because bfloat16 would round away the difference between two large scores
        with torch.autocast(x.device.type, enabled=False):
            out = self.heads(x).flatten(1)
        return out[:, 0], out[:, 1:]  # the score and the classifiers are columns of one layer


def init_weights(module: nn.Module):
    """Weights N(0, 0.02) (DCGAN, section 4); BatchNorm: gains N(1, 0.02), biases 0 (dcgan.torch); other biases 0."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def d_loss(real: Tensor, fake: Tensor) -> Tensor:
    # -E log sigmoid(real) - E log(1 - sigmoid(fake))
    return softplus(-real).mean() + softplus(fake).mean()


def g_loss(fake: Tensor) -> Tensor:
    return softplus(-fake).mean()  # -E log sigmoid(fake)


def class_loss(logits: Tensor, y: Tensor, groups: dict[str, list[str]]) -> Tensor:
    """-E log P(y | x), summed over the groups: logits (N, y_dim), y (N, groups); no term where y is -1."""
    heads = logits.split([len(values) for values in groups.values()], 1)
    terms = []
    for head, k in zip(heads, y.T, strict=True):
        terms.append(cross_entropy(head, k, ignore_index=-1, reduction="sum"))
    return sum(terms) / len(y)  # of all images, also those without a term


def train_step(G, D, opt_G, opt_D, data, args) -> dict[str, Tensor]:
    """One update of D and g_steps of G, the first on the noise that D has seen; fakes have the real batch's labels."""
    # (1) D: maximize E log sigmoid(D(x)) + E log(1 - sigmoid(D(G(z, y)))) + w E log P(y | x)
    D.requires_grad_(True)
    x_real, y = next(data)  # this process's share of a batch: (N, C, S, S) in [-1, 1], (N, groups)
    with autocast(args):
        x_fake = G(noise(len(x_real), args), y)  # with gradients for G: (2) backpropagates through it
        # two passes, so that BatchNorm normalizes real and generated images separately
        real, logits = D(x_real)
        fake, _ = D(x_fake.detach())
        class_real = class_loss(logits, y, args.groups)
        loss_D = d_loss(real, fake) + args.cls_weight * class_real
    step(opt_D, loss_D)

    # (2) G: maximize E log sigmoid(D(G(z, y))) + w_g E log P(y | G(z, y))
    D.requires_grad_(False)  # no gradients for weights that are not updated
    for k in range(args.g_steps):
        with autocast(args):
            if k > 0:
                x_fake = G(noise(len(x_real), args), y)
            fake, logits = D(x_fake)
            class_fake = class_loss(logits, y, args.groups)
            loss_G = g_loss(fake) + args.cls_weight_g * class_fake
        step(opt_G, loss_G)
    metrics = {"loss_D": loss_D, "loss_G": loss_G, "class_real": class_real, "class_fake": class_fake}
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


def read_attributes(args, names: list[str]) -> tuple[np.ndarray, Tensor]:
    """Indices (n,) of the images that have a label, and their y (n, groups).

    Sets args.groups, which checkpoints keep. Ends the process if no label has an attribute, or if a resumed run has
    other attributes than its checkpoint.
    """
    rows, found = labels.load_labels(args, names)
    groups = labels.classes(found)
    if not groups:
        common.fail("none of the labels has an attribute, such as a color of hair or eyes: choose another --labels")
    # other groups would give the inputs of G and the outputs of D another meaning
    if args.checkpoint and groups != args.groups:
        common.fail(
            f"the labels have {groups}, but the checkpoint {args.checkpoint} has {args.groups}: "
            f"continue with the same --labels"
        )
    args.groups = groups
    return rows, encode(found, groups)


def wanted(args) -> Tensor:
    """y of the images of --sample: the rows of --sample-labels in turn, or random values.

    With --seeds and --walk, all images have the first of them. There is a batch more than --sample asks for, because
    the last batch is drawn whole.
    """
    count = args.sample + args.batch
    if args.sample_labels:
        source = labels.read_labels(args.sample_labels, groups=args.groups)
        if source.unknown:
            common.fail(f"--sample-labels {args.sample_labels}: the color of {min(source.unknown)!r} is not known")
        found = [row.values for row in source.rows]
        if not any(found):
            common.fail(f"--sample-labels {args.sample_labels} names no attribute: expected {', '.join(args.groups)}")
        y = encode(found, args.groups)
    else:
        # a generator of its own, so that the noise does not depend on the number of images
        own = torch.Generator().manual_seed(args.seed)
        sizes = torch.tensor([len(values) for values in args.groups.values()])
        y = (torch.rand(count, len(sizes), generator=own) * sizes).long()

    if args.seeds or args.walk:
        y = y[:1]
    return y[torch.arange(count) % len(y)]


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


def sample(G_ema: nn.Module, args):
    """Write what the moving average of the checkpoint draws: images and their attributes (labels.csv), or a --walk."""
    saved = common.read_checkpoint(args.checkpoint, args.script)
    G_ema.load_state_dict(saved["state"]["G_ema"])
    G_ema.train(args.sample_mode == "batch")  # in training mode BatchNorm uses the statistics of the batch
    torch.manual_seed(args.seed)
    y = wanted(args)
    rows = [decode(row, args.groups) for row in y.tolist()]
    batches = latents(args)
    y = iter(y.to(args.device))

    def generate() -> Tensor:
        z = next(batches)
        return G_ema(z, torch.stack([next(y) for _ in z]))

    common.write_samples(args, generate, rows)


def main(argv=None) -> dict:
    args = parse_args(argv)
    rank, world = setup(args)
    if not args.sample:  # before the networks, whose shapes depend on the groups
        images, names = common.load_images(args)
        rows, y = read_attributes(args, names)
    torch.manual_seed(args.seed)  # the same initial weights on all ranks
    G, D, G_ema = build(args)
    if args.sample:
        sample(G_ema, args)
        return {"G_ema": G_ema}

    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.beta1, args.beta2), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.beta1, args.beta2), fused=True)
    data = common.Batches(images, args, rank, world, rows, y)
    state = {"G": G, "D": D, "G_ema": G_ema, "opt_G": opt_G, "opt_D": opt_D, "data": data}
    start = resume(state, args) if args.checkpoint else 0

    # in the grid, the images of a column share their z, and those of a row the attributes of one training image
    fixed_z = noise(common.GRID, args)[:8].repeat(8, 1)
    shown = [row * len(y) // 8 for row in range(8)]
    fixed_y = y[shown].repeat_interleave(8, 0).to(args.device)

    def draw() -> Tensor:
        some = torch.randint(len(y), (common.GRID,))
        return G_ema(noise(common.GRID, args), y[some].to(args.device))

    def draw_grid() -> Tensor:
        return G_ema(fixed_z, fixed_y)

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
                measure_statistics(G_ema, draw)
                run.save(state)

    if world > 1:
        dist.destroy_process_group()
    return state


if __name__ == "__main__":
    main()
