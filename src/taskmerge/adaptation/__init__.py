"""Learning what merged weights and task-specific parts should be, from items without labels."""
