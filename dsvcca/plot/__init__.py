"""Figures from results and tables; matplotlib is imported when a figure is drawn."""

from dsvcca.plot.grids import LayerMeans, layer_means, layers
from dsvcca.plot.traces import signal_and_noise
from dsvcca.plot.training import Dynamics, dynamics, learning_dynamics

__all__ = [
    "Dynamics",
    "LayerMeans",
    "dynamics",
    "layer_means",
    "layers",
    "learning_dynamics",
    "signal_and_noise",
]
