"""Measurements of jaxunlearn, by itself and beside PyTorch."""
