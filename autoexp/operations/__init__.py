"""Operations on a session: actions of rules, restarts, requests, launches, cancellations."""
