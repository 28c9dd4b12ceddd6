"""Headers and a spec become a plan; one loop over tensors carries it out; a record says what was done."""
