"""What PyTorch models need: activations into a store, once or while they learn; directions applied; layers frozen."""

from dsvcca.errors import needing as _needing

with _needing("dsvcca.torch needs", "torch"):
    import torch as _torch  # noqa: F401

from dsvcca.torch.capture import capture as capture
from dsvcca.torch.compressing import compress as compress
from dsvcca.torch.flops import Cost as Cost
from dsvcca.torch.flops import cost as cost
from dsvcca.torch.freezing import FreezeTraining as FreezeTraining
from dsvcca.torch.probing import Probe as Probe
from dsvcca.torch.restrict import keep_neurons as keep_neurons
from dsvcca.torch.restrict import maximal_neurons as maximal_neurons
from dsvcca.torch.restrict import project as project
from dsvcca.torch.settling import WhenSettled as WhenSettled
