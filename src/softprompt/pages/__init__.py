"""Pages of results: HTML files that need nothing else, from templates with one stylesheet and one script."""

from softprompt.pages.data_urls import data_url
from softprompt.pages.rendering import render

__all__ = ["data_url", "render"]
