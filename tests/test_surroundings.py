"""Layers inside what people train them with: autocast, parametrisations, shared and frozen weights, two processes."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pairs import F64, LAYERS, assert_close, pair, tensors
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, grad, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

import lstm_fused

T, B, I, H = 4, 6, 3, 5
each_layer = pytest.mark.parametrize("kind", LAYERS)


def loss_of(module: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors(module(x))]).sum()


def step(module: nn.Module, x: Tensor) -> list[Tensor | None]:
    """The parameters' gradients after a training step by plain descent."""
    module.zero_grad()
    loss_of(module, x).backward()
    with torch.no_grad():
        for p in module.parameters():
            if p.grad is not None:
                p -= 0.01 * p.grad
    return [p.grad for p in module.parameters()]


def assert_same_training(ours: nn.Module, theirs: nn.Module, steps: int = 3) -> None:
    for _ in range(steps):
        x = torch.randn(T, B, I, dtype=F64)
        for a, b in zip(step(ours, x), step(theirs, x), strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert_close(a, b)


@each_layer
def test_parameters_frozen_half_way(kind: str) -> None:
    ours, theirs = pair(kind, I, H, num_layers=2)
    assert_same_training(ours, theirs)
    for module in (ours, theirs):
        for name in ("weight_hh_l0", "bias_ih_l1", "weight_ih_l1"):
            module.get_parameter(name).requires_grad_(False).grad = None
    assert_same_training(ours, theirs)
    for module in (ours, theirs):
        module.get_parameter("weight_hh_l0").requires_grad_(True)
    assert_same_training(ours, theirs)


@each_layer
def test_parameters_shared_half_way(kind: str) -> None:
    ours, theirs = pair(kind, H, H, num_layers=2)
    for module in (ours, theirs):
        module.weight_hh_l1 = module.weight_hh_l0
        module.weight_ih_l1 = module.weight_ih_l0
    for _ in range(3):
        x = torch.randn(T, B, H, dtype=F64)
        for a, b in zip(step(ours, x), step(theirs, x), strict=True):
            assert a is not None and b is not None
            assert_close(a, b)


@each_layer
@pytest.mark.parametrize("parametrize", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_parametrised_weights(kind: str, parametrize: Any) -> None:
    ours, theirs = pair(kind, I, H, num_layers=2)
    for module in (ours, theirs):
        torch.manual_seed(1)
        parametrize(module, "weight_hh_l0")
        parametrize(module, "weight_ih_l1")
    ours(torch.randn(T, B, I, dtype=F64))
    theirs.load_state_dict(ours.state_dict())
    # In training each reading of the weight is a step of spectral_norm's iteration, and torch.nn reads it twice.
    assert_same_training(ours.eval(), theirs.eval())


@each_layer
def test_autocast_over_master_weights(kind: str) -> None:
    """bfloat16 products in a region of autocast; parameters and their gradients stay float32."""
    ours, _ = pair(kind, I, H, dtype=torch.float32)
    exact = copy.deepcopy(ours)
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = ours(x)
        assert output.dtype == torch.bfloat16
        loss = output.float().square().sum()
    loss.backward()
    exact(x)[0].square().sum().backward()
    for a, b in zip(ours.parameters(), exact.parameters(), strict=True):
        assert a.dtype == a.grad.dtype == torch.float32
        assert (a.grad - b.grad).norm() <= 0.03 * b.grad.norm()  # bfloat16 has 8 bits


@each_layer
def test_clipping_each_samples_gradient(kind: str) -> None:
    """Differentially private training: each sample's gradient clipped by its norm, then summed."""
    ours, theirs = pair(kind, I, H)
    x = torch.randn(T, B, I, dtype=F64)
    parameters = {name: p.detach() for name, p in ours.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(ours, parameters, (sample.unsqueeze(1),))[0].square().sum()

    apart = vmap(grad(loss), in_dims=(None, 1))(parameters, x)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in apart.values()]).norm(dim=0)
    clip = float(norms.median())
    found = {name: torch.einsum("b...,b->...", g, (clip / norms).clamp(max=1)) for name, g in apart.items()}
    wanted = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for b in range(B):
        theirs.zero_grad()
        theirs(x[:, b : b + 1])[0].square().sum().backward()
        grads = {name: p.grad for name, p in theirs.named_parameters()}
        norm = torch.stack([g.norm() for g in grads.values()]).norm()
        for name, g in grads.items():
            wanted[name] += g * (clip / norm).clamp(max=1)
    for name in wanted:
        assert_close(found[name], wanted[name], name)


def gradients_of_two(rank: int, kind: str, how: str) -> None:
    """A step on this process's half of the batch gives the gradients of the whole batch's mean."""
    torch.manual_seed(0)
    ours, theirs = pair(kind, I, H, num_layers=2)
    x = torch.randn(T, B, I, dtype=F64)
    (loss_of(theirs, x) / 2).backward()
    own = x[:, rank * B // 2 : (rank + 1) * B // 2]
    if how == "DistributedDataParallel":
        wrapped = DistributedDataParallel(ours)  # it must outlive backward
        loss_of(wrapped, own).backward()
        grads = {name: p.grad for name, p in ours.named_parameters()}
    else:
        fully_shard(ours, mesh=dist.init_device_mesh("cpu", (2,)))
        loss_of(ours, own).backward()
        grads = {name: p.grad.full_tensor() for name, p in ours.named_parameters()}
    for name, p in theirs.named_parameters():
        assert_close(grads[name], p.grad, name)


def in_process(rank: int, kind: str, how: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    gradients_of_two(rank, kind, how)
    dist.barrier()
    os._exit(0)  # taking gloo down at an ordinary exit sometimes hangs or aborts


@each_layer
@pytest.mark.parametrize("how", ["DistributedDataParallel", "fully_shard"])
def test_two_processes(kind: str, how: str, tmp_path: Path) -> None:
    mp.spawn(in_process, (kind, how, str(tmp_path)), nprocs=2)


def test_a_lightning_loop(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = lstm_fused.LSTM(I, H, batch_first=True), nn.Linear(H, 1)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return (self.head(self.layer(batch[0])[0])[..., 0] - batch[1]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    model = Model()
    x = torch.randn(32, T, I)
    target = x.sum(-1).cumsum(1) / 4
    before = model.training_step([x, target], 0).item()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, target), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, data)
    assert model.training_step([x, target], 0).item() < 0.7 * before
