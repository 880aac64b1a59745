"""Train the commands of assets/experiments.csv that have no scores yet, score their samples, and write the scores.

    python assets/experiments.py             # from the root; hours on two cores, can be stopped and started again
    python assets/experiments.py collapse    # only the experiments whose names begin so

Two run at a time, with a thread each: on two cores that is faster than one after the other with two threads.
"""

import csv
import os
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

TABLE = Path(__file__).with_suffix(".csv")
SCORES = ("FD", "KIDx1000", "precision", "recall", "diversity", "nearest", "readable", "combos")


def python(log: Path, command: list[str]):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "a", encoding="utf-8") as file:
        subprocess.run([sys.executable, *command], check=True, env=environment, stdout=file, stderr=file)


def score(row: dict[str, str]):
    """Train, if that is not done, and compare with the built-in faces; fills in the row."""
    out = Path("runs/experiments", row["experiment"])
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "trained").exists():
        resume = ["--resume"] * (out / "last.pt").exists()
        python(out / "log.txt", [*row["command"].split()[1:], "--out", str(out), *resume])
        (out / "trained").touch()
    images = out if (out / "last.pt").exists() else out / "generated"
    size = "64" if "--size 64" in row["command"] else "32"
    python(out / "log.txt", ["compare.py", "faces", str(images), "--size", size, "--out", str(out / "compare")])
    with open(out / "compare/table.csv", encoding="utf-8") as file:
        found = list(csv.DictReader(file))[1]
    row |= {name: f"{float(found[name]):.4g}" for name in SCORES}
    print(row, flush=True)


if __name__ == "__main__":
    rows = list(csv.DictReader(TABLE.open(encoding="utf-8")))
    waiting = [row for row in rows if not row["FD"] and row["experiment"].startswith(tuple(sys.argv[1:]) or "")]
    with ThreadPool(2) as pool:
        for _ in pool.imap_unordered(score, waiting):
            with open(TABLE, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["experiment", "command", *SCORES])
                writer.writeheader()
                writer.writerows(rows)
