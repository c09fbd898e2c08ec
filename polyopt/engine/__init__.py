"""Drive an update: plan it, run it on a backend, repeat it at little cost."""
