"""GPU slots of a pool that many sessions share: taken, kept and given back."""
