#!/usr/bin/env bash
# The CUDA compiler and runtime in a manylinux_2_28 container, from NVIDIA's repository. Modules built
# with 12.9 run with drivers from 525 on.
set -euo pipefail
case $(uname -m) in
  aarch64) machine=sbsa ;;
  *) machine=$(uname -m) ;;
esac
dnf -y install 'dnf-command(config-manager)'
dnf config-manager --add-repo \
  "https://developer.download.nvidia.com/compute/cuda/repos/rhel8/$machine/cuda-rhel8.repo"
dnf -y install cuda-nvcc-12-9 cuda-cudart-devel-12-9
