"""What is done to a session: actions of rules, restarts, requests, launches, cancellations."""
