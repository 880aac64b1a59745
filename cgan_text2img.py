"""GAN-CLS - Reed et al. 2016, "Generative Adversarial Text to Image Synthesis", arXiv 1605.05396.

    max_D  E log s(D(x, t)) + (E log(1 - s(D(x, t_wrong))) + E log(1 - s(D(G(z, t), t)))) / 2
    max_G  E log s(D(G(z, t), t))                                                              with s the sigmoid

What is specific to this file: images have captions t. G takes an embedding of t beside z, and D one beside its smallest
maps. D learns from three kinds of pairs (Algorithm 1): a real image with its caption is right; a real image with
another caption, and a generated image, are wrong. So it learns to read, and G to obey.

Differs from the paper: the text encoder is not trained beforehand but with the networks, one in G, one in D: the mean
of learned vectors of the caption's words and pairs of neighbouring words, because a bag of words alone cannot tell
"blue hair red eyes" from "red hair blue eyes"; --embeddings takes vectors of any other encoder. Networks are DCGAN's
(authors: with residual blocks). Samples come from a moving average of G (arXiv 1710.10196), for the training's captions
in turn. Off by default, from a student's report: a fourth pair (--wrong-image: a caption with another real image),
smoothing (--real-label 0.9), and G pulled to the real image, in D's verdict (--l2 100) and in pixels (--l1 50).

    python cgan_text2img.py                                              # built-in faces, minutes on a CPU
    python cgan_text2img.py --path data/faces --labels data/faces/tags.csv --out runs/tags     # painted by faces.py
    python cgan_text2img.py --prompt "blue hair red eyes"                # five images, from the checkpoint

Result of the first command: 10,000 steps in 7.8 minutes on two CPU cores, torch 2.14.1; of 2,000 samples 99 % can
be read as a face; hair is as asked in 100 %, eyes are in 93 % (one seed).
"""

import argparse
import copy
import itertools
import math
import os
import re
import zlib

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

import common

# what replaces the defaults without --path
PRESET = {"size": 32, "width": 32, "batch": 16, "steps": 10_000, "lr_g": 5e-4, "lr_d": 5e-4}
ARCHITECTURE = ("size", "channels", "z_dim", "width", "act", "words", "text_dim")  # what a checkpoint must agree on


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
    group.add_argument("--real-label", type=common.between(0.0, 1.0), default=1.0, help="target of real pairs in D")
    group.add_argument("--wrong-image", action="store_true", help="a fourth term of D: the caption, another real image")
    group.add_argument("--l2", type=common.between(0.0), default=0.0, help="G: weight of (s(D(x)) - s(D(G(z))))^2")
    group.add_argument("--l1", type=common.between(0.0), default=0.0, help="G: weight of |G(z, t) - x|")
    group.add_argument("--embeddings", metavar="FILE", help=".npy, row i for row i of --labels; then no prompts")
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
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="draw it; may be repeated (--sample of each)")
    parser.add_argument("--prompts", metavar="FILE", help="draw its captions, lines of id,caption")
    parser.set_defaults(words=[], text_dim=0, captions=[])
    if (asked := parser.parse_args(argv)).prompt or asked.prompts:
        parser.set_defaults(sample=5)
    return common.parse(parser, argv, __file__, PRESET, ARCHITECTURE)


def widths(args) -> list[int]:
    """Channels from the largest map (S/2 pixels wide) to the smallest (4 to 7): w, 2w, 4w, 8w, 8w, ..."""
    return [args.width * min(2**level, 8) for level in range(int(math.log2(args.size / 4)))]


def split(caption: str) -> list[str]:
    """Words and pairs of neighbouring words: "blue hair" -> ["blue", "hair", "blue hair"]."""
    words = re.findall(r"\w+", caption.lower())
    return words + [" ".join(pair) for pair in itertools.pairwise(words)]


def encode(captions: list[str], args) -> Tensor:
    """t (N, L) int64: the places of a caption's words and pairs in args.words from 1 on, 0 behind its end."""
    place = {word: i for i, word in enumerate(args.words, 1)}
    for caption in captions:
        if unknown := set(re.findall(r"\w+", caption.lower()) or [""]) - place.keys():
            common.fail(f"{min(unknown)!r} in {caption!r} is no word of the captions of the training")
    rows = [torch.tensor([place[part] for part in split(caption) if part in place]) for caption in captions]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def wanted(args) -> tuple:
    """Batches of t for --sample, and the captions: that many images of each prompt, or of captions of the training."""
    lines = common.read_text(args.prompts).splitlines() if args.prompts else []
    asked = [(str(i), text) for i, text in enumerate(args.prompt or [], 1)]
    asked += [line.partition(",")[::2] for line in lines if line.strip()]
    if len({i for i, _ in asked if "/" not in i}) < len(asked) or (asked and args.text_dim):
        common.fail("prompts need an id each, without /, and a model that learned from words, not from --embeddings")
    rows = [{"image": f"sample_{i}_{k + 1}.png", "caption": text} for i, text in asked for k in range(args.sample)]
    args.sample = len(rows) or args.sample
    rows = rows or [{"caption": caption} for caption in args.captions]
    t = encode([r["caption"] for r in rows], args) if rows else common.read_embeddings(args.embeddings)
    turns = [i % len(t) for i in range(args.sample + args.batch)]
    return iter(t[turns].to(args.device).split(args.batch)), [rows[i] for i in turns] if rows else []


def text_encoder(args) -> nn.Module:
    """t, words (N, L) or embeddings (N, text_dim) -> (N, 128)."""
    bag = nn.EmbeddingBag(len(args.words) + 1, 128, padding_idx=0)  # mean of the vectors of words and pairs
    return nn.Sequential(nn.Linear(args.text_dim, 128) if args.text_dim else bag, nn.LeakyReLU(0.2))


class Generator(nn.Module):
    """z (N, z_dim), t -> images (N, C, S, S) in [-1, 1]."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)[::-1]
        act = {"relu": nn.ReLU(), "lrelu": nn.LeakyReLU(0.2)}[args.act]
        base = args.size >> len(w)  # 4 to 7 pixels; --size 64: 4 -> 8 -> 16 -> 32 -> 64
        self.text = text_encoder(args)
        layers = [nn.ConvTranspose2d(args.z_dim + 128, w[0], base, bias=False), nn.BatchNorm2d(w[0]), act]
        for c_in, c_out in itertools.pairwise(w):  # (N, c_in, s, s) -> (N, c_out, 2s, 2s), to (N, w, S/2, S/2)
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), act]
        layers += [nn.ConvTranspose2d(w[-1], args.channels, 4, 2, 1), nn.Tanh()]  # (N, C, S, S) in [-1, 1]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([z, self.text(t)], 1)[:, :, None, None])


class Discriminator(nn.Module):
    """Images (N, C, S, S) in [-1, 1], t -> logits (N,) of "real, and as the caption says", float32."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)
        base = args.size >> len(w)
        layers = [nn.Conv2d(args.channels, w[0], 4, 2, 1), nn.LeakyReLU(0.2)]  # (N, w, S/2, S/2)
        for c_in, c_out in itertools.pairwise(w):  # (N, c_in, s, s) -> (N, c_out, s/2, s/2), to (N, 8w, 4, 4)
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        self.net, self.text = nn.Sequential(*layers), text_encoder(args)
        both = [nn.Conv2d(w[-1] + 128, w[-1], 1, bias=False), nn.BatchNorm2d(w[-1]), nn.LeakyReLU(0.2)]
        self.both = nn.Sequential(*both, nn.Conv2d(w[-1], 1, base), nn.Flatten(0))  # (N, 1, 1, 1) -> (N,)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.net(x)
        t = self.text(t)[:, :, None, None].expand(-1, -1, *x.shape[2:])  # the same at every place
        return self.both(torch.cat([x, t], 1)).float()


def init_weights(module: nn.Module):
    """Weights N(0, 0.02) (DCGAN, section 4), BatchNorm gains N(1, 0.02) and biases 0 (dcgan.torch)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def d_loss(real: Tensor, fake: Tensor, wrong: Tensor, mask: Tensor, t_real: float = 1.0) -> Tensor:
    """`wrong` (K, N): scores of K kinds of wrong pairs; `mask` (N,) is 0 where such a pair is right by chance."""
    right = (t_real * softplus(-real) + (1 - t_real) * softplus(real)).mean()  # t_real = 1: -E log s(D(x, t))
    return right + (softplus(fake).mean() + (mask * softplus(wrong)).mean(1).sum()) / 2  # -E log(1 - s(.)) / 2 each


def g_loss(fake: Tensor) -> Tensor:
    return softplus(-fake).mean()  # -E log sigmoid(fake)


def derange(t: Tensor) -> tuple[Tensor, Tensor]:
    """Another image's place for each (N,), with another caption; mask (N,), 0 where more than half have the same."""
    same = torch.unique(t.float().round(decimals=4), dim=0, return_inverse=True)[1]  # equal captions, equal numbers
    order = torch.randperm(len(t), device=t.device)[same].argsort()  # equal ones side by side: half the batch apart ...
    other = torch.empty_like(order).scatter(0, order, order.roll(len(t) // 2))  # ... they differ
    return other, (same[other] != same).float()


def train_step(G, D, opt_G, opt_D, data, args) -> dict[str, Tensor]:
    """Algorithm 1: one update of D on right, wrong and generated pairs, one of G on the noise that D has seen."""
    # (1) D: maximise E log s(D(x, t)) + (E log(1 - s(D(x, t_wrong))) + E log(1 - s(D(G(z, t), t)))) / 2
    D.requires_grad_(True)
    x_real, t = next(data)
    other, mask = derange(t)
    with autocast(args):
        x_fake = G(noise(len(x_real), args), t)  # with its graph: (2) uses it again
        real, fake = D(x_real, t), D(x_fake.detach(), t)
        wrong = [D(x_real, t[other])] + ([D(x_real[other], t)] if args.wrong_image else [])
        loss_D = d_loss(real, fake, torch.stack(wrong), mask, args.real_label)
    step(opt_D, loss_D)

    # (2) G: maximise E log s(D(G(z, t), t)) - l2 E (s(D(x, t)) - s(D(G(z, t), t)))^2 - l1 E |G(z, t) - x|
    D.requires_grad_(False)  # no gradients for weights that are not updated
    with autocast(args):
        fake = D(x_fake, t)
        loss_G = g_loss(fake)
        if args.l2 or args.l1:
            verdicts = (D(x_real, t).sigmoid().detach() - fake.sigmoid()).square().mean()
            loss_G = loss_G + args.l2 * verdicts + args.l1 * (x_fake - x_real).abs().mean()
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
    if not args.sample:
        images, names = common.load_images(args)
        rows, captions = common.load_labels(args, names, text=True)
        text = ([], len(captions[0])) if args.embeddings else (sorted({w for c in captions for w in split(c)}), 0)
        if args.resume and text != (args.words, args.text_dim):
            common.fail(f"the captions have other words than those of {args.checkpoint}: go on with the same --labels")
        args.words, args.text_dim = text
        args.captions = sorted({*captions}, key=lambda c: zlib.crc32(c.encode()))[:1000] if args.words else []
        t = encode(captions, args) if args.words else torch.stack(captions)
    torch.manual_seed(args.seed)  # the same weights on all ranks
    layout = torch.contiguous_format if args.device == "mps" else torch.channels_last  # wrong gradients: pytorch#175189
    G = Generator(args).apply(init_weights).to(args.device, memory_format=layout)
    D = Discriminator(args).apply(init_weights).to(args.device, memory_format=layout)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    if args.sample:
        G_ema.load_state_dict(common.read_checkpoint(args.checkpoint, args.script)["state"]["G_ema"])
        G_ema.train(args.sample_mode == "batch")
        torch.manual_seed(args.seed)
        parts, captions = wanted(args)
        common.write_samples(args, lambda: G_ema(noise(args.batch, args), next(parts)), captions)
        return {"G_ema": G_ema}

    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.beta1, args.beta2), fused="cuda" in args.device)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.beta1, args.beta2), fused="cuda" in args.device)
    data = common.Batches(images, args, rank, world, rows, t)
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
    fixed_t = t[[i // 8 * len(t) // 8 for i in range(common.GRID)]].to(args.device)  # one caption a row
    with common.Run(args, data, start, lambda: G_ema(fixed_z, fixed_t), rank) as run:
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
