"""A small vision transformer for MNIST: the network without a kink among those of the benchmarks.

16 patches of 7x7, a width of 48, two layers of four heads, GELU, the mean of the tokens. Trained
with one thread and a fixed seed, Adam, 3 epochs; about five minutes on one core.
"""

from __future__ import annotations

import torch
from numpy.typing import NDArray

PATCH, WIDTH, LAYERS, HEADS, EPOCHS, BATCH, RATE, SEED = 7, 48, 2, 4, 3, 128, 2e-3, 0
RECIPE = f"vit-{PATCH}-{WIDTH}-{LAYERS}-{HEADS}-{EPOCHS}-{BATCH}-{RATE}-{SEED}"
"""Everything that the weights depend on, for the name of their file."""


class Layer(torch.nn.Module):
    """Attention and a perceptron, each behind a layer norm and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = (
            torch.nn.LayerNorm(WIDTH),
            torch.nn.LayerNorm(WIDTH),
        )
        self.queries_keys_values = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = torch.nn.Linear(WIDTH, WIDTH)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.GELU(), torch.nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, tokens, WIDTH) in and out."""
        batch, tokens, _ = x.shape
        parts = self.queries_keys_values(self.before_attention(x))
        parts = parts.view(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind()
        weights = (q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5).softmax(dim=-1)
        x = x + self.mix((weights @ v).transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x + torch.as_tensor(self.mlp(self.before_mlp(x)))


class VisionTransformer(torch.nn.Module):
    """Logits (B, 10) of images (B, 1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.place = torch.nn.Parameter(0.02 * torch.randn(1, (28 // PATCH) ** 2, WIDTH))
        self.layers = torch.nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm, self.head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, 28, 28) in, (B, 10) out."""
        tokens = self.embed(x - 0.5).flatten(2).transpose(1, 2) + self.place
        return torch.as_tensor(self.head(self.norm(self.layers(tokens)).mean(dim=1)))


def untrained() -> VisionTransformer:
    """The network with its initial weights, which `SEED` alone decides."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return VisionTransformer()


def train(model: VisionTransformer, images: NDArray, labels: NDArray, epochs: int = EPOCHS) -> None:
    """Cross-entropy on flat images (N, 784) and labels (N,): Adam, cosine rate, in place."""
    x = torch.from_numpy(images).view(-1, 1, 28, 28)
    y = torch.from_numpy(labels).long()
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(x) // BATCH))
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
