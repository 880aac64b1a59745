"""CycleGAN - Zhu, Park, Isola, Efros 2017, arXiv 1703.10593.

"Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks"

    min_G  E (D_B(G_AB(a)) - 1)^2 + E (D_A(G_BA(b)) - 1)^2 + 10 (E |G_BA(G_AB(a)) - a| + E |G_AB(G_BA(b)) - b|)
           + 5 (E |G_AB(b) - b| + E |G_BA(a) - a|)
    min_D  (E (D_B(b) - 1)^2 + E D_B(G_AB(a))^2) / 2, and the same for D_A

What is specific to this file: two folders of images without pairs, a generator each way, and a cycle that must lead
back to the image. D judges overlapping squares of 70 x 70 pixels, and is shown older generated images too.

The generator's layers have the names and the order of the authors' PyTorch code, so that their published weights load
(--weights). Identity terms are on, as in that code (paper: for paintings only). Differs from it: the rates are flags in
steps, 100,000 and 100,000 (authors: 100 and 100 epochs, of 1,334 steps on horse2zebra), and end at 0; images are cut to
the central square (authors: squeezed); grids and --translate use a moving average of the generators (arXiv 1710.10196).

    python cyclegan.py                                             # black-haired to blonde faces, minutes on a CPU
    python cyclegan.py --path data/horse2zebra                     # trainA trainB, and testA testB if there are any
    python cyclegan.py --translate photos --out zebras             # images of any size; model: runs/cyclegan/last.pt
    python cyclegan.py --translate photos --out zebras --weights latest_net_G.pth

Result of the first command: 4,400 steps in 7.2 minutes on two CPU cores, torch 2.14.1; of 500 other black-haired faces
100 % read blonde afterwards, 96 % keep the colour of their eyes, 94 % their glasses, 100 % their skin (one seed).
"""

import argparse
import copy
import os
import zlib

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import l1_loss, pad, softplus

import common

# what replaces the defaults without --path
PRESET = {"size": 32, "width": 32, "blocks": 1, "batch": 2, "lr_g": 2e-3, "lr_d": 4e-4, "save_every": 500}
PRESET |= {"steps": 4400, "constant": 2200, "decay": 2200}
ARCHITECTURE = ("channels", "width", "blocks")  # what a checkpoint must agree on


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
    group.add_argument("--width", type=common.between(1), default=64, help="channels of the largest maps of G and D")
    group.add_argument("--blocks", type=common.between(0), default=0, help="residual blocks of G; 0: 9, below 256 px 6")
    group.add_argument("--gan-mode", choices=("lsgan", "bce"), default="lsgan", help="least squares or cross-entropy")
    group.add_argument("--cycle", type=common.between(0.0), default=10.0, help="weight of the way there and back")
    group.add_argument("--identity", type=common.between(0.0), default=0.5, help="weight of G_AB(b) = b, times --cycle")
    group.add_argument("--pool", type=common.between(0), default=50, help="generated images kept for D")
    group.add_argument("--constant", type=common.between(0), default=100_000, help="steps at the full learning rates")
    group.add_argument("--decay", type=common.between(1), default=100_000, help="steps from there to a rate of 0")
    group.add_argument("--load-size", type=common.between(0), default=0, help="squares are cut from; 0: 286/256 --size")
    group.add_argument("--ema", type=common.between(0.0, 1.0), default=0.999, help="decay of the moving average of G")
    group = parser.add_argument_group("run")
    group.add_argument("--steps", type=common.between(1), default=200_000, help="steps of training in total")
    group.add_argument("--batch", type=common.between(1), default=1, help="of each side, over all processes")
    group.add_argument(
        "--seed", type=common.between(0, 2**32 - 1), default=0, help="of weights, noise and order; of --sample"
    )
    group.add_argument("--device", default="auto", help="auto (cuda, mps, cpu) or a torch device")
    group.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast on CUDA")
    common.add_data_flags(parser, path="folder with trainA and trainB, perhaps testA and testB")
    common.add_output_flags(parser, __file__, batchnorm=False)
    parser.add_argument("--translate", metavar="FOLDER", help="write its images to --out, translated from A to B")
    parser.add_argument("--reverse", action="store_true", help="translate from B to A")
    parser.add_argument("--weights", metavar="FILE", help="generator of the authors' project, for --translate")
    parser.set_defaults(size=256, flip=True, save_every=5000)
    asked = parser.parse_args(argv)
    if (asked.weights or asked.reverse) and (not asked.translate or (asked.weights and asked.reverse)):
        parser.error(
            "--weights, a generator that goes one way, or --reverse, need --translate: name a folder of images"
        )
    if asked.translate:  # as --sample: flags come from the checkpoint
        run = asked.out if os.path.exists(f"{asked.out}/last.pt") else parser.get_default("out")
        parser.set_defaults(sample=1, checkpoint=f"{run}/last.pt")
    args = asked if asked.weights else common.parse(parser, argv, __file__, PRESET, ARCHITECTURE)
    args.blocks = args.blocks or (9 if args.size >= 256 else 6)
    if not args.translate and (args.size < 24 or 0 < args.load_size < args.size):
        parser.error(f"--size {args.size} must be at least 24, and at most --load-size {args.load_size}")
    if args.steps > args.constant + args.decay:
        parser.error(f"--steps {args.steps} would end at a rate of 0: make --constant or --decay larger")
    return args


class Block(nn.Module):
    """(N, C, H, W) -> (N, C, H, W): x + two convolutions."""

    def __init__(self, c: int):
        super().__init__()
        layers = [nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), nn.InstanceNorm2d(c), nn.ReLU()]
        self.conv_block = nn.Sequential(*layers, nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), nn.InstanceNorm2d(c))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Generator(nn.Module):
    """Images (N, C, H, W) in [-1, 1] -> (N, C, H, W) in [-1, 1]; layers have the names of the authors' code."""

    def __init__(self, args):
        super().__init__()
        w = args.width
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(args.channels, w, 7), nn.InstanceNorm2d(w), nn.ReLU()]
        for c in (w, 2 * w):  # (N, w, H, W) -> (N, 2w, H/2, W/2) -> (N, 4w, H/4, W/4)
            layers += [nn.Conv2d(c, 2 * c, 3, 2, 1), nn.InstanceNorm2d(2 * c), nn.ReLU()]
        layers += [Block(4 * w) for _ in range(args.blocks)]
        for c in (4 * w, 2 * w):  # back to (N, w, H, W)
            layers += [nn.ConvTranspose2d(c, c // 2, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(c // 2), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(w, args.channels, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        return self.model(pad(x, (0, -w % 4, 0, -h % 4), mode="replicate"))[:, :, :h, :w]  # multiples of 4


class Discriminator(nn.Module):
    """Images (N, C, H, W) in [-1, 1] -> scores (N, squares) of overlapping squares of 70 x 70 pixels, float32."""

    def __init__(self, args):
        super().__init__()
        w = args.width
        layers = [nn.Conv2d(args.channels, w, 4, 2, 1), nn.LeakyReLU(0.2)]  # (N, w, H/2, W/2)
        for c, stride in ((w, 2), (2 * w, 2), (4 * w, 1)):  # to (N, 8w, H/8 - 1, W/8 - 1)
            layers += [nn.Conv2d(c, 2 * c, 4, stride, 1), nn.InstanceNorm2d(2 * c), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(8 * w, 1, 4, 1, 1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).float()


def init_weights(module: nn.Module):
    """Weights N(0, 0.02), biases 0 (section 7.1 and the authors' code)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        nn.init.zeros_(module.bias)


def d_loss(real: Tensor, fake: Tensor, mode: str = "lsgan") -> Tensor:
    """Halved, which slows D down against G (section 7.1)."""
    if mode == "lsgan":
        return (((real - 1) ** 2).mean() + (fake**2).mean()) / 2
    return (softplus(-real).mean() + softplus(fake).mean()) / 2  # -E log sigmoid(real) - E log(1 - sigmoid(fake))


def g_loss(fake: Tensor, mode: str = "lsgan") -> Tensor:
    return ((fake - 1) ** 2).mean() if mode == "lsgan" else softplus(-fake).mean()  # bce: -E log sigmoid(fake)


class Pool:
    """Up to --pool earlier fakes, for D (Shrivastava et al. 2017): a new one is shown, or half the time an older one.

    All processes have the same pool: each new image goes into it, and each process gets its share of what is shown. The
    pools of A and B toss the same coins (authors: their own).
    """

    def __init__(self, args):
        self.size, self.seed, self.seen, self.images = args.pool, args.seed, 0, torch.empty(0)

    def state_dict(self) -> dict:
        return {"images": self.images, "seen": self.seen}

    def load_state_dict(self, state: dict):
        self.images, self.seen = state["images"], state["seen"]

    def query(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> N images without graph; an older one leaves when it is shown, and x takes its place."""
        x, world = x.detach().float().contiguous(), dist.get_world_size() if dist.is_initialized() else 1
        if world > 1:
            x, mine = x.new_empty(world * len(x), *x.shape[1:]), x
            dist.all_gather_into_tensor(x, mine)
        shown, coins = [], torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {self.seen}".encode()))
        fits = self.images.shape[1:] == x.shape[1:]  # not at first, nor after a change of --size
        self.images, self.seen = self.images.to(x.device) if fits else x[:0], self.seen + len(x)
        for image in x:
            k = int(torch.randint(max(1, self.size), (), generator=coins))
            if len(self.images) < self.size:
                self.images = torch.cat([self.images, image[None]])
            elif self.size and torch.rand((), generator=coins) < 0.5:
                image, self.images[k] = self.images[k].clone(), image
            shown.append(image)
        return torch.stack(shown).chunk(world)[dist.get_rank() if world > 1 else 0]


def cut(x: Tensor, size: int) -> Tensor:
    """(N, C, L, L) -> (N, C, size, size): a square from each image, at random."""
    corners = torch.randint(x.shape[2] - size + 1, (len(x), 2)).tolist()
    return torch.stack([image[:, i : i + size, j : j + size] for image, (i, j) in zip(x, corners, strict=True)])


def rate(step: int, args) -> float:
    """Share of the learning rate: 1 for --constant steps, then linearly to 0 over --decay steps."""
    return 1 - min(1.0, max(0, step - args.constant) / args.decay)


def train_step(G, D, opt_G, opt_D, data, pools, args) -> dict[str, Tensor]:
    """One update of both generators, then one of both discriminators on images of the pools; `data` is A's and B's."""
    # (1) G: minimise E (D_B(G_AB(a)) - 1)^2 + cycle E |G_BA(G_AB(a)) - a| + cycle identity E |G_AB(b) - b|, and back
    a, b = (cut(next(images), args.size) for images in data)
    G_AB, G_BA, D_A, D_B = G["AB"], G["BA"], D["A"], D["B"]
    D.requires_grad_(False)  # no gradients for weights that are not updated
    with autocast(args):
        fake_b, same_b = G_AB(torch.cat([a, b])).chunk(2)  # together: InstanceNorm looks at one image at a time
        fake_a, same_a = G_BA(torch.cat([b, a])).chunk(2)
        adversarial = g_loss(D_A(fake_a), args.gan_mode) + g_loss(D_B(fake_b), args.gan_mode)
        cycle = l1_loss(G_BA(fake_b), a) + l1_loss(G_AB(fake_a), b)
        identity = l1_loss(same_a, a) + l1_loss(same_b, b)  # in the log even at a weight of 0
        loss_G = adversarial + args.cycle * (cycle + args.identity * identity)
    step(opt_G, loss_G)

    # (2) D: minimise (E (D_B(b) - 1)^2 + E D_B(G_AB(a))^2) / 2, and the same for D_A
    D.requires_grad_(True)
    old_a, old_b = pools["A"].query(fake_a), pools["B"].query(fake_b)  # without graph
    with autocast(args):
        scores_a, scores_b = D_A(torch.cat([a, old_a])), D_B(torch.cat([b, old_b]))
        loss_D = d_loss(*scores_a.chunk(2), args.gan_mode) + d_loss(*scores_b.chunk(2), args.gan_mode)
    step(opt_D, loss_D)
    metrics = {"loss_D": loss_D, "loss_G": loss_G, "adversarial": adversarial, "cycle": cycle}
    return {name: value.detach() for name, value in (metrics | {"identity": identity}).items()}


def domain(args, side: str, rank: int, world: int) -> tuple[common.Batches, Tensor]:
    """Endless batches (n, C, L, L) of side A or B, and 8 images (8, C, S, S) to look at, of testA or testB if any."""
    load = args.load_size or args.size * 286 // 256
    other = {"size": load, "seed": 2 * args.seed + (side == "B"), "labels": None}  # A and B are drawn independently
    if args.path:
        other["path"], test = (f"{args.path}/{name}{side}" for name in ("train", "test"))
        if not os.path.isdir(other["path"]):
            common.fail(f"--path {args.path} needs two folders of images, trainA and trainB: there is no train{side}")
    mine = argparse.Namespace(**vars(args) | other)
    images, names = common.load_images(mine)
    rows, edge = np.arange(len(images)), (load - args.size) // 2
    if args.path is None:
        hair = ("hair", {"A": "black", "B": "blonde"}[side])
        rows = np.array([i for i, label in enumerate(common.load_labels(mine, names)[1]) if hair in label])
    look = images[rows[:8], :, edge : edge + args.size, edge : edge + args.size]
    if args.path and common.find_images(test, args.out):
        look = common.load_images(argparse.Namespace(**vars(args) | {"path": test, "batch": 1}))[0]
    look = common.normalise(torch.from_numpy(look[np.arange(8) % len(look)])).to(args.device)
    return common.Batches(images, mine, rank, world, rows), look


@torch.no_grad()
def translate(args):
    """The images of --translate through a generator, to --out, or if that is a run's folder to AtoB or BtoA in it."""
    if args.weights:
        try:
            weights = torch.load(args.weights, map_location="cpu", weights_only=True)
            weights = {k: v for k, v in weights.items() if k.endswith(("weight", "bias"))}  # no running statistics
            args.width, args.channels = weights["model.1.weight"].shape[:2]
            args.blocks = sum(key.endswith("conv_block.1.weight") for key in weights)
            (G := Generator(args)).load_state_dict(weights)
        except Exception as error:  # whatever the file holds instead, the user needs the same sentence
            common.fail(f"--weights {args.weights} is no generator of the authors' code ({type(error).__name__})")
    else:
        G, way = Generator(args), "BA." if args.reverse else "AB."
        weights = common.read_checkpoint(args.checkpoint, args.script)["state"]["G_ema"]
        G.load_state_dict({key.removeprefix(way): value for key, value in weights.items() if key.startswith(way)})
    G.to(args.device)
    run = os.path.exists(f"{args.out}/last.pt") or args.out == "runs/cyclegan"
    out = f"{args.out}/{'BtoA' if args.reverse else 'AtoB'}" if run else args.out
    common.translate_folder(args, out, lambda x: G(x.to(args.device)))


# --- plumbing: the same text in every script (tests/test_siblings.py) ---


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
    if args.translate:
        return translate(args)
    torch.manual_seed(args.seed)  # the same weights on all ranks
    layout = torch.contiguous_format if args.device == "mps" else torch.channels_last  # wrong gradients: pytorch#175189
    G = nn.ModuleDict({way: Generator(args) for way in ("AB", "BA")}).apply(init_weights)
    D = nn.ModuleDict({side: Discriminator(args) for side in "AB"}).apply(init_weights)
    G, D = (net.to(args.device, memory_format=layout) for net in (G, D))
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    (data_A, a), (data_B, b) = (domain(args, side, rank, world) for side in "AB")
    if args.sample:
        G_ema.load_state_dict(common.read_checkpoint(args.checkpoint, args.script)["state"]["G_ema"])
        torch.manual_seed(args.seed)
        common.write_samples(args, lambda: G_ema["AB"](cut(next(data_A), args.size)))
        return {"G_ema": G_ema}

    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.beta1, args.beta2), fused="cuda" in args.device)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.beta1, args.beta2), fused="cuda" in args.device)
    pools = {side: Pool(args) for side in "AB"}
    state = {"G": G, "D": D, "G_ema": G_ema, "opt_G": opt_G, "opt_D": opt_D}
    state |= {"data": data_A, "data_B": data_B, "pool_A": pools["A"], "pool_B": pools["B"]}
    start = 0
    if args.resume:
        saved = common.read_checkpoint(args.checkpoint, args.script)
        start = saved["step"]
        for name, values in saved["state"].items():
            if "param_groups" in values:  # learning rates, betas and kernels are those of this start
                values["param_groups"] = state[name].state_dict()["param_groups"]
            state[name].load_state_dict(values)

    def grid():
        fake_b, fake_a = G_ema["AB"](a), G_ema["BA"](b)
        return torch.cat([a, fake_b, G_ema["BA"](fake_b), b, fake_a, G_ema["AB"](fake_a)])

    with common.Run(args, data_A, start, grid, rank, diversity=False) as run:
        run.save(state)
        for i in run.steps():
            # a resumed run draws the same noise; mixed, because torch's CPU generator takes only 32 bits of a seed
            torch.manual_seed(zlib.crc32(f"{args.seed} {i} {rank}".encode()))
            for opt, lr in ((opt_G, args.lr_g), (opt_D, args.lr_d)):
                opt.param_groups[0]["lr"] = lr * rate(i, args)
            metrics = train_step(G, D, opt_G, opt_D, (data_A, data_B), pools, args)
            update_ema(G_ema, G, min(args.ema, (1 + i) / (10 + i)))  # warm-up: forget the random start soon
            run.log(metrics)
            if run.due():
                run.save(state)
    if world > 1:
        dist.destroy_process_group()
    return state


if __name__ == "__main__":
    main()
