"""A large session: many jobs, most of them over, with their actions and a long journal."""

import json
from datetime import timedelta
from pathlib import Path

from autoexp.jobs.record import JobRecord
from autoexp.model import now
from autoexp.monitor.decide import decide
from autoexp.planning.cooldowns import start_rule
from bench.world import sessions
