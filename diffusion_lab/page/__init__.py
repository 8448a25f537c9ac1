"""Self-contained HTML pages: everything about a run, or about the runs of a comparison, in one file."""

from diffusion_lab.page.chart import Chart
from diffusion_lab.page.picture import Picture, picture
from diffusion_lab.page.render import PAGE, write
from diffusion_lab.page.run import TERMS, Command, run_page

__all__ = ["PAGE", "TERMS", "Chart", "Command", "Picture", "picture", "run_page", "write"]
