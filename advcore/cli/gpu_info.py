"""What `advcore info --gpu` prints: facts of each GPU, and whether the solver runs there."""

from __future__ import annotations

from .. import _core
from ..data import embedded_network
from ..solve import gpu, gpu_record


def print_gpus() -> None:
    """Print the facts of every GPU that torch sees, and test the solver there.

    The test runs once for a GPU and its software; its outcome is recorded. ADVCORE_GPU chooses what
    calls do, and is printed too.

    Raises
    ------
    DeviceError
        The test has left a GPU unusable for this process.
    """
    try:
        import torch
    except ImportError:
        print("GPU: none without torch")
        return
    _, devices, missing = _core.cuda_status()
    count = torch.cuda.device_count()
    if not devices or not count:
        print(f"GPU: none ({missing or 'torch sees none'})")
        return
    from ..solve.cuda_native import unavailable

    print(f"ADVCORE_GPU: {gpu.setting()}")
    print(f"record of tests: {gpu_record.path()}")
    for index in range(count):
        device = torch.device("cuda", index)
        print(f"{device}")
        for name, value in gpu_record.facts(device).items():
            print(f"  {name}: {value}")
        print(f"  kernels of native networks: {unavailable(embedded_network(), device) or 'ready'}")
        why = gpu.fault(device, "auto")
        print(f"  solver: {f'no ({why})' if why else 'passed its test'}")
