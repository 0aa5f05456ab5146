"""The tree of errors.

    AutoexpError
      BadInput                 wrong configuration or arguments; nothing was submitted   exit 2
        NotAgreed              the plan was rejected                      exit 2
      SessionError
        SessionNotFound        no such session below the sessions root                   exit 2
        SessionHeld            another live monitor holds the session                    exit 3
        SessionDamaged         a file of the session does not parse                      exit 1
        SessionGivenUp         its process died at every start                           exit 1
      SchedulerError
        SchedulerUnavailable   no information: an outage, never a state of a job
        SubmissionRefused      the scheduler refused for a lasting reason
        SubmissionPostponed    the scheduler refused for a transient reason: retry
          SubmitLimitReached   this user has as many jobs as allowed
        SubmissionUncertain    no answer: the job may or may not have been accepted

Every message says what happened, to which job or file, and where to look or what to run next.
"""


class AutoexpError(Exception):
    """Base of all errors that autoexp raises on purpose; `exit_code` is the command line's."""

    exit_code = 1


class BadInput(AutoexpError):
    """The configuration or the arguments are wrong; nothing was submitted."""

    exit_code = 2


class NotAgreed(BadInput):
    """The plan was rejected."""


class SessionError(AutoexpError):
    """An error of a session directory."""


class SessionNotFound(SessionError):
    """No session of that name exists."""

    exit_code = 2


class SessionHeld(SessionError):
    """Another live monitor holds the session's lease."""

    exit_code = 3


class SessionDamaged(SessionError):
    """A file of the session does not parse; nothing is skipped or overwritten."""


class SessionGivenUp(SessionError):
    """The session's process crashed repeatedly without progress."""


class SchedulerError(AutoexpError):
    """A request to the scheduler failed."""


class SchedulerUnavailable(SchedulerError):
    """The scheduler did not answer: nothing is known, nothing changes."""


class SubmissionRefused(SchedulerError):
    """The scheduler refused a submission for a lasting reason, in its own words."""


class SubmissionPostponed(SchedulerError):
    """The scheduler refused a submission for a transient reason; it is retried."""


class SubmitLimitReached(SubmissionPostponed):
    """A limit on the number of submitted jobs is reached: fewer at once may be accepted."""


class SubmissionUncertain(SchedulerError):
    """A submission got no answer: the job has to be looked up by name before it is resubmitted."""
