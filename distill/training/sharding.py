"""A student's weights over several devices (FSDP2): each rank keeps its part of every parameter, of its gradient and of
its moments; a layer is put together when it runs.

Only the first rank has read the weights. Layer by layer it sends them to the others, and every rank keeps its part: at no
moment does another rank, or a GPU, hold more than one layer or the embedding and head besides its own part.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from distill.training.ranks import Ranks
from distill.training.student import Student


def shard(student: Student, ranks: Ranks, *, bf16: bool, cpu_offload: bool) -> None:
    """Shard in place. The student of every rank but the first may be on torch's meta device.

    `bf16`: matrix products in bf16 of float32 weights, gradients summed in float32. A gradient is the sum over the ranks.
    """
    options = {
        "mesh": ranks.mesh,
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy() if cpu_offload else OffloadPolicy(),
    }
    owners = _owners(student)
    for unit in (*student.model.get_decoder().layers, student):
        _take_from_first(unit.parameters(), owners, ranks)
        if unit is student:
            _take_from_first(unit.buffers(), owners, ranks)
        if unit is student:  # a batch is tokens, and float32 weights and log-probabilities, which are no activations
            options["mp_policy"] = replace(options["mp_policy"], cast_forward_inputs=False)
        fully_shard(unit, **options)
    for module in student.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the step's count, not by ranks. gloo has a plain sum only.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def take_apart(student: Student) -> None:
    """Free what a forward without a backward has left put together: else the model's parameters are not the optimizer's."""
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a parameter, or of what was computed from one. Every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_weights(model: nn.Module, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Every parameter by its name, tied ones once: whole and on the CPU on the first rank, nothing on the others."""
    weights = {}
    for name, parameter in model.named_parameters():
        full = whole(parameter.detach())
        if ranks.is_first:
            weights[name] = full.cpu()
    return weights


def _owners(model: nn.Module) -> dict[torch.Tensor, list[tuple[dict[str, Any], str]]]:
    """Where each parameter and buffer stands; a tied one in several places."""
    found: dict[torch.Tensor, list[tuple[dict[str, Any], str]]] = {}
    for module in model.modules():
        for kept in (module._parameters, module._buffers):
            for name, tensor in kept.items():
                if tensor is not None:
                    found.setdefault(tensor, []).append((kept, name))
    return found


def _take_from_first(tensors: Iterable[torch.Tensor], owners: dict, ranks: Ranks) -> None:
    """Put the first rank's values on this rank's device; those of a meta tensor take its place wherever it stands."""
    for tensor in [t for t in tensors if t in owners]:
        places = owners.pop(tensor)
        if ranks.is_first:
            tensor.data = full = tensor.detach().to(ranks.device)
        else:
            full = torch.empty_like(tensor, device=ranks.device, requires_grad=False)
        dist.broadcast(full, src=0)
        if not ranks.is_first:
            if isinstance(tensor, nn.Parameter):
                full = nn.Parameter(full, requires_grad=tensor.requires_grad)
            for kept, name in places:
                kept[name] = full
