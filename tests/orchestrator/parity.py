"""Modules for comparisons of trainers: the same source under any package that has a LightningModule.

Each is built by a function that takes the base class; `CASES` names them with the Trainer's arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

import orchestrator
from tests.orchestrator.tiny import loader, loss_of, network

EPOCHS = 3
SAMPLES = 38  # ten batches of four, the last of two


Configure = Callable[[Any], Any]
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01)


def automatic(base: Any, configure: Configure = SGD) -> Any:
    """A module with dropout that logs its losses and returns one."""

    class Automatic(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network(dropout=0.3)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = loss_of(self.net, batch)
            self.log("loss", loss, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", loss_of(self.net, batch))

        def configure_optimizers(self) -> Any:
            return configure(self.parameters())

    return Automatic()


def own_optimizer_step(base: Any) -> Any:
    """A module that warms its rate up in optimizer_step."""

    class WarmsUp(type(automatic(base))):  # type: ignore[misc]
        def optimizer_step(
            self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
        ) -> None:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (1 + self.global_step)
            optimizer.step(closure=optimizer_closure)

    return WarmsUp()


def own_hooks(base: Any) -> Any:
    """A module that skips batches and epochs' ends, and runs its own backward and clipping."""

    class Own(type(automatic(base))):  # type: ignore[misc]
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 7 and self.current_epoch == 1 else None

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 2 else {"loss": super().training_step(batch, batch_idx)}

        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            (2 * loss).backward(*args, **kwargs)

        def configure_gradient_clipping(
            self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
        ) -> None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    return Own()


def manual(base: Any, configure: Configure = ADAM) -> Any:
    """A module that accumulates two batches, clips and steps by hand, and steps its scheduler."""

    class Manual(type(automatic(base))):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            self.manual_backward(super().training_step(batch, batch_idx) / 2)
            if batch_idx % 2:
                self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
                optimizer.step()
                optimizer.zero_grad()
                self.lr_schedulers().step()

        def configure_optimizers(self) -> Any:
            optimizer = configure(self.parameters())
            return [optimizer], [StepLR(optimizer, 3, gamma=0.7)]

    return Manual()


def gan(base: Any, context: bool = False) -> Any:
    """Two optimizers that take turns, toggled by methods or in a context."""

    class Gan(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.discriminator = network(dropout=0.3), network()
            self.discriminator[0] = nn.utils.skip_init(nn.Linear, 1, 8)
            with torch.no_grad():
                for item in self.discriminator[0].parameters():
                    item.fill_(0.2)

        def loss(self, batch: Any, which: int) -> Tensor:
            inputs, targets = batch
            made = self.generator(inputs)
            if which == 0:
                return nn.functional.softplus(-self.discriminator(made)).mean()
            real, fake = self.discriminator(targets), self.discriminator(made.detach())
            return (nn.functional.softplus(-real) + nn.functional.softplus(fake)).mean()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for which, optimizer in enumerate(self.optimizers()):
                if context:
                    with optimizer.toggle_model(sync_grad=True):
                        self.one(optimizer, batch, which)
                else:
                    self.toggle_optimizer(optimizer)
                    self.one(optimizer, batch, which)
                    self.untoggle_optimizer(optimizer)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch, 1))

        def one(self, optimizer: Any, batch: Any, which: int) -> None:
            loss = self.loss(batch, which)
            self.log(f"loss_{which}", loss, prog_bar=True)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return [ADAM(self.generator.parameters()), SGD(self.discriminator.parameters())], []

    return Gan()


def closing(base: Any) -> Any:
    """LBFGS stepped by hand with a closure."""

    class Closes(type(automatic(base))):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(self.net, batch)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure=closure)

        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.3, max_iter=3)

    return Closes()


def scheduled(parameters: Any, kind: str) -> Any:
    """SGD with a scheduler of one kind."""
    optimizer = SGD(parameters)
    if kind == "plateau":
        plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val_loss"}
    if kind == "step":
        one_cycle = OneCycleLR(optimizer, 0.2, total_steps=EPOCHS * 10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": one_cycle, "interval": "step"}}
    return [optimizer], [StepLR(optimizer, 1, gamma=0.5), {"scheduler": StepLR(optimizer, 1), "frequency": 2}]


CASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "sgd": (automatic, {}),
    "adam": (partial(automatic, configure=ADAM), {}),
    "accumulation": (partial(automatic, configure=ADAM), {"accumulate_grad_batches": 5}),
    "clipping by norm": (automatic, {"gradient_clip_val": 0.1}),
    "clipping by value": (automatic, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
    "step scheduler": (partial(automatic, configure=partial(scheduled, kind="step")), {}),
    "epoch scheduler": (partial(automatic, configure=partial(scheduled, kind="epoch")), {}),
    "plateau scheduler": (partial(automatic, configure=partial(scheduled, kind="plateau")), {}),
    "bf16": (automatic, {"precision": "bf16-mixed"}),
    "bf16 by hand": (manual, {"precision": "bf16-mixed"}),
    "lbfgs": (partial(automatic, configure=partial(torch.optim.LBFGS, lr=0.3, max_iter=3)), {}),
    "lbfgs by hand": (closing, {}),
    "own optimizer_step": (own_optimizer_step, {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}),
    "own hooks": (own_hooks, {"gradient_clip_val": 0.5}),
    "manual": (manual, {}),
    "gan": (gan, {}),
    "gan in contexts": (partial(gan, context=True), {}),
    "max_steps": (gan, {"max_steps": 7, "max_epochs": -1}),
    "limits": (automatic, {"limit_train_batches": 0.5, "max_steps": 12}),
    "validation in mid epoch": (automatic, {"val_check_interval": 3, "accumulate_grad_batches": 2}),
}


def train(package: Any, build: Callable[..., Any], **arguments: Any) -> tuple[Any, Any]:
    """Return the module and the trainer after a fit under `package`."""
    torch.manual_seed(21)
    module = build(package.LightningModule)
    where = {} if "scaling_config" in arguments else {"devices": 1}
    trainer = package.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        **({} if package is orchestrator else {"enable_model_summary": False}),
        **{"max_epochs": EPOCHS, **where, **arguments},
    )
    trainer.fit(module, loader(SAMPLES, shuffle=True), loader(8))
    return module, trainer
