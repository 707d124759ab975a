"""ART code with the lines changed that are marked: half of each image stays as it is."""

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from advcore import data
from advcore.adapters.art import MinimumDistortion  # changed

images, labels = (array[:20] for array in data.embedded_digits())
classifier = PyTorchClassifier(
    data.embedded_network().to_torch(),
    loss=torch.nn.CrossEntropyLoss(),
    input_shape=(784,),
    nb_classes=10,
    clip_values=(0, 1),
    device_type="cpu",
)

attack = MinimumDistortion(
    classifier, norm=np.inf
)  # changed from art's AutoProjectedGradientDescent
mask = np.arange(784) < 392
adversarial = attack.generate(images, labels, mask=mask)
fooled = classifier.predict(adversarial).argmax(axis=1) != labels
sizes = np.abs(adversarial - images).max(axis=1)
print(f"success {fooled.mean():.0%}, median linf {np.median(sizes):.3f}")
