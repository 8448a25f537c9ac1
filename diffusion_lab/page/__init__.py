"""Self-contained HTML pages: everything about a run, or about the runs of a comparison, in one file."""

from diffusion_lab.page.chart import Chart, Panel, plus_minus, time_unit
from diffusion_lab.page.comparison import Row, write_comparison
from diffusion_lab.page.metrics_log import common_charts, read_columns
from diffusion_lab.page.picture import Picture, picture
from diffusion_lab.page.render import PAGE, write
from diffusion_lab.page.run import Command, metric, run_page

__all__ = [
    "PAGE",
    "Chart",
    "Command",
    "Panel",
    "Picture",
    "Row",
    "common_charts",
    "metric",
    "picture",
    "plus_minus",
    "read_columns",
    "run_page",
    "time_unit",
    "write",
    "write_comparison",
]
