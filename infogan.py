"""InfoGAN - Chen et al. 2016, arXiv 1606.03657.

"InfoGAN: Interpretable Representation Learning by Information Maximizing Generative Adversarial Nets"

    min_{G, Q} max_D  V(D, G) - lambda L_I        L_I = E log Q(c | G(z, c)) + H(c) <= I(c; G(z, c))

What is specific to this file: in addition to z, G gets a code c: a category and numbers in [-1, 1]. Q, a second head on
the feature maps of D, must recover the code from the image. So the code can come to stand for what is easy to see in
images, although nobody labeled them.

Q(c | x) is a softmax for the category and a Gaussian of standard deviation 1 for each number: -log Q is cross-entropy
and half the squared error. L_I is in D's step and in G's step, as in the authors' code: the weights of Q belong to D's
optimizer.

Differs from the paper: z is normal (authors' code: uniform, with which G showed little but the code). D has spectral
normalization, as in sngan.py (paper: BatchNorm), and so has Q: only then did the category become visible on anime
faces. Learning rates and Adam's betas are also those of sngan.py: with the authors' (1e-3 for G, 2e-4 for D; 0.5 and
0.999), training on anime faces collapsed. The preset is close to the authors' values (all measured: README,
Experiments).

As in the authors' code, G learns with the non-saturating loss (or --adv lsgan), but from the noise and codes that D
has just seen (theirs: new ones). Q is one linear layer. As in their code for digits, the code is one category and two
numbers, and the standard deviation is not learned; the category has 8 values, the columns of a grid (digits: 10; the
paper's faces: ten categories of 10 values, no numbers). lambda is 0.1 for the numbers (digits: 1). Otherwise, the
networks are DCGAN's. Samples come from an exponential moving average of G's weights (arXiv 1710.10196).

    python infogan.py                                               # built-in faces, a few minutes on a CPU
    python infogan.py --path data/anime --size 64 --out runs/anime  # any folder of images, no labels
    torchrun --nproc-per-node=8 infogan.py --path data/anime --out runs/anime8

Result of the first command: 10,000 steps in 2.1 minutes on two CPU cores, torch 2.14.1; of 2,000 samples 91 % ± 3 can
be read as a face, with 127 ± 3 of the 132 combinations of hair and eyes; normalized mutual information of the category
and the attribute that it matches best: 0.56 ± 0.05 (3 seeds: mean ± standard deviation; read by faces.py).
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
from torch.nn.functional import conv2d, cross_entropy, one_hot, softplus
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

import common

# Without --path, these values replace the defaults: for a few minutes on a CPU.
PRESET = {
    "size": 32,
    "width": 32,
    "batch": 16,
    "steps": 10_000,
    "lr_g": 1e-3,
    "lr_d": 3e-4,
    "beta1": 0.5,
    "beta2": 0.999,
}
# Flags that change the networks: a checkpoint fits only the values that it was trained with.
ARCHITECTURE = ("size", "channels", "z_dim", "width", "act", "categories", "codes")


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
        default=0.0,
        help="Adam beta1 (decay of the gradient average); 0.9, Adam's usual value, can make a GAN collapse",
    )
    group.add_argument(
        "--beta2", type=common.between(0.0, 0.9999), default=0.9, help="Adam beta2 (decay of the squared gradients)"
    )
    group.add_argument(
        "--z-dim", type=common.between(1), default=62, help="length of the latent z; tiny values limit variety"
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
        "--categories", type=common.between(2), default=8, help="number of values of the categorical code"
    )
    group.add_argument("--codes", type=common.between(1), default=2, help="number of continuous codes")
    group.add_argument(
        "--info-cat",
        type=common.between(0.0),
        default=1.0,
        help="lambda of the categorical code; higher makes the category easier to recover from the image",
    )
    group.add_argument(
        "--info-con",
        type=common.between(0.0),
        default=0.1,
        help="lambda of the continuous codes; higher makes the numbers easier to recover from the image",
    )
    group.add_argument(
        "--adv",
        choices=("ns", "lsgan"),
        default="ns",
        help="adversarial loss: non-saturating (ns) or least squares (lsgan)",
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
        help="seed of weights, noise and order of images; --sample: of noise and codes; --grid: of noise",
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
    return common.parse(parser, argv, __file__, PRESET, ARCHITECTURE)


def widths(args) -> list[int]:
    """Channels of the feature maps, from S/2 x S/2 pixels to the smallest (4 x 4 to 7 x 7, depending on --size).

    They double where the resolution halves, up to 8 times --width: --size 64 --width 64 gives [64, 128, 256, 512].
    """
    levels = int(math.log2(args.size / 4))
    return [args.width * min(2**level, 8) for level in range(levels)]


def draw_codes(n: int, args) -> Tensor:
    """n codes c (n, categories + codes): a one-hot category, all equally likely, and numbers from U(-1, 1)."""
    category = torch.randint(args.categories, (n,), device=args.device)
    numbers = torch.empty(n, args.codes, device=args.device).uniform_(-1, 1)
    return torch.cat([one_hot(category, args.categories), numbers], 1)


def describe(c: list[float], args) -> dict[str, str]:
    """One code: [0, 1, 0, 0.5, -0.25] with 3 categories -> {"category": "1", "code1": "0.5000", "code2": "-0.2500"}."""
    row = {"category": str(c.index(1))}
    for i, number in enumerate(c[args.categories :], 1):
        row[f"code{i}"] = f"{number:.4f}"
    return row


def grid_codes(args) -> Tensor:
    """c (64, categories + codes) of the grid, row by row.

    Rows 1 to 4 have the first 8 categories, one in each column, with all numbers 0. In each of rows 5 to 8, one number
    goes from -1 to 1; the category and the other numbers stay the same.
    """
    c = torch.zeros(8, 8, args.categories + args.codes)  # row, column, code
    for column in range(8):
        c[:4, column, column % args.categories] = 1
    for row in range(4, 8):
        c[row, :, row % args.categories] = 1
        number = args.categories + (row - 4) % args.codes
        c[row, :, number] = torch.linspace(-1, 1, 8)
    return c.flatten(0, 1).to(args.device)


class Generator(nn.Module):
    """Latent z (N, z_dim) and codes c (N, categories + codes) -> images (N, C, S, S) in [-1, 1]."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)[::-1]  # from the lowest resolution to the highest
        base = args.size >> len(w)  # the lowest resolution, 4 to 7; --size 64: 4 -> 8 -> 16 -> 32 -> 64
        act = nn.ReLU() if args.act == "relu" else nn.LeakyReLU(0.2)
        c_dim = args.categories + args.codes

        # (N, z_dim + c_dim, 1, 1) -> (N, w[0], base, base)
        layers = [nn.ConvTranspose2d(args.z_dim + c_dim, w[0], base, bias=False), nn.BatchNorm2d(w[0]), act]
        # (N, c_in, s, s) -> (N, c_out, 2s, 2s), up to (N, w[-1], S/2, S/2); kernel 4, stride 2, padding 1
        for c_in, c_out in itertools.pairwise(w):
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), act]
        # (N, w[-1], S/2, S/2) -> (N, C, S, S) in [-1, 1]
        layers += [nn.ConvTranspose2d(w[-1], args.channels, 4, 2, 1), nn.Tanh()]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        z = torch.cat([z, c], 1)
        return self.net(z[:, :, None, None])


class SNConv2d(nn.Conv2d):
    """A convolution whose spectrally normalized weight is computed in float32, even under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight  # each access divides by sigma, in training after one more power iteration
        return conv2d(x, weight, self.bias, self.stride, self.padding)


def conv(*shape) -> nn.Module:
    """A convolution with spectral normalization.

    Initialized before it is wrapped: afterward, `weight` is computed at each access, and initializing it has no effect.
    """
    return spectral_norm(SNConv2d(*shape).apply(init_weights))


class Discriminator(nn.Module):
    """Images (N, C, S, S) in [-1, 1] -> scores (N,), Q's logits and means (N, categories + codes); float32."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)
        base = args.size >> len(w)

        # (N, C, S, S) -> (N, w[0], S/2, S/2)
        layers = [conv(args.channels, w[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        # (N, c_in, s, s) -> (N, c_out, s/2, s/2), down to (N, w[-1], base, base)
        for c_in, c_out in itertools.pairwise(w):
            layers += [conv(c_in, c_out, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers)
        # (N, w[-1], base, base) -> (N, 1, 1, 1)
        self.score = conv(w[-1], 1, base)
        # (N, w[-1], base, base) -> (N, categories + codes, 1, 1)
        self.q = conv(w[-1], args.categories + args.codes, base)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.net(x).float()
        # in float32, because bfloat16 would round away the difference between two large scores
        with torch.autocast(x.device.type, enabled=False):
            return self.score(x).flatten(), self.q(x).flatten(1)


def init_weights(module: nn.Module):
    """Weights N(0, 0.02) (DCGAN, section 4); BatchNorm: gains N(1, 0.02), biases 0 (dcgan.torch); other biases 0."""
    if is_parametrized(module):
        return  # see conv()
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def d_loss(real: Tensor, fake: Tensor, adv: str = "ns") -> Tensor:
    if adv == "lsgan":
        return ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2
    # -E log sigmoid(real) - E log(1 - sigmoid(fake))
    return softplus(-real).mean() + softplus(fake).mean()


def g_loss(fake: Tensor, adv: str = "ns") -> Tensor:
    if adv == "lsgan":
        return ((fake - 1) ** 2).mean() / 2
    return softplus(-fake).mean()  # -E log sigmoid(fake)


def info_loss(q: Tensor, c: Tensor, args) -> tuple[Tensor, Tensor, Tensor]:
    """-lambda E log Q(c | x) without constants; cross-entropy of the category; mean squared error of the numbers.

    q (N, categories + codes) is what Q says, c (N, categories + codes) the codes that the images were made from.
    """
    k = args.categories
    category = cross_entropy(q[:, :k], c[:, :k])
    continuous = (q[:, k:] - c[:, k:]).square().mean()
    # -log of the Gaussians is half the sum of the squared errors: `codes` times half their mean
    loss_Q = args.info_cat * category + args.info_con * args.codes * continuous / 2
    return loss_Q, category, continuous


def train_step(G, D, opt_G, opt_D, data, args) -> dict[str, Tensor]:
    """One update of D and Q, one of G on the noise and codes that they have seen."""
    # (1) D and Q: maximize E log sigmoid(D(x)) + E log(1 - sigmoid(D(G(z, c)))) + lambda E log Q(c | G(z, c))
    D.requires_grad_(True)
    x_real = next(data)  # this process's share of a batch: (N, C, S, S) in [-1, 1]
    c = draw_codes(len(x_real), args)
    with autocast(args):
        x_fake = G(noise(len(x_real), args), c)  # with gradients for G: (2) backpropagates through it
        real, _ = D(x_real)
        fake, q = D(x_fake.detach())
        loss_Q, _, _ = info_loss(q, c, args)
        loss_D = d_loss(real, fake, args.adv) + loss_Q
    step(opt_D, loss_D)

    # (2) G: maximize E log sigmoid(D(G(z, c))) + lambda E log Q(c | G(z, c))
    D.requires_grad_(False)  # no gradients for weights that are not updated
    with autocast(args):
        fake, q = D(x_fake)
        loss_Q, category, continuous = info_loss(q, c, args)
        loss_G = g_loss(fake, args.adv) + loss_Q
    step(opt_G, loss_G)
    metrics = {"loss_D": loss_D, "loss_G": loss_G, "category": category, "continuous": continuous}
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


def walk_codes(args) -> tuple[Tensor, Tensor]:
    """z and c of --walk: always the same, but for the first number of c, which goes from 1 to -1 and back."""
    z = noise(1, args).repeat(args.walk, 1)
    c = draw_codes(1, args).repeat(args.walk, 1)
    angle = torch.arange(args.walk, device=args.device) * (2 * math.pi / args.walk)
    c[:, args.categories] = angle.cos()
    return z, c


def sample(G_ema: nn.Module, args):
    """Write what the moving average of the checkpoint draws: images and their codes (labels.csv), or a --walk."""
    saved = common.read_checkpoint(args.checkpoint, args.script)
    G_ema.load_state_dict(saved["state"]["G_ema"])
    G_ema.train(args.sample_mode == "batch")  # in training mode BatchNorm uses the statistics of the batch
    torch.manual_seed(args.seed)
    if args.walk:
        z, c = walk_codes(args)
        pairs = zip(z.split(args.batch), c.split(args.batch), strict=True)
        common.write_samples(args, lambda: G_ema(*next(pairs)))
        return
    batches = latents(args)
    drawn = []  # rows of labels.csv, which grow as images are drawn

    def generate() -> Tensor:
        z = next(batches)
        c = draw_codes(len(z), args)
        drawn.extend(describe(row, args) for row in c.tolist())
        return G_ema(z, c)

    common.write_samples(args, generate, drawn)


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

    # in the grid, the images of a row share their z, and only their codes differ
    fixed_z = noise(common.GRID, args)[::8].repeat_interleave(8, 0)
    fixed_c = grid_codes(args)

    def draw_grid() -> Tensor:
        return G_ema(fixed_z, fixed_c)

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
                measure_statistics(G_ema, lambda: G_ema(noise(common.GRID, args), draw_codes(common.GRID, args)))
                run.save(state)

    if world > 1:
        dist.destroy_process_group()
    return state


if __name__ == "__main__":
    main()
