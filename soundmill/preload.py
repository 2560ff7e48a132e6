"""The first import of the process that workers are forked from: what it imports stays, so nobody looks for garbage in it.

Collecting takes a seventh of the time of the imports, and in a worker it would write to, and so copy, the pages it looks at.
"""

import gc
import os

gc.disable()
os.register_at_fork(before=gc.freeze, after_in_child=gc.enable)
