"""Limits that the system sets to a process."""

import errno
import resource

FULL = (errno.ENOSPC, errno.EDQUOT)  # error numbers of a disk without room, and of a quota that is used up
FEWEST_FILES, ENOUGH_FILES = 256, 4096  # that may be open at the same time


def allow_open_files() -> int:
    """Raises the limit of open files as far as the system lets it and this package may need, and returns it.

    Storage libraries open many files at once, and some wait forever where they get fewer than `FEWEST_FILES`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= ENOUGH_FILES:
        return ENOUGH_FILES
    allowed = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed
