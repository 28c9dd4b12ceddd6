"""Pure arithmetic on tensors: selection, signs, factorisations."""
