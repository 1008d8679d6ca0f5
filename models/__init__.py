"""Networks behind the priors, and how they are trained."""
