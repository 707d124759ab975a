"""adv-lib code with the lines changed that are marked: distances of targeted attacks."""

import functools

import torch

from advcore import data
from advcore.adapters.advlib import advcore_attack  # changed from adv_lib.attacks import ddn

digits, labels = data.embedded_digits()
inputs, model = torch.from_numpy(digits[:20]), data.embedded_network().to_torch()
targets = (torch.from_numpy(labels[:20]) + 1) % 10

attack = functools.partial(advcore_attack, norm=2)  # changed from partial(ddn, steps=1000)
adversarial = attack(model, inputs, targets, targeted=True)
reached = model(adversarial).argmax(dim=1) == targets
distances = (adversarial - inputs).flatten(1).norm(dim=1)
print(f"success {reached.float().mean():.0%}, median l2 {distances.median():.3f}")
