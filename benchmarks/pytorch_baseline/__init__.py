"""What our benchmarks are compared with, written as one writes it in PyTorch."""
