"""The memory of this process."""


def peak_mebibytes() -> float:
    """The most that was resident so far, in MiB.

    Raises:
        RuntimeError: If the kernel does not tell.
    """
    # Not `getrusage`: its maximum is inherited from the parent process.
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not tell this process's peak memory")
