"""Leaderboards as LaTeX: escaped, with booktabs rules, saying what the Markdown says."""

import json
import re

from harness.config import chosen_suites
from harness.tables.latex import escape, latex


def test_every_special_character_is_printed_as_it_is():
    assert escape(r"50 % & a_b #1 $x$ {y} ~ ^ \input <c>") == (
        r"50 \% \& a\_b \#1 \$x\$ \{y\} \textasciitilde{} \textasciicircum{} "
        r"\textbackslash{}input \textless{}c\textgreater{}"
    )
    assert escape("PSNR dB ↑, rFD ↓, 1 ± 2\nnext") == (
        r"PSNR dB $\uparrow$, rFD $\downarrow$, 1 $\pm$ 2 next"
    )


def test_the_tables_are_whole_and_published_ones_say_so(make_results):
    (config,) = chosen_suites("generation")
    folder = make_results(encoders={"ov3-demo": 1.0, r"c_l&i%p\x": 0.8}).results / "generation"
    text = latex(json.loads((folder / "leaderboard.json").read_text()), config)
    assert text == (folder / "leaderboard.tex").read_text()
    tables = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, flags=re.DOTALL)
    assert len(tables) == text.count(r"\toprule") == text.count(r"\bottomrule") > 1
    assert r"ov3-demo & \textbf{3.1000} & \textbf{25.40 $\pm$ 0.10}" in tables[0]
    assert r"c\_l\&i\%p\textbackslash{}x & 3.8750 & 20.32 $\pm$ 0.10" in tables[0]
    assert "not run" in tables[0]
    assert "Inception score" in tables[1]
    for table in tables[2:]:
        assert r"\caption{Published, not measured here. " in table
        assert "OpenVision 3, arXiv:2601.15369v" in table
    for table in tables:
        columns = re.search(r"\{tabular\}\{(l?r*)\}", table)[1]
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert all(len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1 for row in rows)
