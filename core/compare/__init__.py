"""What a provider must hold, what it holds, and how the two differ. Writes nothing and calls nobody."""
