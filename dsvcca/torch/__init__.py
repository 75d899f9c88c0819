"""What PyTorch models need: their activations into a store, by hooks, once or while they are trained."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("dsvcca.torch needs PyTorch: pip install 'dsvcca[torch]'") from error

from dsvcca.torch.capture import capture as capture
from dsvcca.torch.probing import Probe as Probe
