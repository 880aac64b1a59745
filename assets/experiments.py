"""Train the commands of assets/experiments.csv that have no scores yet, score their samples, and write the scores.

    python assets/experiments.py             # from the root; hours on two cores, can be stopped and started again
    python assets/experiments.py collapse    # only the experiments whose names begin so

Two train at a time, with a thread each: on two cores that is faster than one after the other with two threads.
"""

import csv
import os
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

TABLE = Path(__file__).with_suffix(".csv")
RUNS = Path("runs/experiments")
SCORES = ("FD", "KIDx1000", "precision", "recall", "diversity", "nearest", "readable", "combos")


def train(row: dict[str, str]):
    """Train to the end, or go on where it stopped; a run that is complete is left alone."""
    out = RUNS / row["experiment"]
    if (out / "trained").exists():
        return
    resume = ["--resume"] * (out / "last.pt").exists()
    command = [sys.executable, *row["command"].split()[1:], "--out", str(out), *resume]
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "log.txt", "a", encoding="utf-8") as log:
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
    (out / "trained").touch()


if __name__ == "__main__":
    rows = list(csv.DictReader(TABLE.open(encoding="utf-8")))
    waiting = [row for row in rows if not row["FD"] and row["experiment"].startswith(tuple(sys.argv[1:]) or "")]
    with ThreadPool(2) as pool:
        for _ in pool.imap_unordered(train, waiting):
            pass
    for size in ("32", "64"):  # one table for each size
        chosen = [row for row in waiting if ("--size 64" in row["command"]) == (size == "64")]
        runs = [RUNS / row["experiment"] for row in chosen]
        images = [str(run if (run / "last.pt").exists() else run / "generated") for run in runs]
        if chosen:
            command = [sys.executable, "compare.py", "faces", *images, "--size", size, "--out", str(RUNS)]
            subprocess.run(command, check=True)
            with open(RUNS / "table.csv", encoding="utf-8") as file:
                found = {row["name"]: row for row in csv.DictReader(file)}
            for row, name in zip(chosen, images, strict=True):
                row |= {score: f"{float(found[name][score]):.4g}" for score in SCORES}
            with open(TABLE, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["experiment", "command", *SCORES])
                writer.writeheader()
                writer.writerows(rows)
