#!/usr/bin/env bash
# Everything that needs a GPU, in under 10 minutes: build, tests, compute-sanitizer, benchmarks.
#
#   [ADVCORE_DATA=folder] [ADVCORE_RIVALS=folder] benchmarks/gpu.sh
#
# Needs python3 with torch, triton, numpy and pybind11; nvcc, a C++20 compiler, cmake; pytest and
# compute-sanitizer where they are installed. ADVCORE_RIVALS: a folder with adv-lib and what it
# needs, where Python has none (pip install --no-deps --target folder adv-lib==0.2.8 tqdm). No
# network, nothing is installed. Each step is tried whatever became of the others, but for those
# without which nothing runs. Logs and figures: benchmarks/results/ (gpu.log, bench_gpu.json,
# bench_cuda.json, bench_cuda.md). Ends with 0 if every step passed, 1 if one failed, 3 where there
# is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
build=$root/build/gpu
export ADVCORE_RESULTS=${ADVCORE_RESULTS:-$root/benchmarks/results}
export PYTHONUNBUFFERED=1
export OMP_WAIT_POLICY=passive  # the tests share the CPUs
results=$ADVCORE_RESULTS
total=${ADVCORE_GPU_SECONDS:-570}  # of all steps together
log=$results/gpu.log
mkdir -p "$results" "$build"

if ! capability=$("$python" -c '
import sys, torch
if not torch.cuda.is_available(): sys.exit(1)
print("%d%d" % torch.cuda.get_device_capability())' 2>/dev/null); then
  echo "gpu.sh: no GPU that torch can use on this machine" >&2
  exit 3
fi

: >"$log"
declare -a summary
failed=0
step() {  # name, seconds, command...
  local name=$1 limit=$2 begin=$SECONDS rc
  shift 2
  [ $((total - SECONDS)) -lt "$limit" ] && limit=$((total - SECONDS))
  if [ "$limit" -lt 5 ]; then
    summary+=("skipped $name (no time left)")
    failed=1
    return 1
  fi
  echo "=== $name" | tee -a "$log"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee -a "$log" | tail -n 25
  rc=${PIPESTATUS[0]}
  [ "$rc" -eq 124 ] && echo "=== $name: not done after $limit s" | tee -a "$log"
  if [ "$rc" -eq 0 ]; then
    summary+=("ok      $name ($((SECONDS - begin)) s)")
  else
    summary+=("FAILED  $name ($((SECONDS - begin)) s, exit $rc)")
    failed=1
  fi
  return "$rc"
}
skip() { summary+=("skipped $1"); }
finish() {
  printf '%s\n' "=== summary" "${summary[@]}" | tee -a "$log"
  exit "$failed"
}

generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
"$python" -m pybind11 --version | tee -a "$log"
step configure 60 cmake -S . -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release \
  -DADVCORE_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$capability" \
  -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
  -DCMAKE_PREFIX_PATH="$("$python" -m pybind11 --cmakedir)" || finish
step build 240 cmake --build "$build" --parallel || finish

# The package beside its compiled module, out of the source folder.
package=$build/package/advcore
rm -rf "$build/package"
mkdir -p "$package"
ln -s "$root"/advcore/* "$package"/
ln -s "$root/kernels" "$package/kernels"
cp "$build"/_core*.so "$package"/
export PYTHONPATH=$build/package:$root/benchmarks:$root/tests${ADVCORE_RIVALS:+:$ADVCORE_RIVALS}
step import 60 "$python" -P -c '
from advcore import _core
print(_core.cuda_status())
assert _core.cuda_status()[1] > 0' || finish

small=("$python" -P benchmarks/bench_cuda.py --small)
step "eight images" 60 "${small[@]}"
if "$python" -c 'import pytest' 2>/dev/null; then
  # One thread each: the references of the tests run on the CPU, in as many processes as it has.
  pytest=(env ADVCORE_NUM_THREADS=1 OMP_NUM_THREADS=1 "$python" -P -m pytest -v --maxfail=20 --tb=short
    -o filterwarnings=default -o faulthandler_timeout=60 -p no:cacheprovider)
  "$python" -c 'import xdist' 2>/dev/null && pytest+=(-n "$(nproc)")
  step "tests of native networks" 100 "${pytest[@]}" tests/cuda/test_native.py \
    tests/cuda/test_queue.py
fi
step "native networks" 180 "$python" -P benchmarks/bench_gpu.py
if "$python" -c 'import pytest' 2>/dev/null; then
  step "tests of torch modules" 60 "${pytest[@]}" tests/cuda/test_torch.py tests/cuda/test_rounds.py
  step "tests of the solver" 60 "${pytest[@]}" tests/solve -k "cuda-native or cuda-torch"
  step "tests of the kernels" 110 "${pytest[@]}" tests/cuda/test_kernels_gpu.py
else
  skip "tests (no pytest)"
fi
step "torch modules" 60 "$python" -P benchmarks/bench_cuda.py
checked() {  # tool, what to look at
  local tool=$1 left=$((total - SECONDS))
  shift
  if [ "$left" -lt 40 ]; then
    skip "$tool (no time left)"
  elif ! timeout --kill-after=5 30 compute-sanitizer --tool "$tool" "$python" -c \
    'import torch; torch.ones(1).cuda()' >/dev/null 2>&1; then
    skip "$tool (compute-sanitizer does not work on this machine)"
  else
    step "$tool" 90 env CUDA_LAUNCH_BLOCKING=1 compute-sanitizer --tool "$tool" "$@" \
      --error-exitcode 9 "${small[@]}"
  fi
}
if command -v compute-sanitizer >/dev/null; then
  checked memcheck --report-api-errors no --kernel-regex kns=advcore --kernel-regex kns=propagate
  checked racecheck --kernel-regex kns=advcore
else
  skip "memcheck, racecheck (no compute-sanitizer)"
fi
finish
