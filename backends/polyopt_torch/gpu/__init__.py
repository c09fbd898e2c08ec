"""Update tensors on a device: foreach operations and traced Triton kernels."""
