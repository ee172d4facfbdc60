"""What a click costs, counted and not timed: operations of our Python code and of SQLite's machine do not grow with the
verdicts that stand behind."""

import sys
import time

import anyio
from web.test_pages import CONDITIONAL, Site

from jpo.web import annotate
from jpo.web.assignment import Rules
from jpo.web.items import read_items
from jpo.web.project import Project
from jpo.web.store import Store

ITEMS, PEOPLE, ROUNDS, PART = 500, 4, 180, 10  # PART rounds of clicks are counted together


class Counted:
    """Inside the block `python` counts the operations of the jpo.web modules, `sqlite` the database's in hundreds."""

    def __init__(self, store):
        self.store, self.python, self.sqlite = store, 0, 0

    def __enter__(self):
        def of_frame(frame, event, argument):
            if "/jpo/web/" not in frame.f_code.co_filename.replace("\\", "/"):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False

            def of_operation(frame, event, argument):
                self.python += event == "opcode"
                return of_operation

            return of_operation

        def of_store():
            self.sqlite += 1

        self.before = sys.gettrace()
        self.store._db.set_progress_handler(of_store, 10)
        sys.settrace(of_frame)

    def __exit__(self, *error):
        sys.settrace(self.before)
        self.store._db.set_progress_handler(None, 0)


def clicks(project, names, rounds, what):
    """Every person clicks `rounds` times; what the page then asks for is asked for, as in jpo.web.annotate."""
    for _ in range(rounds):
        for name in names:
            showing = project.showing(name)
            project.answer(name, showing.id, what, seconds=1.5)
            project.showing(name), project.progress(name), project.more_to_ask(), project.finished()
    for name in names[:2]:
        project.undo(name)


def test_a_click_costs_the_same_after_many_verdicts(tmp_path):
    given = [{"instruction": f"I {i}", "response_0": f"a {i}", "response_1": f"b {i}"} for i in range(ITEMS)]
    given += [{**given[0], "instruction": f"G {i}", "gold": 1} for i in range(6)]
    store = Store(tmp_path / "s.sqlite")
    store._db.execute("PRAGMA synchronous = OFF")  # what is counted is not the disk
    project = Project(read_items(given), store, Rules(overlap=2, repeat=0.2))
    names = [f"p{number}" for number in range(PEOPLE)]
    parts = {}
    for start in range(0, ROUNDS, PART):
        if start in (PART, ROUNDS // 2 // PART * PART, ROUNDS - PART):
            parts[start] = Counted(store)
            with parts[start]:
                clicks(project, names, PART, "left")
        else:
            clicks(project, names, PART, "left")
    assert len(project.answers()) == PEOPLE * ROUNDS - 2 * (ROUNDS // PART) > 600
    early, *later = parts.values()
    for part in later:
        assert part.python < 1.5 * early.python and part.sqlite < 1.5 * early.sqlite, [vars(p) for p in parts.values()]
    store.close()


def test_writing_leaves_the_interpreter_and_the_time_to_clicks(tmp_path, monkeypatch):
    """The output file is written beside the clicks: a thread that writes gives way at once, and a file that takes long
    is written more rarely."""
    site, usual, pauses, sleep = Site(tmp_path, CONDITIONAL), sys.getswitchinterval(), [], anyio.sleep

    async def passed(seconds):
        pauses.append(seconds)
        await sleep(3600 if len(pauses) > 2 else 0)

    async def run():
        async with site.pages.lifespan(site.app):
            assert sys.getswitchinterval() < usual
            while len(pauses) < 3:
                await sleep(0.01)

    monkeypatch.setattr(annotate.anyio, "sleep", passed)
    site.pages.try_save = lambda: time.sleep(0.5)
    anyio.run(run)
    assert sys.getswitchinterval() == usual and pauses[0] == 20 and all(pause >= 25 for pause in pauses[1:])
    site.store.close()
