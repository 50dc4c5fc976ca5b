"""Flax modules: ResNet, the RPN on top of it, and the convolutions under both."""
