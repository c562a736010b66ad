"""A vocabulary split over ranks, and a head sharded by FSDP2, give what one process gives: real gloo ranks.

Run as a script, this file is one rank.
"""

import os
import subprocess
import sys

import pytest
import torch

SEED, ROWS, WIDTH, VOCABULARY = 3, 40, 16, 24


def inputs():
    torch.manual_seed(int(os.environ.get("TEST_SEED", SEED)))
    hidden, weight = torch.randn(ROWS, WIDTH), torch.randn(VOCABULARY, WIDTH)
    labels = torch.randint(VOCABULARY, (ROWS,))
    labels[torch.rand(ROWS) < 0.3] = -100
    weight[VOCABULARY - 1] = weight[2]  # two entries with the same logit, on different ranks: argmax is the lower
    labels[0] = 2
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randn(VOCABULARY).requires_grad_(), labels


OPTIONS = {"z_loss": 0.05, "label_smoothing": 0.1, "softcap": 4.0, "return_stats": True}


def split_vocabulary(rank: int, ranks: int) -> None:
    import torch.distributed as dist

    from distill.kernels import linear_cross_entropy

    hidden, weight, bias, labels = inputs()
    size = VOCABULARY // ranks
    own = slice(rank * size, (rank + 1) * size)
    part, part_bias = (x.detach()[own].clone().requires_grad_() for x in (weight, bias))
    for reduction in ("mean", "none"):
        expected, expected_stats = linear_cross_entropy(
            hidden, weight, labels, bias=bias, reduction=reduction, **OPTIONS
        )
        wanted = torch.autograd.grad(expected.sum(), (hidden, weight, bias))
        loss, stats = linear_cross_entropy(
            hidden, part, labels, bias=part_bias, reduction=reduction, group=dist.group.WORLD, **OPTIONS
        )
        found = torch.autograd.grad(loss.sum(), (hidden, part, part_bias))
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(tuple(stats), tuple(expected_stats))
        torch.testing.assert_close(found, (wanted[0], wanted[1][own], wanted[2][own]))
    uneven = weight.detach()[: size - 1 if rank else size]
    with pytest.raises(ValueError, match=f"weight: got parts of {size - 1} to {size} entries"):
        linear_cross_entropy(hidden, uneven, labels.clamp_max(0), reduction="sum", group=dist.group.WORLD)


def sharded_head(rank: int, ranks: int) -> None:
    from torch import nn
    from torch.distributed.fsdp import fully_shard

    from distill.kernels import linear_cross_entropy

    class Model(nn.Module):
        """As a student is: the root owns the head and its forward returns the loss."""

        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.body = nn.Linear(WIDTH, WIDTH, bias=False)
            nn.init.eye_(self.body.weight)
            self.weight = nn.Parameter(weight.detach().clone())

        def forward(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return linear_cross_entropy(self.body(hidden), self.weight, labels, reduction="sum", workspace_bytes=400)

    hidden, weight, _, labels = inputs()
    whole, sharded = Model(weight), Model(weight)
    fully_shard(sharded.body)
    fully_shard(sharded)
    for module in (sharded, sharded.body):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    gathered = []
    original = torch.distributed.all_gather_into_tensor
    torch.distributed.all_gather_into_tensor = lambda *a, **k: (gathered.append(1), original(*a, **k))[1]
    mine = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
    sharded(hidden.detach()[mine], labels[mine]).backward()
    torch.distributed.all_gather_into_tensor = original
    assert len(gathered) <= 3, gathered  # head once; body forward and backward
    whole(hidden.detach(), labels).backward()
    torch.testing.assert_close(sharded.weight.grad.full_tensor(), whole.weight.grad)
    torch.testing.assert_close(sharded.body.weight.grad.full_tensor(), whole.body.weight.grad)
    with pytest.raises(ValueError, match="weight: got a sharded DTensor"):
        sharded.reshard()
        linear_cross_entropy(hidden, sharded.weight, labels)


@pytest.mark.parametrize(("case", "ranks"), [("split_vocabulary", 2), ("split_vocabulary", 4), ("sharded_head", 2)])
def test_ranks_agree_with_one_process(case, ranks, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TEST_SEED": str(int(torch.randint(1 << 30, ())))}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, case, str(rank), str(ranks), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0] * ranks, "\n".join(outputs)


if __name__ == "__main__":
    import torch.distributed as dist

    name, rank, ranks, store = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    {"split_vocabulary": split_vocabulary, "sharded_head": sharded_head}[name](rank, ranks)
    dist.barrier()
    dist.destroy_process_group()
