"""Self-contained HTML documents: pictures inside, whatever comes from data escaped, no other file asked for."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import jinja2
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

__all__ = ["Part", "document"]

_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem }
body { margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
figure { margin: 1rem 0 } img { max-width: 100%; height: auto } figcaption { color: #595959; font-size: .9rem }
.table { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e5e5e5 }
th:first-child, td:first-child { text-align: left }
iframe { width: 100%; height: 30rem; border: 0 } pre { white-space: pre-wrap; background: #f5f5f5; padding: 1rem }
nav a { margin-right: 1rem }
@media print { nav, iframe { display: none } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<nav>
{% for part in parts if part.title %}<a href="#{{ part.title | urlencode }}">{{ part.title }}</a>
{% endfor %}
</nav>
{% for part in parts %}
<section id="{{ part.title | urlencode }}">
{% if part.title %}<h2>{{ part.title }}</h2>{% endif %}
{% for paragraph in part.text %}<p>{{ paragraph }}</p>
{% endfor %}
{% if part.quotable %}<pre>{{ part.quotable }}</pre>{% endif %}
{% if part.table is not none %}
<div class="table"><table>
<thead><tr>{% for name in part.table.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in part.table.itertuples(index=False) %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% for alt, picture in part.pictures() %}
<figure><img alt="{{ alt }}" src="data:image/png;base64,{{ picture }}"><figcaption>{{ alt }}</figcaption></figure>
{% endfor %}
{% if part.viewer %}<iframe title="{{ part.title }}" srcdoc="{{ part.viewer }}"></iframe>{% endif %}
</section>
{% endfor %}
</body>
</html>
"""
)


@dataclass(frozen=True)
class Part:
    """A part of a document; whatever is absent is left out.

    title : its heading
    text : paragraphs
    quotable : text to copy
    table : with its cells as they are to be read
    figures : caption → figure
    viewer : an HTML document of its own, such as `plots.interactive_map` gives
    """

    title: str = ""
    text: Sequence[str] = ()
    quotable: str = ""
    table: pd.DataFrame | None = None
    figures: dict[str, Figure] | None = None
    viewer: str = ""

    def pictures(self) -> list[tuple[str, str]]:
        """Captions and PNGs in base64; the figures are closed."""
        found = []
        for caption, figure in (self.figures or {}).items():
            buffer = BytesIO()
            figure.savefig(buffer, format="png", dpi=110)
            plt.close(figure)
            found.append((caption, b64encode(buffer.getvalue()).decode()))
        return found


def document(title: str, parts: Sequence[Part]) -> str:
    """The document as text, to be written in UTF-8."""
    return _PAGE.render(title=title, parts=parts)
