"""Puts the commands of jpo, with their options, into the page that asks for them: out of typer, as --help shows them."""

MARK = "<!-- every command -->"


def _text(value):
    """Help as Markdown: what it would read as markup is escaped."""
    text = " ".join(str(value or "").split())
    for sign in "\\|<>*_$[]{}":
        text = text.replace(sign, "\\" + sign)
    return text


def _options(command):
    lines = ["| option | meaning |", "|---|---|"]
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        flags = ", ".join(f"`{flag}`" for flag in [*parameter.opts, *parameter.secondary_opts])
        if parameter.param_type_name == "argument":
            flags = f"`{parameter.metavar or parameter.name.upper()}`"
        lines.append(f"| {flags} | {_text(getattr(parameter, 'help', ''))} |")
    return lines if len(lines) > 2 else []


def markdown():
    """One section a command."""
    from typer.main import get_command

    from jpo.cli.main import build_app

    lines = []
    for name, command in sorted(get_command(build_app()).commands.items()):
        paragraphs = (command.help or "").strip().split("\n\n")
        examples = [part for part in paragraphs if part.lstrip().startswith(("Example", "jpo "))]
        lines += [f"## jpo {name}", ""]
        for part in paragraphs:
            if part in examples:
                lines += ["```text", *(line.strip() for line in part.strip().splitlines()), "```", ""]
            else:
                lines += [_text(part), ""]
        lines += [*_options(command), ""]
    return "\n".join(lines)


def setup(app):
    def put(app, docname, source):
        if MARK in source[0]:
            source[0] = source[0].replace(MARK, markdown())

    app.connect("source-read", put)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
