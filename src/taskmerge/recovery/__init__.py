"""Which experts, with which coefficients, make a checkpoint."""
