"""Which parameters and modules of a model are frozen together, from names, bottom up."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from dsvcca.errors import DsvccaError, DsvccaWarning, nearest


@dataclass(frozen=True)
class Group:
    """What is frozen at once.

    Attributes
    ----------
    name : str
        The names that were given, joined by "+".
    parameters : tuple of str
        Those that are trained now and that no later group holds.
    keepers : tuple of str
        Modules with buffers of their own, such as running statistics, that no later group holds.
    output : str or None
        The last module that was named.
    """

    name: str
    parameters: tuple[str, ...]
    keepers: tuple[str, ...]
    output: str | None


def groups_of(model: nn.Module, layers: Any) -> tuple[list[Group], list[str]]:
    """Return groups in their order, and the parameters that are trained and in none of them.

    Parameters
    ----------
    layers : list of str or of lists of str
        Names of modules or of parameters.

    Raises
    ------
    DsvccaError
        For names that the model does not have, that stand twice or inside another, and groups that have nothing of
        their own to freeze.
    """
    entries = _entries(layers)
    modules = {name: one for name, one in model.named_modules(remove_duplicate=False) if name}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    _check_names([name for names in entries for name in names], [*modules, *parameters], model)

    last: dict[int, int] = {}  # of every parameter and module the last group that holds it
    first: dict[int, int] = {}
    held = [_inside(names, parameters) for names in entries]
    keepers = [
        [name for name in _inside(names, modules) if next(modules[name].buffers(recurse=False), None) is not None]
        for names in entries
    ]
    trained = [[name for name in names if parameters[name].requires_grad] for names in held]
    for i in range(len(entries)):
        for one in [parameters[name] for name in trained[i]] + [modules[name] for name in keepers[i]]:
            first.setdefault(id(one), i)
            last[id(one)] = i

    found = []
    for i, names in enumerate(entries):
        title = "+".join(names)
        own = {id(parameters[name]): name for name in reversed(trained[i]) if last[id(parameters[name])] == i}
        if not own:
            raise DsvccaError(_nothing(title, names, held[i], trained[i], entries, last, parameters))
        own_keepers = {id(modules[name]): name for name in keepers[i] if last[id(modules[name])] == i}
        output = next((name for name in reversed(names) if name in modules), None)
        found.append(Group(title, tuple(reversed(own.values())), tuple(own_keepers.values()), output))

    for i, names in enumerate(trained):
        for name in names:
            if first[key := id(parameters[name])] == i != last[key]:
                warnings.warn(
                    f"parameter {name!r} is in group {found[i].name!r} and in {found[last[key]].name!r}: it is frozen "
                    "with the last of them, and until then gradients go through everything above it",
                    DsvccaWarning,
                    stacklevel=3,
                )
    for name, module in modules.items():
        statistics = isinstance(module, _NormBase) and module.running_mean is not None
        if statistics and id(module) not in last and not any(one.requires_grad for one in module.parameters()):
            warnings.warn(
                f"{name!r} ({type(module).__name__}) is in no group, and its running statistics go on moving: name it "
                "together with the layer before it",
                DsvccaWarning,
                stacklevel=3,
            )
    loose = {id(one): name for name, one in parameters.items() if one.requires_grad and id(one) not in last}
    return found, list(loose.values())


def _entries(layers: Any) -> list[list[str]]:
    """Return the names of each group."""
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise DsvccaError(f"layers={layers!r} is a {type(layers).__name__}: pass a list of names, bottom up")
    entries = []
    for one in layers:
        names = [one] if isinstance(one, str) else one
        if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
            raise DsvccaError(f"layers holds {one!r}: a group is the name of a module, or a list of names")
        entries.append(list(names))
    if not entries:
        raise DsvccaError("layers is empty: name what is to be frozen, bottom up, ['conv1', ['conv2', 'bn2'], 'fc']")
    return entries


def _check_names(names: Sequence[str], known: Sequence[str], model: nn.Module) -> None:
    """Raise where a name is unknown, stands twice or inside another."""
    for i, name in enumerate(names):
        if name not in known:
            raise DsvccaError(
                f"the model ({type(model).__name__}) has no module or parameter {name!r}: {nearest(name, known)}"
            )
        if name in names[:i]:
            raise DsvccaError(f"layers names {name!r} twice: a layer is frozen once")
        for other in names:
            if name.startswith(other + "."):
                raise DsvccaError(f"{name!r} is inside {other!r}, and layers names both: name one of them")


def _inside(names: Sequence[str], known: Iterable[str]) -> list[str]:
    """Return the names that are given or inside of those."""
    return [one for one in known if any(one == name or one.startswith(name + ".") for name in names)]


def _nothing(
    title: str,
    names: Sequence[str],
    held: Sequence[str],
    trained: Sequence[str],
    entries: Sequence[Sequence[str]],
    last: dict[int, int],
    parameters: dict[str, nn.Parameter],
) -> str:
    """Return why a group has nothing to freeze, and what to do."""
    if not held:
        return (
            f"group {title!r} has no parameters to freeze: leave it out of layers, or name it together with the layer "
            f"before it, [..., {names[0]!r}]"
        )
    if not trained:
        return f"no parameter of group {title!r} is trained (requires_grad is False): leave it out of layers"
    where = "+".join(entries[last[id(parameters[trained[0]])]])
    return (
        f"group {title!r} shares all its parameters with group {where!r}, which is frozen later: leave {title!r} out "
        "of layers, or name both in one group"
    )
