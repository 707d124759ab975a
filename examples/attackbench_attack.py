"""attackbenchlib code with the lines changed that are marked: queries within a budget."""

import attackbench
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from advcore import data
from advcore.adapters.attackbench import advcore_attack  # changed

digits, labels = data.embedded_digits()
samples = TensorDataset(torch.from_numpy(digits[:20]), torch.from_numpy(labels[:20]))
results = attackbench.run_attack(
    data.embedded_network().to_torch(),
    DataLoader(samples, batch_size=20),
    advcore_attack,  # changed from attackbench.get_attack("ddn", "adv_lib", "l2")
    "l2",
    device=torch.device("cpu"),
    query_budget=200,
)
queries = np.add(results["num_forwards"], results["num_backwards"])
print(f"success {np.mean(results['adv_success']):.0%}, at most {queries.max()} queries")
print(f"median l2 {np.median(results['distances']['l2']):.3f}")
