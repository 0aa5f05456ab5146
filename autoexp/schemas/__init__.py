"""What `--json` prints, as models, and as the JSON Schemas beside them."""
