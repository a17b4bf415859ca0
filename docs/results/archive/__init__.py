"""How the published figures were made: an archive, as of commit 3cfa151.

A page's module (`clip`, `foundation`, `images`, `language_methods`) prints the page's tables out of the recorded runs and
needs nothing but Python; a test compares them. `*_runs` made the runs at that commit and is not maintained: to make them
again, check that commit out.
"""
