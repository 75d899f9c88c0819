"""Save what the layers of one network do: a job of capture.sbatch. Put your network and your data in their places."""

import argparse

import torch

import dsvcca

LAYERS = ["0", "2", "4"]  # as `model.named_modules()` calls them


def network(seed):
    """Return the network of a seed: load its weights here."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    )


def data():
    """Return batches of the same datapoints, in the same order, for every network."""
    x = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    return x.split(250)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("store")
    arguments.add_argument("--seed", type=int, required=True)
    given = arguments.parse_args()
    store = dsvcca.create_store(given.store, datapoints=1000)  # or opened, if another job was faster
    dsvcca.torch.capture(network(given.seed), data(), store, layers=LAYERS, if_exists="skip", seed=given.seed)
