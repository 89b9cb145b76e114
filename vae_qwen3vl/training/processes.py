"""The processes of a run: what starts them, what they sum up, and how a model that one GPU does not hold is shared.

With FSDP2 only what is frozen is sharded. What is trained is small and stays whole on every process, its gradients
averaged once a step: so optimizer, clipping, checkpoints and results are those of plain data parallelism, and the
parameters of an FSDP group are all of one dtype. Knows Accelerate; knows nothing of 3D or of the training loop.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)


def make_accelerator(*, cpu: bool) -> Accelerator:
    """Return devices and processes; bfloat16 on CUDA unless `accelerate launch` says otherwise."""
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError("training needs accelerate: pip install 'vae-qwen3vl[language]'") from error
    # The default of `accelerate launch` leaves weights out of all processes but the first; see `shard_frozen`.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION") or ("no" if cpu else "bf16")
    return Accelerator(cpu=cpu, mixed_precision="no" if cpu else precision)


def summed(value: float, accelerator: Accelerator) -> float:
    """Return the sum of a number over all processes."""
    if accelerator.num_processes == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(total)
    return float(total)


def is_sharding(accelerator: Accelerator) -> bool:
    """Return whether the processes were started with FSDP.

    Raises:
        ValueError: with its first version, or with a PyTorch whose FSDP2 cannot leave out single parameters.
    """
    from accelerate.utils import DistributedType, is_torch_version

    if accelerator.distributed_type != DistributedType.FSDP:
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            logger.warning(
                "FSDP is asked for, but Accelerate shards on GPUs only: every process holds the whole model"
            )
        return False
    version = accelerator.state.fsdp_plugin.fsdp_version
    if version != 2:
        raise ValueError(f"fsdp_version must be 2, got {version}: set it in fsdp_config, or give --fsdp_version 2")
    if is_torch_version("<", "2.7.0"):  # Accelerate would shard what is trained as well, and say nothing
        raise ValueError(f"FSDP needs PyTorch 2.7 or later, this is {torch.__version__}")
    return True


def shard_frozen(model: Model, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> Model:
    """Shard a model's frozen parameters in place, one group for each layer that its `_no_split_modules` names.

    Args:
        model: on the CPU, but for its trained parameters: layers go to the device one by one, each only as a shard.
        optimizer: of the trained parameters, which stay what they are.
        accelerator: of processes that were started with FSDP.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    plugin = accelerator.state.fsdp_plugin
    if plugin.auto_wrap_policy is None:  # the default of Accelerate would gather the whole model for every pass
        plugin.auto_wrap_policy = transformer_auto_wrap_policy
    # Parameters keep their dtypes and autocast chooses that of each operation, as without shards. Accelerate's own
    # policy would round the objects' codes and the loss to bfloat16.
    plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    plugin.ignored_modules = [
        module for module in model.modules() if any(p.requires_grad for p in module.parameters(recurse=False))
    ]
    # Reading weights in one process alone fails at the projector's buffer (Accelerate 1.15).
    plugin.cpu_ram_efficient_loading = False
    prepared, _ = accelerator.prepare(model, optimizer)
    return prepared


@torch.no_grad()
def average_gradients(parameters: Sequence[Tensor], processes: int) -> None:
    """Average the gradients of parameters that every process holds whole, in one message."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    parts = (flat / processes).split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
