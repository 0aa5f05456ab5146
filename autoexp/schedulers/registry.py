"""Makes the scheduler that a configuration names."""

from autoexp.config.experiment import Experiment
from autoexp.resources.local import OwnMachine
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.base import Scheduler


def scheduler_for(experiment: Experiment) -> Scheduler:
    """The scheduler of the experiment's jobs."""
    # Imported here: submitit takes a moment, and most commands submit nothing.
    machine = experiment.slurm
    if isinstance(machine, SlurmCluster):
        from autoexp.schedulers.mixed import MixedScheduler
        from autoexp.schedulers.slurm.scheduler import SlurmScheduler

        return MixedScheduler(SlurmScheduler(machine))
    if isinstance(machine, OwnMachine):
        own: Scheduler = machine.scheduler()
        return own
    from autoexp.schedulers.local import LocalScheduler

    return LocalScheduler()
