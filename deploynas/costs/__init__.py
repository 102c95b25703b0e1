"""What a network may be limited in: latency on a device, MACs, parameters, bytes, what is added.

A limit, a front and a verdict know costs, and nothing of what a cost is.
"""

from __future__ import annotations

from deploynas.costs.base import Cost, Floats, LayerSum, MeasuredFile
from deploynas.costs.quantity import Quantity
from deploynas.plugins import Plugins

COSTS: Plugins[type[Cost]] = Plugins(
    "cost",
    "deploynas.costs",
    {
        "latency_ms": "deploynas.costs.latency:Latency",
        "macs": "deploynas.costs.layers:Macs",
        "params": "deploynas.costs.layers:Params",
        "peak_memory_bytes": "deploynas.costs.layers:PeakMemory",
        "weight_bytes": "deploynas.costs.layers:WeightBytes",
    },
)

__all__ = ["COSTS", "Cost", "Floats", "LayerSum", "MeasuredFile", "Quantity"]
