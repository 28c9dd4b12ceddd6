"""What comes in: paths become sources (checkpoints, task vectors, adapters); headers are compared, rows are read."""
