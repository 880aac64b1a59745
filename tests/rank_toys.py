"""One step of a script on networks without batch statistics, on given images, noise and mixing numbers: whole, or one rank's share."""

import torch
from conftest import module, settings
from torch import nn


def toy_step(script: str, share: slice) -> dict[str, list[torch.Tensor]]:
    """Gradients that each optimiser saw in train_step, in order, and those of a step that is only a penalty; 8 images in all."""
    m, args = module(script), settings(script)
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Unflatten(1, (3, 2, 2)))
    D = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    images, noises = torch.rand(30, 8, 3, 2, 2) * 2 - 1, iter(torch.randn(60, 8, 8))
    mixing = iter(torch.rand(60, 8, 1, 1, 1))
    gradients = []

    class Spy(torch.optim.SGD):
        def step(self):
            gradients.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
            super().step()

    opt_G, opt_D = Spy(G.parameters(), 0.01), Spy(D.parameters(), 0.01)
    draw, rand = m.noise, torch.rand
    m.noise, torch.rand = lambda n, args: next(noises)[share], lambda *shape, **_: next(mixing)[share]
    try:
        data = iter([batch[share] for batch in images])
        m.train_step(G, D, opt_G, opt_D, data, args)
        if hasattr(m, "gradient_penalty"):
            D.requires_grad_(True)
            x_real = next(data)
            m.step(opt_D, m.gradient_penalty(D, x_real, -x_real.flip(1)))  # leaves D's last bias without a gradient
    finally:
        m.noise, torch.rand = draw, rand
    return {
        "gradients": [g for step in gradients for g in step],
        "weights": [p.detach() for net in (G, D) for p in net.parameters()],
    }
