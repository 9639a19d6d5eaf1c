"""The article that turns a plain PyTorch loop for MNIST into a module.

Left out there and completed here: images as rows of a tensor, which the loaders' collation needs, and on how
much data. The four GPUs that it asks for are not there: the one error, and the script with the accelerator
replaced.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

import orchestrator as pl
from cluster import PlacementError
from tests.documents.torchvision_stand_in import Compose, ToTensor, datasets

pytestmark = pytest.mark.filterwarnings("ignore:.*is an older form:FutureWarning")
rows = Compose([ToTensor(), torch.flatten])


class Net(pl.LightningModule):
    def __init__(self):
        super(Net, self).__init__()  # noqa: UP008
        self.linear1 = nn.Linear(784, 128)
        self.linear2 = nn.Linear(128, 10)

    def forward(self, x):
        x = self.linear1(x)
        x = F.relu(x)
        x = self.linear2(x)
        output = F.log_softmax(x, dim=1)
        return output

    def training_step(self, batch):
        x, y = batch
        y_hat = self(x)
        loss = F.cross_entropy(y_hat, y)
        return loss

    def test_step(self, batch):
        x, y = batch
        y_hat = self(x)
        loss = F.cross_entropy(y_hat, y)
        return loss

    def configure_optimizers(self):
        return optim.Adadelta(self.parameters(), lr=0.01)


class PlainNet(nn.Module):
    def __init__(self):
        super(PlainNet, self).__init__()  # noqa: UP008
        self.linear1 = nn.Linear(784, 128)
        self.linear2 = nn.Linear(128, 10)

    def forward(self, x):
        x = self.linear1(x)
        x = F.relu(x)
        x = self.linear2(x)
        output = F.log_softmax(x, dim=1)
        return output


def loaders() -> tuple[Any, Any]:
    """The article's two loaders."""
    dataset1 = datasets.MNIST("../data", train=True, download=True, transform=rows)
    dataset2 = datasets.MNIST("../data", train=False, transform=rows)
    train_loader = torch.utils.data.DataLoader(dataset1)
    test_loader = torch.utils.data.DataLoader(dataset2)
    return train_loader, test_loader


def test_the_module_computes_what_the_plain_loop_does() -> None:
    """The article's two programs end at the same weights, to the bit."""
    model, plain = Net(), PlainNet()
    plain.load_state_dict(model.state_dict())
    train_loader, test_loader = loaders()
    trainer = pl.Trainer(gpus=0, max_epochs=1, limit_train_batches=20)
    trainer.fit(model, train_loader)
    trainer.test(model, test_loader)

    optimizer = optim.Adadelta(plain.parameters(), lr=0.01)
    plain.train()
    for batch_idx, (data, target) in enumerate(train_loader):
        if batch_idx == 20:
            break
        optimizer.zero_grad()
        output = plain(data)
        loss = F.cross_entropy(output, target)
        loss.backward()
        optimizer.step()

    for name, weight in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)


@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.device_count() >= 4, reason="there are four GPUs")
def test_gpus_that_are_not_there_are_one_error() -> None:
    """`gpus=4` on a machine without them says what was asked for and what there is."""
    trainer = pl.Trainer(gpus=4)
    with pytest.raises(PlacementError, match=r"asked 4 x \{CPU: 1, GPU: 1\}.*\n.*GPU: 0"):
        trainer.fit(Net(), loaders()[0])


@pytest.mark.ray
def test_the_script_on_two_workers() -> None:
    """With the accelerator replaced the same script trains and tests on a group."""
    model = Net()
    before = model.linear2.weight.detach().clone()
    train_loader, test_loader = loaders()
    trainer = pl.Trainer(accelerator="cpu", devices=2, resources_per_worker={"CPU": 0.5}, max_epochs=1)
    trainer.fit(model, train_loader)
    trainer.test(model, test_loader)
    assert trainer.global_step == 3
    assert not torch.equal(model.linear2.weight, before)
