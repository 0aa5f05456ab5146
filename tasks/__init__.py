"""One Prefect task per side effect: submit, launch, cancel, publish. Never one per poll."""
