"""Each stage of unlearning in jaxunlearn and in PyTorch, on the same inputs."""
