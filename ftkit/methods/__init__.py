"""Ways to solve a task: one file per method."""
