"""What PyTorch models need: their activations into a store, by hooks."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("dsvcca.torch needs PyTorch: pip install 'dsvcca[torch]'") from error

from dsvcca.torch.capture import capture as capture
