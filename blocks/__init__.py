"""Where jobs run and how: Prefect blocks over the core's schedulers."""
