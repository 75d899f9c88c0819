"""What results say of populations: distances, layers found again, clusters of networks, groups of them.

Numbers of pairs that share a network depend on each other: what is left out or permuted here is networks, never pairs.
Distances are made here and never stored.
"""

from dsvcca.statistics.clustering import Clusters, clusters
from dsvcca.statistics.groups import cohesion_test, group_test
from dsvcca.statistics.pairwise import distances, layer_identification

__all__ = ["Clusters", "clusters", "cohesion_test", "distances", "group_test", "layer_identification"]
