"""`vectors`: task vectors as files, dense or factored, and back onto a base."""
