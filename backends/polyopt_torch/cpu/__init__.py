"""Update tensors that lie in host memory."""
