"""Region proposal networks in JAX."""
