"""One page to look inside a network: makes self-contained HTML from weights and pictures."""

from jaxcnn.explorer.page import make_page

__all__ = ["make_page"]
