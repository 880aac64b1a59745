#!/usr/bin/env bash
# Everything that fifteen minutes of a GPU can answer; results go to the folder $1. Not tried on a GPU yet.
#
#   bash tests/gpu.sh runs/gpu [data/anime]
#
# The tests against the CPU, the speed of each script, how busy the GPU is, and four trainings of two minutes each.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1
data=${2:-}
mkdir -p "$out"

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$out/gpu.csv"
python -c "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())" > "$out/torch.txt"

timeout 240 pytest -m gpu -q -s --durations=10 > "$out/tests.txt" 2>&1
tail -n 1 "$out/tests.txt"

timeout 240 python assets/speed.py > "$out/speed.md" 2> "$out/speed.log"
cat "$out/speed.md"

# two minutes each; the GPU is asked once a second how busy it is
for script in sngan wgan_gp r3gan dcgan; do
    nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader,nounits -l 1 > "$out/$script-busy.csv" &
    watcher=$!
    timeout -s INT 120 python "$script.py" ${data:+--path "$data" --size 64} --out "$out/$script" \
        --steps 1000000 --save-every 2000 --keep 1 > "$out/$script.log" 2>&1
    kill "$watcher"
    awk -F, -v name="$script" '{ sum += $1 } END { print name ": busy " sum / NR " %" }' "$out/$script-busy.csv" \
        | tee -a "$out/busy.txt"
done
timeout 120 python compare.py "${data:-faces}" "$out"/{sngan,wgan_gp,r3gan,dcgan} --count 4000 --out "$out/compare"
