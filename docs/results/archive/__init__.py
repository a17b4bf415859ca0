"""How the published figures were made: an archive, as of commit 3cfa151.

A page's module (`clip`, `foundation`, `images`, `language_methods`) prints the page's tables from the recorded runs and
needs only Python; a test compares them with the page. `*_runs` made the runs at that commit and is not maintained: to make
them again, check out that commit.
"""
