"""secml-torch code with the lines changed that are marked: every digit is to become a 3."""

import torch
from secmlt.adv.evasion.perturbation_models import LpPerturbationModels
from secmlt.metrics.classification import AttackSuccessRate
from secmlt.models.pytorch.base_pytorch_nn import BasePyTorchClassifier
from torch.utils.data import DataLoader, TensorDataset

from advcore import data
from advcore.adapters.secml import MinimumDistortion  # changed

digits, labels = data.embedded_digits()
samples = TensorDataset(torch.from_numpy(digits[:20]), torch.from_numpy(labels[:20]))
model = BasePyTorchClassifier(data.embedded_network().to_torch())

attack = MinimumDistortion(LpPerturbationModels.L1, y_target=3)  # changed from secmlt's FMN
adversarial = attack(model, DataLoader(samples, batch_size=10))
success = AttackSuccessRate(y_target=3)(model, adversarial)
print(f"success {float(success):.0%}")
