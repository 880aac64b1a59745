#!/usr/bin/env bash
# What a quarter of an hour of a GPU can answer, in two parts of at most ten minutes. Not tried on a GPU yet.
#
#   bash tests/gpu.sh check runs/gpu               # the tests against the CPU, and the speed of each script
#   bash tests/gpu.sh train runs/gpu data/anime    # four trainings of 100 seconds at 64 pixels, and their scores
#
# Results go to the second argument.
set -uo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash tests/gpu.sh check OUT, or: bash tests/gpu.sh train OUT FOLDER" >&2
    exit 2
fi
part=$1
out=$(realpath -m "$2")
data=$(realpath -m "${3:-data}")
cd "$(dirname "$0")/.."
mkdir -p "$out"

if [ "$part" = check ]; then
    nvidia-smi -i 0 --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/gpu.csv"
    python -c "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())" | tee "$out/torch.txt"
    timeout -k 10 240 pytest -m gpu -q --durations=10 > "$out/tests.txt" 2>&1
    tail -n 40 "$out/tests.txt"
    timeout -k 10 300 python assets/speed.py --seconds 0.5 --turns 1 2> "$out/speed.log" | tee "$out/speed.md"
fi

if [ "$part" = train ]; then
    for script in sngan wgan_gp r3gan dcgan; do
        # once a second: how busy the GPU is, in per cent, and its memory
        nvidia-smi -i 0 --query-gpu=utilization.gpu,memory.used --format=csv,noheader,nounits -l 1 > "$out/$script-busy.csv" &
        watcher=$!
        timeout -s INT -k 30 100 python "$script.py" --path "$data" --size 64 --out "$out/$script" \
            --steps 1000000 --save-every 2000 --keep 1 > "$out/$script.log" 2>&1
        kill "$watcher"
        # without the start of the program, and the save at its end
        tail -n +15 "$out/$script-busy.csv" | head -n -5 | awk -F, -v name="$script" \
            '{ sum += $1 } END { if (NR) print name ": busy " sum / NR " % of the time" }' | tee -a "$out/busy.txt"
    done
    timeout -k 10 150 python compare.py "$data" "$out"/{sngan,wgan_gp,r3gan,dcgan} --count 2000 --out "$out/compare" \
        | tee "$out/compare.txt"
fi
