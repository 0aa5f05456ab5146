"""Where a job runs, as configured."""
