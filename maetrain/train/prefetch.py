"""Brings batches to the device one ahead, so that the copy of the next runs beside the computation of this one."""

from collections.abc import Iterator

import torch

from data_shards.loading.pretrain import PretrainBatch


def on_device(batches: Iterator[PretrainBatch], device: torch.device) -> Iterator[PretrainBatch]:
    """The same batches with their voxels on `device`. On a CPU nothing is done; on a GPU they should be pinned."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    ahead = _copied(batches, device, stream)
    while True:
        torch.cuda.current_stream(device).wait_stream(stream)
        batch = ahead
        # else the allocator could give the memory away while the main stream still reads it
        for tensor in (batch.stored_BCDHW, batch.scale_B, batch.offset_B):
            tensor.record_stream(torch.cuda.current_stream(device))
        ahead = _copied(batches, device, stream)
        yield batch


def _copied(batches: Iterator[PretrainBatch], device: torch.device, stream: torch.cuda.Stream) -> PretrainBatch:
    batch = next(batches)
    with torch.cuda.stream(stream):
        return batch.to(device)
