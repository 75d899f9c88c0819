"""What PyTorch models need: their activations into a store, by hooks; layers frozen while they are trained."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("dsvcca.torch needs PyTorch: pip install 'dsvcca[torch]'") from error

from dsvcca.torch.capture import capture as capture
from dsvcca.torch.freezing import FreezeTraining as FreezeTraining
from dsvcca.torch.settling import WhenSettled as WhenSettled
