"""Starting weights.

torch's defaults make this network's first hundred steps a coin toss: its convolutions start at 1 / sqrt(3 fan), and
for a transposed convolution the fan is counted over the outputs, so upsampling and heads start far too small. Here
every convolution keeps the variance of its input (LeCun et al. 1998), the fan being what one output really sums up;
linear layers start at 0.02, as in Swin and ViT. Measured: decision 0008.
"""

from math import prod

from torch import nn

LINEAR_STD = 0.02


def init_weights(module: nn.Module) -> None:
    """For `network.apply`: LeCun-normal convolutions, truncated-normal linear layers, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=LINEAR_STD)
    elif isinstance(module, nn.Conv3d):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    elif isinstance(module, nn.ConvTranspose3d):
        # kernel = stride: each output voxel sees one kernel position of every input channel
        overlap = prod(-(-k // s) for k, s in zip(module.kernel_size, module.stride, strict=True))
        nn.init.normal_(module.weight, std=(module.in_channels * overlap) ** -0.5)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
