"""Self-contained HTML pages: everything about a run, or about the runs of a comparison, in one file."""

from diffusion_lab.page.chart import Chart, Panel
from diffusion_lab.page.metrics_log import common_charts, read_columns
from diffusion_lab.page.picture import Picture, picture
from diffusion_lab.page.render import PAGE, write
from diffusion_lab.page.run import TERMS, Command, run_page
from diffusion_lab.page.table import Row, write_comparison

__all__ = [
    "PAGE",
    "TERMS",
    "Chart",
    "Command",
    "Panel",
    "Picture",
    "Row",
    "common_charts",
    "picture",
    "read_columns",
    "run_page",
    "write",
    "write_comparison",
]
