"""Commands that are killed when something has happened."""

import subprocess
import time


def killed_when(command, seen, later=0.0):
    """Starts the command and kills it `later` seconds after seen() holds; whether it still ran by then."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not seen():
        time.sleep(0.002)
    time.sleep(later)
    running = process.poll() is None
    process.kill()  # nothing where it has ended
    process.wait()
    return running
