#!/usr/bin/env bash
# Everything that needs a GPU, as a ladder of rungs, in under six minutes: build, runs that each show
# one thing more, compute-sanitizer, tests, figures. Each rung has a time limit and ends with a line:
#
#   ok      native            3 s  84 rounds of propagate
#
#   [ADVCORE_DATA=folder] [ADVCORE_RIVALS=folder] benchmarks/gpu.sh [--list] [--dry-run] [RUNG...]
#
# Without names all rungs run, also behind one that fails; only without a build nothing runs. With
# names these alone run, on the build of an earlier run. Needs python3 with torch, triton, numpy
# and pybind11; nvcc, a C++20 compiler, cmake; pytest, cuda-gdb, compute-sanitizer and ncu where they
# are installed. ADVCORE_RIVALS: a folder with adv-lib and what it needs, where Python has none (pip
# install --no-deps --target folder adv-lib==0.2.8 tqdm). No network, nothing is installed. Verdicts,
# logs and figures go to benchmarks/results, or ADVCORE_RESULTS: gpu.txt, gpu/RUNG.log,
# bench_gpu.json. Ends with 0 if no rung failed, 1 if one did, 3 where there is no GPU.
#
# --dry-run tries this script on a machine without a GPU: rungs run on a simulated one, small, with
# the package that is installed.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
build=$root/build/gpu
results=${ADVCORE_RESULTS:-$root/benchmarks/results}
total=${ADVCORE_GPU_SECONDS:-345}  # of all rungs together
export ADVCORE_RESULTS=$results PYTHONUNBUFFERED=1
export OMP_WAIT_POLICY=passive        # the tests share the CPUs
export ADVCORE_GPU=force              # what fails shall be seen
export XDG_CACHE_HOME=$results/gpu    # the record of the solver's test is not the user's

# name, seconds, what it shows. The rungs of a group run at the same time.
rungs=(
  "facts     10 versions; the build has code for this GPU"
  "build     60 the package compiles for this GPU"
  "import    15 the compiled module sees the GPU"
  "begin     25 images reach the slots with all bits"
  "loss      25 the loss of a round is the CPU's"
  "advance   25 three steps of the search are the CPU's"
  "rounds    25 whole runs with rounds by the host: the solver's own test"
  "native    25 a native network: kernels, graph, refill"
  "fillings  25 images that come late, several fillings"
  "large     25 images of 20,000 values"
  "threads   25 two runs at once"
  "memcheck  60 no access out of bounds in the rung native"
  "racecheck 60 no race in shared memory in the rung native"
  "synccheck 60 barriers are met in the rung native"
  "tests     80 the GPU's tests"
  "profile   20 times of the solver's kernels"
  "ncu       30 registers, stalls and local memory of advance"
  "digits    45 bench_gpu.py: 90,000 digits, agreement with the CPU, rounds by the host"
  "pictures  45 bench_gpu.py: ResNet-50 on 64 pictures"
  "kernels   60 the tests of the Triton kernels"
  "rivals    60 bench_gpu.py: other attacks"
)
ladder="begin loss advance rounds native fillings large threads"
checks="memcheck racecheck synccheck"

dry=()
wanted=()
for argument in "$@"; do
  case $argument in
    --list) printf '%s\n' "${rungs[@]}"; exit 0 ;;
    --dry-run) dry=(--dry-run) ;;
    *)
      if ! printf '%s\n' "${rungs[@]}" | grep -q "^$argument "; then
        echo "gpu.sh: no rung $argument; --list shows them" >&2
        exit 2
      fi
      wanted+=("$argument")
      ;;
  esac
done

if [ ${#dry[@]} -eq 0 ] && ! capability=$("$python" -c '
import sys, torch
if not torch.cuda.is_available(): sys.exit(1)
print("%d%d" % torch.cuda.get_device_capability())' 2>/dev/null); then
  echo "gpu.sh: no GPU that torch can use on this machine" >&2
  exit 3
fi

mkdir -p "$results/gpu" || exit 1
: >"$results/gpu.txt"
export PYTHONPATH=$root/benchmarks:$root/tests${ADVCORE_RIVALS:+:$ADVCORE_RIVALS}
[ ${#dry[@]} -eq 0 ] && PYTHONPATH=$build/package:$PYTHONPATH
failed=0

has() { command -v "$1" >/dev/null; }
is_wanted() { [ ${#wanted[@]} -eq 0 ] || printf '%s\n' "${wanted[@]}" | grep -qx "$1"; }
seconds_of() { printf '%s\n' "${rungs[@]}" | awk -v name="$1" '$1 == name {print $2}'; }

verdict() {  # ok, FAILED or skipped; rung; seconds; what was seen
  local line
  line=$(printf '%-8s%-10s%4s s  %s' "$1" "$2" "$3" "$4")
  echo "$line" | tee -a "$results/gpu.txt"
  [ "$1" = FAILED ] && failed=1
  return 0
}

# Runs a command in a process group of its own, for so many seconds. A process that is not done by
# then shows where it and the GPU stand before all of them are killed.
timed() {  # seconds, log, command...
  local limit=$1 log=$2 pid end
  shift 2
  setsid "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  end=$((SECONDS + limit))
  while kill -0 "$pid" 2>/dev/null; do
    if [ "$SECONDS" -ge "$end" ]; then
      has cuda-gdb && timeout 15 cuda-gdb -p "$pid" -batch -ex 'info cuda kernels' \
        -ex 'info cuda warps' -ex bt >>"$log" 2>&1
      kill -KILL -- -"$pid" 2>/dev/null
      wait "$pid" 2>/dev/null
      return 124
    fi
    sleep 0.1
  done
  wait "$pid"
}

climb() {  # rung, command...
  local name=$1 log=$results/gpu/$1.log limit begin=$SECONDS rc seen
  shift
  limit=$(seconds_of "$name")
  [ $((total - SECONDS)) -lt "$limit" ] && limit=$((total - SECONDS))
  if [ "$limit" -lt 5 ]; then
    verdict skipped "$name" 0 "no time left"
    return 1
  fi
  timed "$limit" "$log" "$@"
  rc=$?
  seen=$(grep '^verdict: ' "$log" | tail -n 1 | cut -c 10-)
  [ -z "$seen" ] && seen=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c 1-110)
  case $rc in
    0) verdict ok "$name" $((SECONDS - begin)) "$seen" ;;
    124) verdict FAILED "$name" $((SECONDS - begin)) "not done after $limit s; $log" ;;
    *) verdict FAILED "$name" $((SECONDS - begin)) "$seen ($log)" ;;
  esac
  return "$rc"
}

rung() { is_wanted "$1" && climb "$1" "$python" -P benchmarks/gpu_rungs.py "${dry[@]}" "$1"; }
need() {  # rung, tool
  is_wanted "$1" || return 1
  has "$2" && return 0
  verdict skipped "$1" 0 "no $2 here"
  return 1
}
not_dry() {  # rung
  [ ${#dry[@]} -eq 0 ] && return 0
  is_wanted "$1" && verdict skipped "$1" 0 "not in a dry run"
  return 1
}
in_group() {  # rungs...: all at once; their ends are heard of in the order of the names
  local name
  for name in "$@"; do (rung "$name"; exit "$failed") & done
  for name in "$@"; do wait -n || failed=1; done
}

compile() {
  local generator=()
  has ninja && generator=(-G Ninja)
  cmake -S . -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DADVCORE_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES="$capability" -DCMAKE_PREFIX_PATH="$("$python" -m pybind11 --cmakedir)" \
    -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" &&
    cmake --build "$build" --parallel || return 1
  # The package beside its compiled module, out of the source folder.
  rm -rf "$build/package" && mkdir -p "$build/package/advcore" &&
    ln -s "$root"/advcore/* "$build/package/advcore" &&
    ln -s "$root/kernels" "$build/package/advcore/kernels" &&
    cp "$build"/_core*.so "$build/package/advcore" && echo "verdict: for compute capability $capability"
}
look_around() {
  has nvidia-smi && nvidia-smi
  has nvcc && nvcc --version
  "$python" -m pybind11 --version
  "$python" -P benchmarks/gpu_rungs.py $dry_option facts
}
sanitize() {  # tool
  local options=(--tool "$1" --error-exitcode 9)
  if ! timeout --kill-after=5 25 compute-sanitizer --tool "$1" "$python" -c \
    'import torch; torch.ones(1).cuda()' >/dev/null 2>&1; then
    echo "verdict: not tried, compute-sanitizer does not work on this machine"
    return 0
  fi
  [ "$1" = memcheck ] && options+=(--report-api-errors no)
  CUDA_LAUNCH_BLOCKING=1 compute-sanitizer "${options[@]}" --kernel-regex kns=advcore \
    --kernel-regex kns=propagate "$python" -P benchmarks/gpu_rungs.py native
}
export -f compile look_around sanitize has
dry_option=${dry[*]}
export root build python capability dry_option

# --- in order

if not_dry build && is_wanted build; then
  climb build bash -c compile || exit 1
fi
if is_wanted import; then
  climb import "$python" -P -c '
import sys
from advcore import _core
built, devices, why = _core.cuda_status()
print("verdict:", f"{devices} GPUs" if devices else why)
sys.exit(not devices and "--dry-run" not in sys.argv)' "${dry[@]}"
fi
is_wanted facts && climb facts bash -c look_around
in_group $ladder

watched=()
if not_dry memcheck; then
  for tool in $checks; do
    need "$tool" compute-sanitizer || continue
    (
      climb "$tool" bash -c "sanitize $tool"
      exit "$failed"
    ) &
    watched+=($!)
  done
fi

pytest=(env ADVCORE_NUM_THREADS=1 OMP_NUM_THREADS=1 "$python" -P -m pytest -q --maxfail=20 --tb=short
  -o filterwarnings=default -o faulthandler_timeout=45 -p no:cacheprovider)
"$python" -c 'import xdist' 2>/dev/null && pytest+=(-n "$(nproc)")
[ ${#dry[@]} -gt 0 ] && pytest+=(--collect-only)
if is_wanted tests; then
  climb tests "${pytest[@]}" tests/cuda/test_native.py tests/cuda/test_torch.py tests/cuda/test_queue.py \
    tests/cuda/test_rounds.py tests/solve -k cuda
fi
for pid in "${watched[@]}"; do wait "$pid" || failed=1; done

rung profile
if not_dry ncu && need ncu ncu; then
  climb ncu ncu --clock-control none --set full -k regex:advance -s 30 -c 1 \
    "$python" -P benchmarks/gpu_rungs.py rounds
fi

bench=("$python" -P benchmarks/bench_gpu.py)
[ ${#dry[@]} -gt 0 ] && bench+=(--device cpu --images 8 --pictures 1 --side 32)
is_wanted digits &&
  climb digits "${bench[@]}" --parts every_target,one_target,agreement,torch_path
is_wanted pictures && climb pictures "${bench[@]}" --parts resnet50
is_wanted kernels && climb kernels "${pytest[@]}" tests/cuda/test_kernels_gpu.py
if not_dry rivals && is_wanted rivals; then
  if "$python" -P -c 'import sys; from harness import rivals; sys.exit(not rivals.is_installed())'; then
    climb rivals "${bench[@]}" --parts PDGD-500,DDN-1000,ALMA-1000
  else
    verdict skipped rivals 0 "adv-lib is not installed"
  fi
fi
exit "$failed"
