"""The proof: numbers of the authors' code against the engine."""
