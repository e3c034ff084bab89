"""One page to look inside a network with: weights and pictures in, HTML that needs nothing else out."""

from jaxcnn.explorer.page import make_page

__all__ = ["make_page"]
