"""The backends that a configuration can name."""

from autoexp.backends.demo import DemoBackend

AnyBackend = DemoBackend
