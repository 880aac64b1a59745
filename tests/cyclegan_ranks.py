"""Started by torchrun in tests/test_cyclegan.py: what needs two processes; writes what each saw to a folder."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_cyclegan import m, run, toys

out, pair = Path(sys.argv[1]), sys.argv[2]
rank = int(os.environ["RANK"])
torch.set_num_threads(1)

dist.init_process_group("gloo")
dist.init_process_group = dist.destroy_process_group = lambda *_, **__: None  # one launch can join its group only once
G, D, opts, data, pools, args = toys(share=slice(rank, None, 2))
for _ in range(2):
    m.train_step(G, D, *opts, data, pools, args)

cuts, cut = [], m.random_crop
m.random_crop = lambda x, size: cuts.append(torch.cat([cut(x, size)])) or cuts[-1]
flags = ["--pool", "4", "--log-every", "1", "--save-every", "2", "--cache", str(out / "cache")]
states = {"whole": run(pair, out / "whole", "--steps", "5", *flags)}
first = cuts[0].clone()
run(pair, out / "parts", "--steps", "3", *flags)
dist.barrier()  # in life another launch resumes, when rank 0 has saved
states["parts"] = run(pair, out / "parts", "--steps", "5", "--resume", *flags)
seen = {name: {key: thing.state_dict() for key, thing in state.items()} for name, state in states.items()}
seen |= {"toys": [p.detach() for net in (G, D) for p in net.parameters()], "cut": first}
torch.save(seen, out / f"{rank}.pt")
