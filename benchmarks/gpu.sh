#!/usr/bin/env bash
# What has to be seen on a GPU, in a quarter of an hour: bash benchmarks/gpu.sh [OUT]
# Builds the operator, runs the tests that use a GPU, and times kernels and training steps. Each part has a time limit and a
# file of its own in OUT (runs/gpu), so that what was seen is kept whatever ends it.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/gpu}
mkdir -p "$out"
failed=()

part() { # name, seconds, command
  local begin=$SECONDS
  timeout --kill-after 10 "$2" "${@:3}" >"$out/$1.txt" 2>&1 || failed+=("$1")
  echo "== $1: $((SECONDS - begin)) s, $out/$1.txt"
  tail -n 25 "$out/$1.txt"
}

part device 60 python -c '
import torch, torchvision
print(torch.__version__, torchvision.__version__, torch.cuda.get_device_name())'
part build 180 python -c '
from wsis.ops import backend
from wsis.ops.build import compiled_devices
print(backend(), sorted(compiled_devices()))
assert "cuda" in compiled_devices()'
part operators 120 python -m pytest tests/ops tests/evidence/test_on_device.py
part moi_pool 150 python benchmarks/moi_pool.py --device cuda
for model in pdsl jtsm; do
  step=(python benchmarks/step.py --device cuda --model "$model" --proposals 4000 --side 800 --batch 4)
  part "step_$model" 60 "${step[@]}"
  part "step_${model}_bf16" 60 "${step[@]}" --bf16
done
part methods 300 python -m pytest tests/models/test_all.py -k gpu
if command -v compute-sanitizer >/dev/null; then
  part sanitizer 120 compute-sanitizer python -m pytest tests/ops/test_moi_pool.py -n 0 -k cuda
fi
if ((${#failed[@]})); then
  echo "failed or out of time: ${failed[*]}"
  exit 1
fi
