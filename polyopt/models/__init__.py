"""Provide losses, initial weights, data sets and small networks, written against Ops."""
