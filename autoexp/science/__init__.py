"""What the ends of branches say together: scaling laws."""
