"""Pure steps of Markov chains: ``(state) -> (state, info)``, and draws from conditionals."""
