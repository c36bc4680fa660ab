"""The errors a user can mend. Each says which file, which record, what is wrong and what to do."""


class CpgrError(Exception):
    """A mistake in the input or the set-up; its message is all that the user is shown."""


class DataError(CpgrError):
    """A record of a file that cannot be used.

    >>> print(DataError("refs.p", "ref 7", "the expression is empty", "remove it or pass --data.on_bad skip"))
    refs.p: ref 7: the expression is empty (remove it or pass --data.on_bad skip)
    """

    def __init__(self, file, record, problem: str, mend: str = ""):
        self.file, self.record, self.problem, self.mend = str(file), str(record), problem, mend
        where = f"{self.file}: {self.record}" if self.record else self.file
        super().__init__(f"{where}: {problem}" + (f" ({mend})" if mend else ""))
