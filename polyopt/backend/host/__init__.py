"""Run traced programs over host memory: threads, kernels and the arrays' addresses."""
