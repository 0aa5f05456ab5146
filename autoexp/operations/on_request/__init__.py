"""What people ask of a running job."""
