"""Started by torchrun in tests/test_ranks.py: everything that needs two processes, in one launch; writes what it saw to a folder."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import SCRIPTS, TINY, module, tiny
from rank_toys import toy_step

import common

out, folder = Path(sys.argv[1]), sys.argv[2]
rank = int(os.environ["RANK"])
torch.set_num_threads(1)

dist.init_process_group("gloo")
dist.init_process_group = dist.destroy_process_group = lambda *_, **__: None  # one launch can join its group only once
for script in SCRIPTS:
    torch.save(toy_step(script, slice(rank, None, 2)), out / f"{script}-toys-{rank}.pt")

written = []
atomic = common.atomic
common.atomic = lambda path, write: (written.append(str(path)), atomic(path, write))[1]
for script in SCRIPTS:
    m, noises = module(script), []
    draw = m.noise
    m.noise = lambda n, args, draw=draw, noises=noises: noises.append(draw(n, args)) or noises[-1]
    flags = [*tiny(script), "--path", folder, "--log-every", "1", "--save-every", "2", "--cache", str(out / "cache")]
    whole = m.main([*flags, "--out", str(out / script), "--steps", "5"])
    seen = {"noises": list(noises), "written": list(written)}
    parts = m.main([*flags, "--out", str(out / f"{script}-parts"), "--steps", "3"])
    dist.barrier()  # in life another launch resumes, when rank 0 has saved
    parts = m.main([*flags, "--out", str(out / f"{script}-parts"), "--steps", "5", "--resume"])
    states = {}
    for name, state in (("whole", whole), ("parts", parts)):
        states[name] = {key: thing.state_dict() for key, thing in state.items()}
    torch.save(seen | states, out / f"{script}-{rank}.pt")

m = module("dcgan")  # an error on one rank must end the other, which waits for its gradients
train_step, calls = m.train_step, []


def failing(*arguments):
    calls.append(1)
    if rank == 1 and len(calls) == 2:
        raise RuntimeError("rank 1 fails on purpose")
    return train_step(*arguments)


m.train_step = failing
m.main([*TINY, "--path", folder, "--cache", str(out / "cache"), "--out", str(out / "failed"), "--steps", "100000"])
(out / f"survived-{rank}").touch()
