"""jpo interplay: how conditional labels and joint verdicts go together, and how far annotators agree."""

from __future__ import annotations

import json as json_
from typing import Annotated, Any

import typer


def interplay(
    input: Annotated[
        list[str],
        typer.Option(
            "--input", help="Feedback; may repeat: joint (label_0, label_1, feedback), and conditional beside it."
        ),
    ],
    human: Annotated[
        list[str] | None,
        typer.Option("--human", help="An annotator who is a human; may repeat. (default: names that begin with human)"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Compare log-likelihoods under this model where verdicts disagree."),
    ] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", help="The model's adapter, with its template.")] = None,
    json: Annotated[str | None, typer.Option("--json", help="Write the figures, unrounded, here.")] = None,
    plot: Annotated[str | None, typer.Option("--plot", help="Draw the shares with their intervals here.")] = None,
) -> None:
    """Show how joint verdicts go with conditional labels, and how far annotators agree.

    Shares of joint verdicts by the conditional labels of their items (the paper's figures 2 and 3).
    decisive: how often one side is preferred where both items are chosen (or both rejected); chosen over rejected, the
    reverse, and neither, where labels differ. An item's label counts, never its position. Then what goes with
    disagreement (differences chosen - rejected of lengths, of how the instruction fares elsewhere, of log-likelihoods),
    and the agreement of annotators who judged the same content, conditional and joint apart, in percent and as
    Krippendorff's alpha. A record's kind of annotator: the key annotator_kind, --human, or its name.

    jpo interplay --input joint_feedback.jsonl --input human_feedback.jsonl --human alice --json out.json --plot out.png
    """
    from jpo.data import read_records
    from jpo.feedback.interplay import disagreements, format_disagreements
    from jpo.feedback.interplay import interplay as measure

    records = read_records(input)
    joint = [record for record in records if "instruction" not in record]
    result = measure(joint)
    if joint:
        _show_shares(result)
        for name, shares in result.get("annotators", {}).items():
            _show_shares(shares, f"  {name or 'unnamed'}, ")
        typer.echo(f"verdicts: {result['verdicts']}; without verdict or labels: {result['skipped']}")
    else:
        typer.echo("no joint records (label_0, label_1, feedback): their shares are not measured")
    whole = [record for record in joint if "instruction_0" in record]  # labels and verdicts alone are enough for shares
    result["disagreements"] = disagreements(whole, _likelihood(model, adapter))
    if whole and result["disagreements"]["n"]:
        typer.echo(format_disagreements(result["disagreements"]))
    agreed = _agreement([record for record in records if "instruction" in record or "instruction_0" in record], human)
    if agreed is not None:
        result["agreement"] = agreed
    if json:
        from jpo.disk import write_text

        write_text(json, json_.dumps(result, indent=1))
    if plot:
        from jpo import plots

        plots.interplay(result, plot)


def _show_shares(result: dict[str, Any], before: str = "") -> None:
    for key, value in result.items():
        if isinstance(value, dict) and "share" in value:
            shown = (
                "-"
                if value["share"] is None
                else f"{100 * value['share']:.1f} % ({100 * value['low']:.1f} to {100 * value['high']:.1f})"
            )
            typer.echo(f"{before}{key}: {shown}, n = {value['n']}")


def _likelihood(model: str | None, adapter: str | None) -> Any:
    if model is None:
        return None
    import jpo
    from jpo.evaluate.sampling import encoder_of
    from jpo.feedback.interplay import likelihood_of

    lm = jpo.load(model)
    own = lm.load_adapter(adapter) if adapter else None
    return likelihood_of(lm, encoder_of(lm, own))


def _agreement(records: Any, human: list[str] | None) -> dict[str, Any] | None:
    """Printed and returned; None where there is one annotator, or the package that it needs is missing (said)."""
    from jpo.errors import JpoError, MissingExtra
    from jpo.feedback.agreement import agreement, format_agreement

    names = {str(record.get("annotator") or "unnamed") for record in records}
    unknown = set(human or ()) - names
    if unknown:
        raise JpoError(
            f"--human {sorted(unknown)[0]}: no record has this annotator; there are {', '.join(sorted(names))}"
        )
    if len(names) < 2:
        return None
    try:
        found = agreement(records, human or ())
    except MissingExtra as error:
        typer.echo(f"not measured: {error}")
        return None
    typer.echo(format_agreement(found) or "agreement: no two annotators judged the same content")
    return found


def register(app: typer.Typer) -> None:
    """Adds `jpo interplay`."""
    app.command("interplay")(interplay)
