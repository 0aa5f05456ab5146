"""Schedulers: where attempts are submitted, looked up and cancelled."""
