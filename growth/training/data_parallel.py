"""A model inside DistributedDataParallel that grows in place, on every rank alike.

All ranks hold the same parameters and the same optimizer state, and a plan makes the same values of them everywhere. A
training loop holds the wrapper, whose hooks are on the parameters that it was made with. So the wrapper is made anew,
by its constructor, in the same object.
"""

from __future__ import annotations

from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer


def data_parallel(trainer: Trainer | None) -> DistributedDataParallel | None:
    """The wrapper of a Trainer's model, if it is one of DistributedDataParallel."""
    wrapped = getattr(trainer, "model_wrapped", None)
    return wrapped if isinstance(wrapped, DistributedDataParallel) else None


def rewrap(wrapper: DistributedDataParallel) -> None:
    """Make a wrapper anew around its module, whose parameters are others than when it was made; the object stays.

    Every rank must call it between two steps. As for any new wrapper, torch compares the shapes of all ranks'
    parameters and sends rank 0's values to the others. Communication hooks must be registered again.
    """
    DistributedDataParallel.__init__(
        wrapper,
        wrapper.module,
        device_ids=wrapper.device_ids,
        output_device=wrapper.output_device,
        dim=wrapper.dim,
        broadcast_buffers=wrapper.broadcast_buffers,
        process_group=wrapper.process_group,
        bucket_cap_mb=wrapper.bucket_bytes_cap / 2**20,
        find_unused_parameters=wrapper.find_unused_parameters,
        gradient_as_bucket_view=wrapper.gradient_as_bucket_view,
        static_graph=wrapper.static_graph,
    )


def rewrap_model(trainer: Trainer | None) -> None:
    """Make the wrapper of a Trainer's model anew, with its communication hook, if the model is data-parallel."""
    wrapper = data_parallel(trainer)
    if trainer is None or wrapper is None:
        return
    rewrap(wrapper)
    handler = trainer.accelerator.ddp_handler
    if handler is not None:
        handler.register_comm_hook(wrapper)
