"""Resources of jobs, as configured."""
