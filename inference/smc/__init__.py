"""Sequential Monte Carlo: weighted draws of the posterior, and the evidence."""
