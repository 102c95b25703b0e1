"""MACs through fvcore: the independent count that a profile's own arithmetic must equal."""

from __future__ import annotations

import logging
import warnings

import torch

from deploynas.nn.static import build_layer
from deploynas.spaces import layers as layer_costs
from deploynas.spaces.layers import Layer


def fvcore_costs(layer: Layer) -> tuple[int, int]:
    """MACs and parameters of a layer, counted by fvcore on the torch module.

    fvcore counts one fused multiply-add as one FLOP and adds batch norms and pooling to its
    total; only its convolution and linear entries are MACs as papers count them.

    Raises:
        AssertionError: They differ from the layer's own arithmetic: a defect, never bad input.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore's use of torch.jit is deprecated
        from fvcore.nn import FlopCountAnalysis, parameter_count

    module = build_layer(layer).eval()
    image = torch.zeros(1, layer.in_channels, layer.height, layer.width)
    images = (image,) * layer.num_inputs
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's deprecation notes
        analysis = FlopCountAnalysis(module, images)
        by_operator = (
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
        )
    macs = int(by_operator["conv"] + by_operator["linear"])
    params = int(parameter_count(module).get("", 0))
    assert macs == layer_costs.macs(layer), (layer, macs)
    assert params == layer_costs.params(layer), (layer, params)
    return macs, params
