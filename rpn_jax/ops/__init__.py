"""Pure functions of one image, in jax.numpy alone: geometry, matching, losses, proposals."""
