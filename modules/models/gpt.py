"""A small GPT over bytes: it learns to continue a text, with 256 tokens and no tokenizer.

A batch is a tensor of bytes of shape (n, t + 1) and any integer type, t up to `context`: each byte is
predicted from those before it. Loss is cross entropy in nats a byte; ``val_bpb`` is the same in bits. The
architecture is GPT-2's with pre-normalisation (Radford et al., 2019), its initialisation included. Longer
sequences than `context` are refused.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modules.module import LightningModule


class _Block(nn.Module):
    """Causal self-attention, then a perceptron, each added to what came in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        parts = self.qkv(self.norm_attention(x)).view(n, t, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(n, t, width)))
        added: Tensor = self.drop(
            self.down(nn.functional.gelu(self.up(self.norm_perceptron(x)), approximate="tanh"))
        )
        return x + added


class ByteGPT(LightningModule):
    """Learns to continue a text.

    Args:
        context: The longest sequence, in bytes.
        layers: Blocks.
        heads: Attention heads; they divide `width`.
        width: Numbers that stand for a byte inside.
        dropout: Share of values that are dropped in training.
        lr: Learning rate of AdamW.
        weight_decay: Decoupled, of matrices only.

    Raises:
        ValueError: `heads` does not divide `width`.
    """

    def __init__(
        self,
        context: int = 128,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"ByteGPT(width={width}, heads={heads}): the heads do not divide the width. "
                f"Use width={heads * max(1, width // heads)}."
            )
        self.save_hyperparameters()
        self.context, self.lr, self.weight_decay = context, lr, weight_decay
        self.token, self.place = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(_Block(width, heads, dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        self.head.weight = self.token.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_the_sum = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * layers) if into_the_sum else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores of shape (n, t, 256) for the byte after each of `tokens`, of shape (n, t)."""
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(
                f"ByteGPT(context={self.context}) got sequences of {length} bytes. Shorten them, or set "
                f"context={length}."
            )
        places = torch.arange(length, device=tokens.device)
        scores: Tensor = self.head(self.norm(self.blocks(self.token(tokens) + self.place(places))))
        return scores

    def loss(self, batch: Tensor) -> Tensor:
        """Return the mean cross entropy, in nats a byte, of a batch of shape (n, t + 1)."""
        tokens = batch.long()
        scores = self(tokens[:, :-1])
        return nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Log ``train_loss`` and return it."""
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log ``val_loss`` in nats and ``val_bpb`` in bits a byte, over all ranks."""
        self._log_all("val", batch)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log ``test_loss`` and ``test_bpb``."""
        self._log_all("test", batch)

    def _log_all(self, stage: str, batch: Tensor) -> None:
        loss = self.loss(batch)
        self.log(f"{stage}_loss", loss, sync_dist=True, prog_bar=stage == "val")
        self.log(f"{stage}_bpb", loss / math.log(2), sync_dist=True)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the most probable next byte after each sequence of shape (n, t): shape (n,), int64."""
        found: Tensor = self(batch.long()[:, -self.context :])[:, -1].argmax(dim=-1)
        return found

    @torch.no_grad()
    def generate(self, prompt: bytes, length: int, temperature: float = 1.0) -> bytes:
        """Return `prompt` with `length` bytes added, drawn from torch's global random numbers.

        Args:
            prompt: At least one byte.
            length: Bytes to add.
            temperature: Above 1 more surprising, below 1 less; 0 always takes the most probable byte.

        Raises:
            ValueError: The prompt is empty.
        """
        if not prompt:
            raise ValueError("generate(prompt=b''): there is nothing to continue. Give at least one byte.")
        tokens = torch.tensor([list(prompt)], device=self.device)
        for _ in range(length):
            scores = self(tokens[:, -self.context :])[:, -1]
            if temperature > 0:
                following = torch.multinomial(torch.softmax(scores / temperature, dim=-1), 1)
            else:
                following = scores.argmax(dim=-1, keepdim=True)
            tokens = torch.cat([tokens, following], dim=1)
        return bytes(tokens[0].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, which decays matrices only."""
        matrices = [parameter for parameter in self.parameters() if parameter.dim() >= 2]
        others = [parameter for parameter in self.parameters() if parameter.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95))
