"""Values that follow from others: lengths in tokens, helper values, repeats."""
