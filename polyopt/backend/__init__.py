"""Connect frameworks: the protocol of a backend, the registry, conversion, gradients."""
