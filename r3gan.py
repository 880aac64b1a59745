"""R3GAN - Huang, Gokaslan, Kuleshov, Tompkin 2024, arXiv 2501.05441.

"The GAN is dead; long live the GAN! A Modern GAN Baseline"

    min_D  E softplus(-(D(x) - D(y))) + gamma/2 (E |grad_x D(x)|^2 + E |grad_y D(y)|^2),  y = G(z)
    min_G  E softplus(-(D(y) - D(x)))

What is specific to this file: D compares each generated image with a real one (relativistic pairing), and gradient
penalties keep D's slope small at real images (R1) and at generated images (R2). With both, training converges locally
(section 2). The networks are residual and have no normalization layers. Each block is a 1x1 convolution that expands,
a grouped 3x3 convolution, and a 1x1 projection that starts at zero.

Differs from the authors' code: channels double from the largest map to the smallest, up to 8 times (theirs for FFHQ:
768 from 4 to 32 pixels, then half at each size); batch 64 (FFHQ: 256); no augmentation; G learns from the noise and the
real images that D has just seen; resampling repeats the border of a map (theirs: zeros); the schedules span --anneal
steps (theirs: 20 million images). As there, samples come from an exponential moving average of G's weights (arXiv
1710.10196), but its decay is constant after a short warm-up (FFHQ: a half-life that rises to 500,000 images).

As in that code, learning rates fall to a quarter, and gamma and 1 - beta2 to a tenth, along a cosine, and then stay
there; --anneal should equal --steps. The authors' gamma is 0.05 for CIFAR-10 (32 pixels), and 2 and 150 for FFHQ at 64
and 256.

Two flags save time, both on in the preset. --stem k turns squares of k x k pixels into channels (pixel unshuffle).
--penalty-every k computes R1 and R2 only in every k-th step, multiplied by k (lazy regularization, arXiv 1912.04958).
That is not quite the same under Adam: D then moves more slowly where the penalties dominate.

    python r3gan.py                                               # built-in faces, minutes on a CPU
    python r3gan.py --path data/anime --size 64 --out runs/anime  # any folder of images
    torchrun --nproc-per-node=8 r3gan.py --path data/anime --out runs/anime8

Result of the first command: 16,000 steps in 11 minutes on two CPU cores, torch 2.14.1 (extrapolated from 1,600); of
2,000 samples 92 % ± 3 can be read as a face, with 93 ± 3 of the 132 combinations of hair and eyes (3 seeds: mean ±
standard deviation; read by faces.py). Most other scripts show as many combinations in a third of the time.
"""

import argparse
import copy
import datetime
import math
import os
import zlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import interpolate, softplus

import common

# Without --path, these values replace the defaults: for some minutes on a CPU.
PRESET = {
    "size": 32,
    "width": 32,
    "stem": 2,
    "blocks": [1, 1, 2],
    "batch": 16,
    "steps": 16_000,
    "anneal": 16_000,
    "lr_g": 2e-3,
    "lr_d": 2e-3,
    "gamma": 40.0,
    "penalty_every": 4,
    "log_every": 40,
}
# Flags that change the networks: a checkpoint fits only the values that it was trained with.
ARCHITECTURE = ("size", "channels", "z_dim", "width", "stem", "blocks")


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=f"Without --path, these values replace the defaults: {PRESET}. Flags that are given take precedence.",
        usage="%(prog)s [--path FOLDER] [flags]; --help lists the flags",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    group = parser.add_argument_group("method")
    group.add_argument(
        "--lr-g",
        type=common.between(0.0),
        default=2e-4,
        help="learning rate of G at the start, falling to a quarter; too high and training diverges",
    )
    group.add_argument(
        "--lr-d",
        type=common.between(0.0),
        default=2e-4,
        help="learning rate of D at the start, falling to a quarter; higher makes D stronger against G",
    )
    group.add_argument(
        "--beta1",
        type=common.between(0.0, 0.9999),
        default=0.0,
        help="Adam beta1 (decay of the gradient average); 0.9, Adam's usual value, can make a GAN collapse",
    )
    group.add_argument(
        "--beta2",
        type=common.between(0.0, 0.9999),
        default=0.9,
        help="Adam beta2 (decay of the squared gradients) at the start; 1 - beta2 falls to a tenth",
    )
    group.add_argument(
        "--z-dim", type=common.between(1), default=64, help="length of the latent z; tiny values limit variety"
    )
    group.add_argument(
        "--noise", choices=("normal", "uniform"), default="normal", help="distribution of z: N(0, 1) or U(-1, 1)"
    )
    group.add_argument(
        "--width",
        type=common.between(1),
        default=64,
        help="channels of the largest feature map of G and D; more gives finer images and slower steps",
    )
    group.add_argument(
        "--stem",
        type=int,
        choices=(1, 2, 4),
        default=1,
        help="width of the squares of pixels that become one pixel of the largest map; above 1 is faster",
    )
    group.add_argument(
        "--blocks",
        type=common.between(1),
        nargs="+",
        default=[2],
        help="residual blocks at each map size, largest first; the last number also applies to all smaller maps",
    )
    group.add_argument(
        "--gamma",
        type=common.between(0.0),
        default=2.0,
        help="weight of the gradient penalties R1 and R2 at the start, falling to a tenth; larger images need more",
    )
    group.add_argument(
        "--penalty-every",
        type=common.between(1),
        default=1,
        help="compute the penalties only in every k-th step, multiplied by k; above 1 is faster and less exact. "
        "Make --log-every a multiple of it: in other steps the log has r1 = r2 = 0",
    )
    group.add_argument(
        "--anneal",
        type=common.between(1),
        default=50_000,
        help="steps over which learning rates, beta2 and gamma change; should be as many as --steps",
    )
    group.add_argument(
        "--ema",
        type=common.between(0.0, 1.0),
        default=0.999,
        help="decay of the moving average of G that samples come from; closer to 1 averages over more steps, 0 is off",
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
    common.add_output_flags(parser, __file__, batchnorm=False)
    return common.parse(parser, argv, __file__, PRESET, ARCHITECTURE)


def stages(args) -> list[tuple[int, int]]:
    """(channels, blocks) of each feature map, from the largest, S/stem wide, to the smallest, 4 to 7 pixels wide.

    Channels double as the map halves, up to 8 times the width. --size 32 --width 16 --blocks 1 2 gives
    [(16, 1), (32, 2), (64, 2), (128, 2)]; with --stem 2, there are three.
    """
    levels = int(math.log2(args.size / args.stem / 4)) + 1
    found = []
    for level in range(levels):
        channels = args.width * min(2**level, 8)
        last = len(args.blocks) - 1
        found.append((channels, args.blocks[min(level, last)]))
    return found


class Block(nn.Module):
    """(N, c, s, s) -> (N, c, s, s): x + W3 act W2 act W1 x (section 3); `depth`: number of blocks in the network."""

    def __init__(self, c: int, depth: int):
        super().__init__()
        self.scale = depth**-0.25  # gain of W1 and of W2, for init_weights()
        groups = math.gcd(2 * c, max(1, c // 8))  # of 16 channels each, where the width allows it

        layers = [nn.Conv2d(c, 2 * c, 1), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(2 * c, 2 * c, 3, 1, 1, groups=groups), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(2 * c, c, 1, bias=False)]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class Resample(nn.Module):
    """(N, c_in, s, s) -> (N, c_out, 2s, 2s) or (N, c_out, s/2, s/2)."""

    def __init__(self, c_in: int, c_out: int, up: bool):
        super().__init__()
        self.conv = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1, bias=False)
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            # spreads each pixel with the weights [1, 3, 3, 1] / 4 along each axis
            return interpolate(self.conv(x), scale_factor=2, mode="bilinear")
        # its mirror image, except at the border: averages with the weights [1, 3, 3, 1] / 8
        small = interpolate(x.float(), scale_factor=0.5, mode="bilinear", antialias=True)
        return self.conv(small)


class Generator(nn.Module):
    """Latent z (N, z_dim) -> images (N, C, S, S), without a tanh: files are clipped to [-1, 1]."""

    def __init__(self, args):
        super().__init__()
        levels = stages(args)[::-1]  # from the smallest map to the largest
        depth = sum(blocks for _, blocks in levels)
        base = args.size // args.stem >> (len(levels) - 1)  # of the smallest map; --size 64: 4 -> 8 -> 16 -> 32 -> 64
        c, blocks = levels[0]

        # (N, z_dim) -> (N, c, base, base): a learned map whose channels are scaled by numbers that depend on z
        self.basis = nn.Parameter(torch.randn(c, base, base))
        self.linear = nn.Linear(args.z_dim, c, bias=False)
        layers = [Block(c, depth) for _ in range(blocks)]
        # (N, c, s, s) -> (N, c_out, 2s, 2s), up to (N, width, S/stem, S/stem)
        for c_out, blocks in levels[1:]:
            layers += [Resample(c, c_out, up=True)]
            layers += [Block(c_out, depth) for _ in range(blocks)]
            c = c_out
        # -> (N, C stem^2, S/stem, S/stem) -> (N, C, S, S)
        layers += [nn.Conv2d(c, args.channels * args.stem**2, 1, bias=False), nn.PixelShuffle(args.stem)]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        x = self.basis * self.linear(z)[:, :, None, None]
        if x.device.type != "mps":
            x = x.contiguous(memory_format=torch.channels_last)  # as the weights (see build()), for fast upsampling
        return self.net(x)


class Discriminator(nn.Module):
    """Images (N, C, S, S) -> scores (N,), float32; the mirror image of G."""

    def __init__(self, args):
        super().__init__()
        levels = stages(args)
        depth = sum(blocks for _, blocks in levels)
        base = args.size // args.stem >> (len(levels) - 1)
        c, blocks = levels[0]

        # (N, C, S, S) -> (N, C stem^2, S/stem, S/stem) -> (N, width, S/stem, S/stem)
        layers = [nn.PixelUnshuffle(args.stem), nn.Conv2d(args.channels * args.stem**2, c, 1, bias=False)]
        layers += [Block(c, depth) for _ in range(blocks)]
        # (N, c, s, s) -> (N, c_out, s/2, s/2), down to the smallest map, (N, c, base, base)
        for c_out, blocks in levels[1:]:
            layers += [Resample(c, c_out, up=False)]
            layers += [Block(c_out, depth) for _ in range(blocks)]
            c = c_out
        self.net = nn.Sequential(*layers)
        # (N, c, base, base) -> (N, c) by a depthwise convolution as wide as the map -> (N,)
        self.basis = nn.Parameter(torch.randn(c, base, base) / base)
        self.linear = nn.Linear(c, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x).float()
        # in float32, because bfloat16 would round away the difference between two large scores
        with torch.autocast(x.device.type, enabled=False):
            return self.linear((self.basis * x).sum((2, 3))).flatten()


def init_weights(module: nn.Module):
    """Weights of standard deviation 1 / sqrt(fan-in), which preserves the variance of the features; biases 0.

    A block starts as the identity (Fixup, arXiv 1901.09321).
    """
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        fan_in = module.weight[0].numel()
        nn.init.normal_(module.weight, 0.0, fan_in**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

    # apply() visits a block after its layers: their weights are drawn already, and are only scaled here
    if isinstance(module, Block):
        for layer in (module.net[0], module.net[2]):
            # the gain makes up for leaky ReLU, after which N(0, 1) has a mean square of 0.52
            layer.weight.data *= module.scale * nn.init.calculate_gain("leaky_relu", 0.2)
        nn.init.zeros_(module.net[4].weight)


def d_loss(real: Tensor, fake: Tensor) -> Tensor:
    return softplus(-(real - fake)).mean()  # pairs: -E log sigmoid(D(x) - D(y))


def g_loss(real: Tensor, fake: Tensor) -> Tensor:
    return softplus(-(fake - real)).mean()  # -E log sigmoid(D(y) - D(x))


def zero_centered_penalty(x: Tensor, scores: Tensor) -> Tensor:
    """|grad_x D(x)|^2 of each image (N,): R1 at real images, R2 at generated images (arXiv 1801.04406, section 4.1)."""
    # The gradient of the sum of scores is that of each image's own score, because no layer of D mixes images.
    # create_graph, because the penalty is differentiated once more, with respect to D's weights.
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def annealed(first: float, last: float, i: int, args) -> float:
    """A cosine from `first` at step 0 to `last` at step --anneal, and `last` from there on."""
    share = (1 + math.cos(math.pi * min(1.0, i / args.anneal))) / 2  # from 1 to 0
    return last + (first - last) * share


def train_step(G, D, opt_G, opt_D, data, args, gamma: float) -> dict[str, Tensor]:
    """One update of D and one of G; `gamma` is the weight of R1 and R2 in this step, 0 in a step without them."""
    # (1) D: minimize E softplus(-(D(x) - D(y))) + gamma/2 (E |grad_x D(x)|^2 + E |grad_y D(y)|^2), y = G(z)
    D.requires_grad_(True)
    x_real = next(data)  # this process's share of a batch: (N, C, S, S) in [-1, 1]
    with autocast(args):
        x_fake = G(noise(len(x_real), args)).float()  # with gradients for G: (2) backpropagates through it
    # Outside autocast, so that the penalties are computed in float32. Detached, so that G gets no gradients; with
    # requires_grad, so that the penalties can differentiate with respect to the images. One pass for real and generated
    # images, because no layer of D mixes images.
    images = torch.cat([x_real, x_fake]).detach().requires_grad_(gamma > 0)
    scores = D(images)
    loss_D = d_loss(*scores.chunk(2))
    if gamma:
        r1, r2 = (part.mean() for part in zero_centered_penalty(images, scores).chunk(2))
    else:
        r1 = r2 = loss_D.new_zeros(())
    step(opt_D, loss_D + gamma / 2 * (r1 + r2))  # the log has loss_D without the penalties

    # (2) G: minimize E softplus(-(D(y) - D(x)))
    D.requires_grad_(False)  # no gradients for weights that are not updated
    with autocast(args):
        loss_G = g_loss(D(x_real), D(x_fake))
    step(opt_G, loss_G)
    metrics = {"loss_D": loss_D, "loss_G": loss_G, "r1": r1, "r2": r2}
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


def sample(G_ema: nn.Module, args):
    """Write the images of --sample, --seeds or --walk, drawn by the moving average of the checkpoint."""
    saved = common.read_checkpoint(args.checkpoint, args.script)
    G_ema.load_state_dict(saved["state"]["G_ema"])
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
        return G_ema(fixed_z)

    if args.grid:
        common.write_grid(args, draw_grid)
        return state

    with common.Run(args, data, start, draw_grid, rank) as run:
        run.save(state)  # the start: an --out that cannot be written to is noticed now
        for i in run.steps():
            # A seed for each step and rank, so that a resumed run draws the same noise. They are hashed, because
            # torch's CPU generator uses only 32 bits of a seed, and a sum would repeat the noise of other ranks.
            torch.manual_seed(zlib.crc32(f"{args.seed} {i} {rank}".encode()))
            # learning rates fall to a quarter, 1 - beta2 and gamma to a tenth
            beta2 = annealed(args.beta2, 1 - (1 - args.beta2) / 10, i, args)
            for opt, lr in ((opt_G, args.lr_g), (opt_D, args.lr_d)):
                opt.param_groups[0]["lr"] = annealed(lr, lr / 4, i, args)
                opt.param_groups[0]["betas"] = (args.beta1, beta2)
            gamma = 0.0
            if (i + 1) % args.penalty_every == 0:
                gamma = args.penalty_every * annealed(args.gamma, args.gamma / 10, i, args)
            metrics = train_step(G, D, opt_G, opt_D, data, args, gamma)

            # warm-up: at first the average spans about a tenth of the steps so far, to forget the random start
            decay = min(args.ema, (1 + i) / (10 + i))
            update_ema(G_ema, G, decay)
            run.log(metrics)
            if run.due():  # every --save-every steps, at the end, and after Ctrl-C
                run.save(state)

    if world > 1:
        dist.destroy_process_group()
    return state


if __name__ == "__main__":
    main()
