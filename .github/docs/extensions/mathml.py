"""Formulas as MathML, which browsers show by themselves: the pages need no script and nothing from elsewhere."""

import latex2mathml.converter
from docutils import nodes


def _visit(display):
    def visit(translator, node):
        formula = latex2mathml.converter.convert(node.astext(), display=display)
        translator.body.append(f'<div class="formula">{formula}</div>' if display == "block" else formula)
        raise nodes.SkipNode

    return visit


def setup(app):
    app.add_html_math_renderer("mathml", (_visit("inline"), None), (_visit("block"), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
