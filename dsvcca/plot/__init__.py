"""Figures from results and tables, each with what chance gives; matplotlib is imported when a figure is drawn.

They take results, chosen by labels, and return the axes they drew: ``axes.figure.savefig(...)`` writes them, and
notebooks show them. Each has a function that returns the numbers it draws.
"""

from dsvcca.plot.classes import Sensitivity, classes, sensitivity
from dsvcca.plot.grids import LayerMeans, layer_means, layers
from dsvcca.plot.lines import Line, over_training, training_lines
from dsvcca.plot.spectra import Spectrum, frequencies, frequency_maps, mean_spectra, spectra
from dsvcca.plot.traces import signal_and_noise
from dsvcca.plot.training import Dynamics, dynamics, learning_dynamics
from dsvcca.plot.trees import clusters

__all__ = [
    "Dynamics",
    "LayerMeans",
    "Line",
    "Sensitivity",
    "Spectrum",
    "classes",
    "clusters",
    "dynamics",
    "frequencies",
    "frequency_maps",
    "layer_means",
    "layers",
    "learning_dynamics",
    "mean_spectra",
    "over_training",
    "sensitivity",
    "signal_and_noise",
    "spectra",
    "training_lines",
]
