"""Functions in other processes."""

import multiprocessing


def forked(function, *arguments) -> tuple[multiprocessing.Process, str]:
    """Starts a function in another process; returns the process and the first object that the function sends."""
    context = multiprocessing.get_context('fork')  # starting Python anew takes seconds
    mine, others = context.Pipe()
    process = context.Process(target=function, args=(others, *arguments))
    process.start()
    others.close()  # a process that fails ends the wait
    return process, mine.recv()
