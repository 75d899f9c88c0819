"""From the bases that plans leave: directions, training, what many share."""
