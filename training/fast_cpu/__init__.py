"""Training by hand on a CPU: the same losses and gradients as the plain way, sooner."""
