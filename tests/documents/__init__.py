"""Scripts as articles about PyTorch Lightning print them, moved over by changing their import line."""
