"""What is to be predicted: one file per task."""
