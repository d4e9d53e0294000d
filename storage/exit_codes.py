"""The exit codes of all scripts, and those after which nothing is started again by itself."""

FAILED_CODE = 1
USER_ERROR = 2
PREEMPTED_CODE = 75  # EX_TEMPFAIL of sysexits.h: start the same command again
PEER_LOST_CODE = 76  # EX_PROTOCOL: another rank is gone, start again
FOLDER_LOST_CODE = 73  # EX_CANTCREAT: the run folder was moved, removed or taken by another run
GAVE_UP_CODE = 70  # EX_SOFTWARE: the run ended itself, because going on would make it worse
INTERRUPTED_CODE = 130  # 128 + SIGINT, by the convention of shells

# The same start would meet the same end, or somebody has asked for this one.
FINAL_CODES = frozenset(
    {USER_ERROR, PREEMPTED_CODE, FOLDER_LOST_CODE, GAVE_UP_CODE, INTERRUPTED_CODE}
)
