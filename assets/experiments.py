"""Train the commands of assets/experiments.csv that have no scores, score their samples, and write the scores.

    python assets/experiments.py             # from the root; hours on two cores, can be stopped and started again
    python assets/experiments.py collapse    # those whose names begin so, whether they have scores or not

Two train at a time, with a thread each: on two cores that is faster than one after the other with two threads. What
samples another run's checkpoint (batch-statistics, size-64-upscaled) needs that run before.
"""

import csv
import json
import os
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

TABLE = Path(__file__).with_suffix(".csv")
RUNS = Path("runs/experiments")
SCORES = ["FD", "KIDx1000", "precision", "recall", "diversity", "nearest", "readable", "combos"]
SCORES += ["hair", "eyes", "face", "glasses", "NMI"]  # of runs with a condition


def done(out: Path) -> bool:
    """The checkpoint of its last step is there, or the images if it only draws."""
    if not (out / "args.json").exists():
        return (out / "generated/01999.png").exists()
    steps = json.loads((out / "args.json").read_text(encoding="utf-8"))["steps"]
    return (out / f"checkpoints/{steps:06d}.pt").exists()


def train(row: dict[str, str]):
    """Train to the end, or go on where it stopped; a run that is done is left alone."""
    out = RUNS / row["experiment"]
    if not done(out):
        out.mkdir(parents=True, exist_ok=True)
        resume = ["--resume"] * (out / "last.pt").exists()
        command = [sys.executable, *row["command"].split()[1:], "--out", str(out), *resume]
        with open(out / "log.txt", "a", encoding="utf-8") as log:
            subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
    print(out, "is done" if done(out) else "has failed or was stopped: see its log.txt", flush=True)


if __name__ == "__main__":
    rows = list(csv.DictReader(TABLE.open(encoding="utf-8")))
    names = tuple(sys.argv[1:])
    chosen = [row for row in rows if (row["experiment"].startswith(names) if names else not row["FD"])]
    with ThreadPool(2) as pool:
        pool.map(train, chosen, chunksize=1)
    for size in ("32", "64"):  # one table for each size
        finished = [row for row in chosen if row["experiment"].startswith("size-64") == (size == "64")]
        outs = {RUNS / row["experiment"]: row for row in finished if done(RUNS / row["experiment"])}
        outs = {str(out if (out / "last.pt").exists() else out / "generated"): row for out, row in outs.items()}
        if outs:
            command = [sys.executable, "compare.py", "faces", *outs, "--size", size, "--out", str(RUNS)]
            subprocess.run(command, check=True)
            for found in csv.DictReader((RUNS / "table.csv").open(encoding="utf-8")):
                if found["name"] in outs:
                    scores = {score: found[score] for score in SCORES if found.get(score, "nan") != "nan"}
                    outs[found["name"]] |= {score: f"{float(value):.4g}" for score, value in scores.items()}
            with open(TABLE.with_suffix(".tmp"), "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["experiment", "command", *SCORES])
                writer.writeheader()
                writer.writerows(rows)
            TABLE.with_suffix(".tmp").replace(TABLE)
