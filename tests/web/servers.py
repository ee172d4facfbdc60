"""Servers as a person starts them: `jpo serve` and `jpo annotate` in a process of their own."""

import re
import signal
import subprocess
import sys

COMMAND = [sys.executable, "-c", "import sys; from jpo.cli.main import main; sys.exit(main())"]


def _hears_interrupts():
    """A test run in the background of a script inherits that Ctrl-C is ignored; a person's command does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Process:
    """The command, and what it said until the line that begins with `last`."""

    def __init__(self, *arguments, last):
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, text=True, bufsize=1, preexec_fn=_hears_interrupts
        )
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith(last):
                break
        self.said = "".join(lines)

    def stop(self, how=signal.SIGTERM):
        """Its exit status."""
        self.process.send_signal(how)
        status = self.process.wait(30)
        self.process.stdout.close()
        return status


class Annotate(Process):
    """`jpo annotate` of the candidates in FOLDER/in.jsonl, into FOLDER/out.jsonl."""

    def __init__(self, folder, *options, port=0):
        files = ("--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl"))
        super().__init__("annotate", *files, "--port", str(port), *options, last="verdicts:")
        self.url = re.search(r"annotate: (\S+)", self.said)[1]
        self.port = int(re.search(r":(\d+)/", self.url)[1])


class Serve(Process):
    """`jpo serve` on a free port."""

    def __init__(self, *options, model="tiny", host="127.0.0.1"):
        super().__init__("serve", "--model", model, "--host", host, "--port", "0", *options, last="Ctrl-C")
        self.url = re.search(r"serve: (\S+)/v1", self.said)[1].replace("0.0.0.0", "127.0.0.1")
        key = re.search(r"^key: (\S+)", self.said, re.MULTILINE)
        self.key = key[1] if key else None

    def client(self, **options):
        """The real openai client."""
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, **options)
