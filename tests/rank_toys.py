"""One step of a script on networks without batch statistics, on given images, noise and mixing numbers: whole, or one rank's share."""

import torch
from conftest import EXTRA, HEADS, also, condition, module, settings
from torch import nn


class Joined(nn.Sequential):
    """Layers on an image or a noise, flat, beside its condition."""

    heads, decoders = 0, False

    def forward(self, x, *condition):
        out = torch.cat([x.flatten(1), *(c.float() for c in condition)], 1)
        for layer in list(self)[:3]:  # not the decoders
            before, out = out, layer(out)
        if out.dim() > 2:
            return out
        if self.decoders:
            return out[:, 0], before.view(-1, 2, 2, 2), before[:, :, None, None]
        return (out[:, 0], out[:, 1:]) if self.heads else out[:, 0]


def toy_step(script: str, share: slice) -> dict[str, list[torch.Tensor]]:
    """Gradients that each optimizer saw in train_step, in order, and those of a step that is only a penalty; 8 images in all."""
    m, args = module(script), settings(script)
    torch.manual_seed(0)
    G = Joined(nn.Linear(8 + EXTRA.get(script, 0), 12), nn.Tanh(), nn.Unflatten(1, (3, 2, 2)))
    width = 12 + EXTRA[script] if script == "cgan_text2img" else 12
    D = Joined(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 1 + HEADS.get(script, 0)))
    D.heads = HEADS.get(script, 0)
    if script == "lightweight_gan":
        D.decoders, D.whole, D.quarter = True, nn.Conv2d(8, 3, 1), nn.Conv2d(2, 3, 1)
    images, noises = torch.rand(30, 8, 3, 2, 2) * 2 - 1, iter(torch.randn(60, 8, 8))
    mixing = iter(torch.rand(60, 8, 1, 1, 1))
    labels = [condition(script, 8, args) for _ in images]
    if script == "cgan_text2img":
        labels = [(t[:, None],) for (t,) in labels]  # one caption of each image
    gradients = []

    class Spy(torch.optim.SGD):
        def step(self):
            gradients.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
            super().step()

    opt_G, opt_D = Spy(G.parameters(), 0.01), Spy(D.parameters(), 0.01)
    draw, rand = m.noise, torch.rand
    m.noise, torch.rand = lambda n, args: next(noises)[share], lambda *shape, **_: next(mixing)[share]
    others = {name: getattr(m, name) for name in ("derange", "draw_codes", "augment") if hasattr(m, name)}
    if script == "cgan_text2img":  # the next but one of the whole batch is the next of a share
        m.derange = lambda t: (torch.arange(len(t)).roll(2 * len(t) // 8), torch.ones(len(t)))
    if script == "infogan":
        codes = iter([c for (c,) in labels])
        m.draw_codes = lambda n, args: next(codes)[share]
    if script == "lightweight_gan":  # the random changes of a share are others than those of the whole batch
        m.augment = lambda x, policy: x
    try:
        data = iter([batch[share] for batch in images])
        if script in ("acgan", "cgan_text2img"):
            data = iter([(batch[share], c[share]) for batch, (c,) in zip(images, labels, strict=True)])
        m.train_step(G, D, opt_G, opt_D, data, args, *also(script))
        if hasattr(m, "gradient_penalty"):
            D.requires_grad_(True)
            x_real = next(data)
            m.step(opt_D, m.gradient_penalty(D, x_real, -x_real.flip(1)))  # leaves D's last bias without a gradient
    finally:
        m.noise, torch.rand = draw, rand
        vars(m).update(others)
    return {
        "gradients": [g for step in gradients for g in step],
        "weights": [p.detach() for net in (G, D) for p in net.parameters()],
    }
