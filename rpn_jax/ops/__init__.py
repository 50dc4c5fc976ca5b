"""Pure functions of one image, in jax.numpy only: geometry, matching, losses, proposals."""
