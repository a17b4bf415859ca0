"""The suite. Processes that a test starts are disturbed like the test's own, see `tests.disturbed`."""

import os

if os.environ.get("SOFTPROMPT_TESTS_DISTURB"):
    from tests.disturbed import disturb

    disturb(int(os.environ["SOFTPROMPT_TESTS_DISTURB"]))
