"""Which checkpoints are kept, why and until when, and the disk space that a plan will take."""
