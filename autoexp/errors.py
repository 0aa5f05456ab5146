"""What can go wrong, as one tree.

    AutoexpError
      BadInput                 wrong configuration or arguments; nothing was submitted   exit 2
        NotAgreed              somebody said no to the plan's price                      exit 2
      SessionError
        SessionNotFound        no such session below the sessions root                   exit 2
        SessionHeld            another live monitor holds the session                    exit 3
        SessionDamaged         a file of the session does not parse                      exit 1
        SessionGivenUp         its process died at every start                           exit 1
      SchedulerError
        SchedulerUnavailable   no information: an outage, never a state of a job
        SubmissionRefused      the scheduler said no for a lasting reason
        SubmissionPostponed    the scheduler said no for a passing reason: try again
          SubmitLimitReached   there are as many jobs as this user may submit
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
    """Somebody was asked whether the plan may go ahead, and said no."""


class SessionError(AutoexpError):
    """Something is wrong with a session directory."""


class SessionNotFound(SessionError):
    """No session of that name exists."""

    exit_code = 2


class SessionHeld(SessionError):
    """Another live monitor holds the session's lease."""

    exit_code = 3


class SessionDamaged(SessionError):
    """A file of the session does not parse; nothing is skipped or overwritten."""


class SessionGivenUp(SessionError):
    """The session's process died again and again without getting anywhere."""


class SchedulerError(AutoexpError):
    """The scheduler did not do what was asked."""


class SchedulerUnavailable(SchedulerError):
    """The scheduler gave no answer: nothing is known, nothing changes."""


class SubmissionRefused(SchedulerError):
    """The scheduler refused a submission for a lasting reason, in its own words."""


class SubmissionPostponed(SchedulerError):
    """The scheduler refused a submission for a passing reason; it is tried again."""


class SubmitLimitReached(SubmissionPostponed):
    """A limit on the number of submitted jobs is reached: fewer at once may be taken."""


class SubmissionUncertain(SchedulerError):
    """A submission got no answer: it has to be looked up by name before it is repeated."""
