"""Foolbox code with the lines changed that are marked: robust accuracy at some epsilons."""

import foolbox
import torch

from advcore import data
from advcore.adapters.foolbox import L2AdvcoreAttack  # changed

digits, labels = data.embedded_digits()
images = torch.from_numpy(digits[:20])
model = foolbox.PyTorchModel(data.embedded_network().to_torch(), bounds=(0, 1), device="cpu")
criterion = torch.from_numpy(labels[:20])

attack = L2AdvcoreAttack()  # changed from foolbox.attacks.DDNAttack(steps=1000)
epsilons = [0.25, 0.5, 1.0, 2.0]
_, _, success = attack(model, images, criterion, epsilons=epsilons)
for epsilon, accuracy in zip(epsilons, 1 - success.float().mean(dim=1), strict=True):
    print(f"robust accuracy at l2 {epsilon}: {accuracy:.0%}")

print(attack.last_result)  # new: queries, status and engine of each image
