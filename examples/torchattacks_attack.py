"""torchattacks code with the lines changed that are marked: images that are normalised."""

import torch

from advcore import data
from advcore.adapters.torchattacks import MinimumDistortion  # changed
from advcore.network import Normalize

digits, labels = data.embedded_digits()
images, labels = torch.from_numpy(digits[:20]).view(-1, 1, 28, 28), torch.from_numpy(labels[:20])
mean, std = 0.1307, 0.3081
model = torch.nn.Sequential(  # takes normalised images
    Normalize(-mean / std, 1 / std), torch.nn.Flatten(), data.embedded_network().to_torch()
).eval()

attack = MinimumDistortion(model, norm="L2")  # changed from torchattacks.CW(model, steps=1000)
attack.set_normalization_used([mean], [std])
normalised = (images - mean) / std
adversarial = attack(normalised, labels)
fooled = model(adversarial).argmax(dim=1) != labels
distances = std * (adversarial - normalised).flatten(1).norm(dim=1)
print(f"success {fooled.float().mean():.0%}, median l2 {distances.median():.3f}")
