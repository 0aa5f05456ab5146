"""Rules: what to look for, when it counts, what to do. See docs/rules.md for the language."""
