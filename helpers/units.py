"""Units, and quantities as text. Every size that the project computes is in GiB (2**30 bytes)."""

GIB = 2**30


def size_text(count: int) -> str:
    """`count` bytes in the largest unit that gives at least a tenth: "1.25 GiB", "3.4 MiB"."""
    for power, digits, name in ((30, 2, "GiB"), (20, 1, "MiB"), (10, 1, "KiB")):
        if 10 * count >= 2**power:
            return f"{count / 2**power:.{digits}f} {name}"
    return f"{count} B"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "42 s", "7 min 5 s", "1 h 3 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
